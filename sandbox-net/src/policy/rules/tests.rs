//! What the rules as a whole decide.

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{
        Candidate, Carriage, Class, Hello, Host, Need, Pattern, Reason, Target, judge::WEB_PORTS,
        pattern::Kind,
    },
    testing_cases::cases,
};

fn target(text: &str) -> Target {
    Target::parse(text).unwrap()
}

/// Judges a tunnel whose client is honest and whose name has these addresses.
fn tunnel(rules: &RuleSet, text: &str, addresses: &[&str]) -> Verdict {
    let target = target(text);
    let candidates: Vec<_> = addresses
        .iter()
        .map(|address| Candidate::new(address.parse().unwrap(), false))
        .collect();
    let hello = match &target.host {
        Host::Name(name) => Hello::Named(name.clone()),
        Host::Address(_) => Hello::Unnamed,
    };
    let facts = Facts::new(&target, Carriage::Tunnel)
        .with_candidates(&candidates)
        .with_hello(&hello);
    rules.judge(&facts)
}

fn reason(verdict: &Verdict) -> Option<Reason> {
    verdict.denial().map(|denial| denial.reason)
}

fn first(rules: &RuleSet, text: &str) -> Verdict {
    rules.judge(&Facts::new(&target(text), Carriage::Tunnel))
}

fn passes_name(rules: &RuleSet, text: &str) -> bool {
    first(rules, text) == Verdict::Need(Need::Addresses)
}

fn allowing(patterns: &[&str]) -> RuleSet {
    patterns.iter().fold(RuleSet::deny(), |rules, pattern| {
        rules.allow(pattern).unwrap()
    })
}

fn blocking(patterns: &[&str]) -> RuleSet {
    patterns.iter().fold(RuleSet::open(), |rules, pattern| {
        rules.block(pattern).unwrap()
    })
}

#[test]
fn e46_without_rules_nothing_is_allowed() {
    assert_eq!(
        reason(&first(&RuleSet::deny(), "example.com:443")),
        Some(Reason::NotAllowed)
    );
    assert_eq!(
        reason(&first(&RuleSet::default(), "1.1.1.1:443")),
        Some(Reason::NotAllowed)
    );
}

#[test]
fn e43_e44_wildcards_match_whole_labels() {
    let one = allowing(&["*.example.com"]);
    assert!(passes_name(&one, "a.example.com:443"));
    for host in [
        "example.com",
        "a.b.example.com",
        "evil-example.com",
        "xexample.com",
        "example.com.evil.com",
        "a.example.com.evil.com",
    ] {
        assert!(!passes_name(&one, &format!("{host}:443")), "{host}");
    }
    let deep = allowing(&["**.example.com"]);
    assert!(passes_name(&deep, "a.example.com:443"));
    assert!(passes_name(&deep, "a.b.example.com:443"));
    assert!(!passes_name(&deep, "example.com:443"));
    assert!(!passes_name(&deep, "evil-example.com:443"));
}

#[test]
fn a_wildcard_in_a_block_covers_any_depth() {
    let rules = blocking(&["*.example.com"]);
    assert_eq!(
        reason(&first(&rules, "a.b.c.example.com:443")),
        Some(Reason::Blocked)
    );
    assert!(passes_name(&rules, "example.com:443"));
}

#[test]
fn e17_a_rule_without_a_port_fits_80_and_443() {
    let rules = allowing(&["example.com", "db.example.com:5432"]);
    assert!(passes_name(&rules, "example.com:443"));
    assert_eq!(reason(&first(&rules, "example.com:22")), Some(Reason::Port));
    assert!(passes_name(&rules, "db.example.com:5432"));
    assert_eq!(
        reason(&first(&rules, "db.example.com:443")),
        Some(Reason::Port)
    );
    assert_eq!(
        reason(&first(&RuleSet::open(), "example.com:22")),
        Some(Reason::Port)
    );
}

