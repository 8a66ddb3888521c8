//! What files say, and what their errors say.

use proptest::prelude::*;

use super::*;
use crate::testing_cases::cases;

const FULL: &str = r#"
mode = "allow"
allow = ["*.example.com", { host = "api.example.net", methods = ["get"], paths = ["/repos/**"] }]
block = [{ host = "*.example.org", methods = ["DELETE"] }, "10.0.0.0/8"]
limit = ["**.example.com", "10.1.0.0/16:5432"]
"#;

fn chain(error: &Error) -> String {
    Chain(error).to_string()
}

#[test]
fn toml_and_json_say_the_same() {
    let rules = RuleSet::from_toml(FULL).unwrap();
    let texts = |clauses: &[Clause]| clauses.iter().map(Clause::to_string).collect::<Vec<_>>();
    assert_eq!(rules.mode(), Mode::Allow);
    assert_eq!(
        texts(rules.allowed()),
        ["*.example.com", "api.example.net GET /repos/**"]
    );
    assert_eq!(
        texts(rules.blocked()),
        ["*.example.org DELETE", "10.0.0.0/8"]
    );
    assert_eq!(
        texts(rules.limits().unwrap()),
        ["**.example.com", "10.1.0.0/16:5432"]
    );
    let again = RuleSet::from_json(&rules.to_json()).unwrap();
    assert_eq!(again.to_json(), rules.to_json());
    let again = RuleSet::from_toml(&rules.to_toml()).unwrap();
    assert_eq!(again.to_toml(), rules.to_toml());
    assert_eq!(again.to_json(), rules.to_json());
}

#[test]
fn the_short_form_of_a_record_is_unchanged() {
    let rules = RuleSet::deny().allow("*.example.com").unwrap();
    let json = serde_json::to_string(&rules).unwrap();
    assert_eq!(
        json,
        r#"{"mode":"deny","allow":["*.example.com"],"block":[]}"#
    );
}