#[test]
fn a_block_without_a_port_fits_every_port_and_one_with_a_port_that_one() {
    let rules = RuleSet::open()
        .allow("a.com:22")
        .unwrap()
        .block("a.com")
        .unwrap();
    assert_eq!(reason(&first(&rules, "a.com:22")), Some(Reason::Blocked));
    let rules = blocking(&["a.com:443"]);
    assert_eq!(reason(&first(&rules, "a.com:443")), Some(Reason::Blocked));
    let http = Facts::new(&target("a.com:80"), Carriage::Http)
        .target
        .clone();
    assert!(
        rules
            .judge(&Facts::new(&http, Carriage::Http))
            .denial()
            .is_none()
    );
}

#[test]
fn e48_a_block_beats_an_allow() {
    let rules = allowing(&["*.example.com"])
        .block("bad.example.com")
        .unwrap();
    let denial = first(&rules, "bad.example.com:443");
    assert_eq!(
        denial.denial().unwrap().rule.as_ref().unwrap().as_str(),
        "block bad.example.com"
    );
    assert!(passes_name(&rules, "good.example.com:443"));
}

#[test]
fn e48_a_blocked_network_beats_an_allowed_name() {
    let rules = allowing(&["example.com"]).block("8.8.8.0/24").unwrap();
    let verdict = tunnel(&rules, "example.com:443", &["8.8.8.8"]);
    assert_eq!(reason(&verdict), Some(Reason::Blocked));
    for other_form in ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"] {
        assert_eq!(
            reason(&tunnel(&rules, "example.com:443", &[other_form])),
            Some(Reason::Blocked)
        );
    }
}

#[test]
fn e18_private_literals_are_refused_in_allow_mode() {
    for address in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[fd00::1]",
        "[::ffff:10.0.0.1]",
    ] {
        let plain = address.trim_matches(['[', ']']);
        let verdict = tunnel(&RuleSet::open(), &format!("{address}:443"), &[plain]);
        assert!(
            matches!(reason(&verdict), Some(Reason::Address(_))),
            "{address}: {verdict:?}"
        );
    }
}

#[test]
fn e30_an_allowed_name_with_a_private_address_is_refused_without_naming_it() {
    let rules = allowing(&["example.com"]);
    let verdict = tunnel(&rules, "example.com:443", &["10.9.8.7"]);
    assert_eq!(reason(&verdict), Some(Reason::Address(Class::Private)));
    assert!(!verdict.denial().unwrap().text.contains("10.9.8.7"));
}

#[test]
fn e32_private_addresses_are_dropped_from_a_mixed_answer() {
    let rules = allowing(&["example.com"]);
    let Verdict::Allow(allow) = tunnel(
        &rules,
        "example.com:443",
        &["10.0.0.1", "8.8.8.8", "::1", "2600::1"],
    ) else {
        panic!("allowed");
    };
    let dialled: Vec<_> = allow
        .addresses
        .iter()
        .map(|a| a.address().to_string())
        .collect();
    assert_eq!(dialled, ["8.8.8.8:443", "[2600::1]:443"]);
}

#[test]
fn e29_a_host_rule_never_opens_metadata() {
    let rules = allowing(&["metadata.google.internal", "169.254.0.0/16:80"]);
    let target = target("metadata.google.internal:80");
    let candidates = [Candidate::new("169.254.169.254".parse().unwrap(), false)];
    let facts = Facts::new(&target, Carriage::Http).with_candidates(&candidates);
    assert_eq!(
        reason(&rules.judge(&facts)),
        Some(Reason::Address(Class::Metadata))
    );
}

#[test]
fn e28_localhost_is_refused_by_name() {
    let rules = allowing(&["localhost", "app.localhost"]);
    for name in ["localhost:80", "app.localhost:80", "ip6-localhost:80"] {
        assert_eq!(reason(&first(&rules, name)), Some(Reason::Localhost));
    }
}

#[test]
fn a_network_with_a_port_opens_private_addresses_and_without_one_is_an_error() {
    for pattern in ["10.0.0.0/8", "127.0.0.1", "[fc00::/7]", "192.168.1.7"] {
        assert!(RuleSet::deny().allow(pattern).is_err(), "{pattern}");
    }
    let rules = allowing(&["10.1.0.0/16:5432", "db.example.com:5432"]);
    assert!(tunnel(&rules, "10.1.2.3:5432", &["10.1.2.3"]).is_allowed());
    assert!(tunnel(&rules, "db.example.com:5432", &["10.1.2.3"]).is_allowed());
    let other = tunnel(&rules, "db.example.com:5432", &["10.2.2.3"]);
    assert_eq!(reason(&other), Some(Reason::Address(Class::Private)));
}

#[test]
fn e50_a_network_rule_never_causes_a_lookup() {
    let rules = allowing(&["0.0.0.0/0:443", "8.8.8.0/24"]);
    assert_eq!(
        reason(&first(&rules, "secrets.evil.com:443")),
        Some(Reason::NotAllowed)
    );
}

#[test]
fn e45_wide_and_empty_rules_do_not_load() {
    for pattern in [
        "",
        "*",
        "*.com",
        "**.co.uk",
        "https://example.com",
        "*.github.io",
        // What no public address is needs a port.
        "10.0.0.0/8",
        "127.0.0.1",
    ] {
        assert!(RuleSet::deny().allow(pattern).is_err(), "{pattern}");
    }
    assert!(RuleSet::deny().allow("10.0.0.0/8:443").is_ok());
    assert!(
        RuleSet::open().block("*.zip").is_ok(),
        "a block only narrows"
    );
}

#[test]
fn e01_e02_a_tunnel_needs_the_targets_own_name_in_its_handshake() {
    let rules = allowing(&["example.com"]);
    let target = target("example.com:443");
    let candidates = [Candidate::new("8.8.8.8".parse().unwrap(), false)];
    let facts = Facts::new(&target, Carriage::Tunnel).with_candidates(&candidates);
    assert!(matches!(
        rules.judge(&facts),
        Verdict::Need(Need::Hello { .. })
    ));
    for (hello, expected) in [
        (
            Hello::Named("evil.com".parse().unwrap()),
            Some(Reason::TlsName),
        ),
        (Hello::Unnamed, Some(Reason::NotTls)),
        (Hello::Unreadable("not TLS"), Some(Reason::NotTls)),
        (Hello::Named("example.com".parse().unwrap()), None),
    ] {
        assert_eq!(
            reason(&rules.judge(&facts.clone().with_hello(&hello))),
            expected
        );
    }
}

#[test]
fn e57_a_raw_tunnel_needs_a_rule_that_names_its_port() {
    let rules = allowing(&["example.com"]);
    assert_eq!(
        reason(&first(&rules, "example.com:80")),
        Some(Reason::Tunnel)
    );
    let rules = allowing(&["example.com:80"]);
    assert!(tunnel(&rules, "example.com:80", &["8.8.8.8"]).is_allowed());
    // Naming 443 does not waive the handshake.
    let rules = allowing(&["example.com:443"]);
    let target = target("example.com:443");
    let candidates = [Candidate::new("8.8.8.8".parse().unwrap(), false)];
    let facts = Facts::new(&target, Carriage::Tunnel).with_candidates(&candidates);
    assert!(matches!(
        rules.judge(&facts),
        Verdict::Need(Need::Hello { .. })
    ));
}

/// The matcher that anybody can check by eye.
fn naive(rules: &RuleSet, target: &Target) -> bool {
    let fits = |pattern: &Pattern, block: bool| {
        let port = match pattern.port {
            Some(port) => port == target.port,
            None => block || WEB_PORTS.contains(&target.port),
        };
        let host = match (&pattern.kind, &target.host) {
            (Kind::Exact(name), Host::Name(host)) => name == host,
            (Kind::Child(suffix), Host::Name(host)) => {
                let head = host.as_str().strip_suffix(&format!(".{suffix}"));
                head.is_some_and(|head| block || !head.contains('.'))
            }
            (Kind::Descendant(suffix), Host::Name(host)) => {
                host.as_str().ends_with(&format!(".{suffix}"))
            }
            (Kind::Network(network), Host::Address(address)) => {
                network.contains(&address.to_canonical())
            }
            _ => false,
        };
        host && port
    };
    let default = rules.mode == Mode::Allow && WEB_PORTS.contains(&target.port);
    !rules.block.iter().any(|clause| fits(&clause.pattern, true))
        && (default
            || rules
                .allow
                .iter()
                .any(|clause| fits(&clause.pattern, false)))
}