#[test]
fn an_empty_limit_is_not_the_same_as_none() {
    let limited = RuleSet::from_json(r#"{"limit":[]}"#).unwrap();
    assert_eq!(limited.limits().map(<[_]>::len), Some(0));
    assert_eq!(
        RuleSet::from_toml(&limited.to_toml())
            .unwrap()
            .limits()
            .map(<[_]>::len),
        Some(0)
    );
    assert!(RuleSet::from_json("{}").unwrap().limits().is_none());
}

#[test]
fn layers_are_tables() {
    let text = "[organization]\nblock = ['a.com']\n[sandbox]\nallow = ['b.com']\n";
    let layers = Layers::from_toml(text).unwrap();
    let names: Vec<_> = layers.iter().map(|(layer, _)| layer.to_string()).collect();
    assert_eq!(names, ["organization", "sandbox"]);
    let again = Layers::from_json(&layers.to_json()).unwrap();
    assert_eq!(again.to_toml(), layers.to_toml());
    assert!(Layers::from_toml("[built-in]\nallow = []").is_err());
}

#[test]
fn e47_a_wrong_file_does_not_load_and_says_where_which_and_what() {
    for (text, place, said) in [
        (
            "allow = ['a.com', '*.com']",
            "line 1, column 19",
            "allow rule 2: cannot load allow rule `*.com`: `com` is a public suffix",
        ),
        (
            "mode = 'deny'\n\nblock = [\n  'a b',\n]",
            "line 4, column 3",
            "block rule 1: cannot load block rule `a b`: cannot read pattern",
        ),
        (
            "mode = 'open'",
            "line 1, column 8",
            "unknown variant `open`, expected `deny` or `allow`",
        ),
        (
            "alow = []",
            "line 1, column 1",
            "unknown field `alow`, expected one of `mode`, `allow`, `block`, `limit`",
        ),
        (
            "allow = 'a.com'",
            "line 1, column 9",
            "expected a list of allow rules",
        ),
        (
            "allow = [3]",
            "line 1, column 10",
            "invalid type: integer `3`, expected allow rule 1 to be a host",
        ),
        (
            "allow = [{ host = 'a.com' }]",
            "line 1, column 10",
            "neither methods nor paths",
        ),
        (
            "allow = [{ methods = ['GET'] }]",
            "line 1, column 10",
            "allow rule 1: missing field `host`",
        ),
        (
            "allow = [{ host = 'a.com', path = '/' }]",
            "line 1, column 10",
            "allow rule 1: unknown field `path`, expected one of `host`, `methods`, `paths`",
        ),
        (
            "allow = [{ host = 'a.com', paths = ['x'] }]",
            "line 1, column 10",
            "allow rule 1: cannot read path `x`: it does not begin with `/`",
        ),
        (
            "limit = [{ host = '1.2.3.4', paths = ['/'] }]",
            "line 1, column 10",
            "limit rule 1: cannot load limit rule `1.2.3.4`: a rule with methods or paths names a host",
        ),
        ("allow = [", "line 1, column 10", "array"),
        (
            "mode = 'deny'\nmode = 'deny'",
            "line 2, column 1",
            "duplicate key",
        ),
        (
            "# é\nallow = ['10.0.0.0/8']",
            "line 2, column 10",
            "name the port",
        ),
    ] {
        let error = chain(&RuleSet::from_toml(text).unwrap_err());
        assert!(error.contains(place), "{text}: {error}");
        assert!(error.contains(said), "{text}: {error}");
    }
    for (text, place, said) in [
        (
            "{\"allow\":[\n\"a.com\", \"*.com\"]}",
            "line 2, column 16",
            "allow rule 2: cannot load allow rule `*.com`",
        ),
        ("{\"alow\":[]}", "line 1, column 7", "unknown field `alow`"),
        (
            "{\"allow\":[{\"host\":\"a.com\",\"host\":\"b.com\"}]}",
            "line 1",
            "`host` stands twice",
        ),
        ("{\"allow\":[]", "line 1, column 11", "EOF"),
        (
            "{\"mode\":\"deny\",\"mode\":\"allow\"}",
            "line 1",
            "duplicate field",
        ),
    ] {
        let error = chain(&RuleSet::from_json(text).unwrap_err());
        assert!(error.contains(place), "{text}: {error}");
        assert!(error.contains(said), "{text}: {error}");
    }
}

/// A rule in any list that accepts everything: what an allow refuses is tried and left out.
fn sets() -> impl Strategy<Value = RuleSet> {
    let host = "(\\*\\.|\\*\\*\\.)?[a-z]{1,3}\\.(example|test)(:[1-9][0-9]{0,3})?|8\\.8\\.8\\.[0-9](:443)?";
    let methods = prop::collection::vec("(GET|POST|X-[A-Z]{1,3})", 0..3);
    let paths = prop::collection::vec(
        "(/([a-z%]|%25|%2A|%C3%A9){1,3}|/[a-z]?\\*){0,3}(/|/\\*\\*)",
        0..3,
    );
    let rule = (0..3usize, host, methods, paths);
    (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(rule, 0..8),
    )
        .prop_map(|(open, limited, rules)| {
            let mut set = if open {
                RuleSet::open()
            } else {
                RuleSet::deny()
            };
            if limited {
                set = set.limited();
            }
            for (list, host, methods, paths) in rules {
                let list = [List::Allow, List::Block, List::Limit][list];
                let requests = Requests::new()
                    .methods(methods.iter().map(String::as_str))
                    .and_then(|requests| requests.paths(paths.iter().map(String::as_str)));
                let requests = requests.ok().filter(|requests| !requests.is_empty());
                if let Ok(clause) = list.read(&host, requests) {
                    set.add(list, clause);
                }
            }
            set
        })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_written_reads_back_as_the_same(rules in sets()) {
        for read in [RuleSet::from_toml(&rules.to_toml()), RuleSet::from_json(&rules.to_json())] {
            let read = read.unwrap();
            prop_assert_eq!(read.mode, rules.mode);
            prop_assert_eq!(&read.allow, &rules.allow);
            prop_assert_eq!(&read.block, &rules.block);
            prop_assert_eq!(&read.limit, &rules.limit);
        }
        let layers = Layers::new().organization(rules.clone()).sandbox(rules);
        let read = Layers::from_toml(&layers.to_toml()).unwrap();
        prop_assert_eq!(read.to_json(), layers.to_json());
    }

    /// Twin of the fuzz target `file`.
    #[test]
    fn arbitrary_text_never_panics(text in "(\\PC|[\\[\\]{}='\",:\n]|allow|mode|host|paths)*") {
        drop(RuleSet::from_toml(&text));
        drop(RuleSet::from_json(&text));
        drop(Layers::from_toml(&text));
    }

    #[test]
    fn near_files_never_panic(host in "[*a-z0-9.:/@-]{0,12}", path in "[/*a-z%.0-9]{0,12}") {
        let toml = format!("allow = [{{ host = '{host}', paths = ['{path}'] }}]");
        if let Ok(rules) = RuleSet::from_toml(&toml) {
            prop_assert_eq!(RuleSet::from_toml(&rules.to_toml()).unwrap().allow, rules.allow);
        }
    }
}