fn hosts() -> impl Strategy<Value = String> {
    prop_oneof![
        "([ab]\\.){0,3}(example\\.com|a\\.org)",
        "(8\\.8\\.[48]\\.[0-3])",
        "\\[2600::[0-3]\\]",
    ]
}

fn patterns() -> impl Strategy<Value = String> {
    let port = prop_oneof![3 => Just(""), 1 => Just(":80"), 1 => Just(":22")];
    let host = prop_oneof![
        ("(\\*\\.|\\*\\*\\.)?([ab]\\.){0,2}(example\\.com|a\\.org)"),
        hosts(),
        Just("8.8.0.0/16".to_owned()),
        Just("8.8.8.0/24".to_owned()),
        Just("8.8.8.2/31".to_owned()),
        Just("[2600::/126]".to_owned()),
    ];
    (host, port).prop_map(|(host, port)| format!("{host}{port}"))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_index_agrees_with_the_naive_matcher(
        open: bool,
        allow in prop::collection::vec(patterns(), 0..6),
        block in prop::collection::vec(patterns(), 0..4),
        host in hosts(),
        port in prop_oneof![Just(80u16), Just(443), Just(22)],
    ) {
        let mut rules = if open { RuleSet::open() } else { RuleSet::deny() };
        for pattern in &allow {
            rules = rules.allow(pattern).unwrap();
        }
        for pattern in &block {
            rules = rules.block(pattern).unwrap();
        }
        let target = target(&format!("{host}:{port}"));
        let fast = rules.judge(&Facts::new(&target, Carriage::Http)).denial().is_none();
        prop_assert_eq!(fast, naive(&rules, &target));
    }

    /// Whatever rules without an opening say, no refused address is ever handed to the dialer.
    #[test]
    fn the_floor_holds_under_any_rules(
        allow in prop::collection::vec(patterns(), 0..6),
        bits: u32,
    ) {
        let mut rules = RuleSet::open();
        for pattern in &allow {
            rules = rules.allow(pattern).unwrap();
        }
        let target = target("example.com:80");
        let candidates = [Candidate::new(std::net::Ipv4Addr::from(bits).into(), false)];
        let facts = Facts::new(&target, Carriage::Http).with_candidates(&candidates);
        if floor::classify(candidates[0].address).is_some() {
            prop_assert!(rules.judge(&facts).denial().is_some());
        }
    }
}

#[test]
fn a_set_that_is_extended_keeps_its_mode_and_has_each_rule_once() {
    let present = RuleSet::open().allow("a.test").unwrap();
    let reads = || Requests::new().methods(["GET"]).unwrap();
    let added = RuleSet::deny()
        .allow("A.test.")
        .and_then(|rules| rules.allow("127.0.0.1:8080"))
        .and_then(|rules| rules.allow_requests("a.test", reads()))
        .and_then(|rules| rules.block("b.test"))
        .unwrap();
    let extended = present.clone().extended(&added).extended(&added);
    assert_eq!(extended.mode(), Mode::Allow);
    let written = |rules: &[Clause]| rules.iter().map(Clause::to_string).collect::<Vec<_>>();
    let allowed = ["a.test", "127.0.0.1:8080", "a.test GET"];
    assert_eq!(written(extended.allowed()), allowed);
    assert_eq!(written(extended.blocked()), ["b.test"]);
    assert_eq!(extended.limits(), None);
    // What is added is in force as if it had been loaded so.
    let judged = extended.judge(&Facts::new(
        &"b.test:443".parse().unwrap(),
        Carriage::Tunnel,
    ));
    assert_eq!(judged.denial().unwrap().reason, Reason::Blocked);
    let nothing = present.extended(&RuleSet::deny().limited());
    assert_eq!(nothing.limits(), Some(&[][..]));
}
