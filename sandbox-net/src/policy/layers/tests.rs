//! What several sets of rules decide together, and that the fast way to it agrees with the plain one.

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{
        Candidate, Carriage, Clause, Denial, Hello, Host, Mode, Need, Reason, RequestLine,
        Requests, Target, judge::WEB_PORTS, pattern::Kind, request::Reading, rules::List,
    },
    testing_cases::cases,
};

fn target(text: &str) -> Target {
    Target::parse(text).unwrap()
}

fn rules(toml: &str) -> RuleSet {
    RuleSet::from_toml(toml).unwrap()
}

/// Judges plain HTTP to a host with one address.
fn judged(policy: &impl EgressPolicy, text: &str, address: &str, request: &str) -> Verdict {
    let target = target(text);
    let candidates = [Candidate::new(address.parse().unwrap(), false)];
    let (method, path) = request.split_once(' ').unwrap();
    let request = RequestLine::new(method, path);
    let facts = Facts::new(&target, Carriage::Http)
        .with_candidates(&candidates)
        .with_request(&request);
    policy.judge(&facts)
}

fn denied(policy: &impl EgressPolicy, text: &str) -> Option<Denial> {
    let target = target(text);
    let verdict = policy.judge(&Facts::new(&target, Carriage::Tunnel));
    verdict.denial().cloned()
}

fn reason(verdict: &Verdict) -> Option<Reason> {
    verdict.denial().map(|denial| denial.reason)
}

#[test]
fn without_layers_nothing_is_allowed() {
    assert_eq!(
        denied(&Layers::new(), "a.com:443").unwrap().reason,
        Reason::NotAllowed
    );
}

#[test]
fn e48_no_lower_layer_lifts_a_block() {
    let layers = Layers::new()
        .organization(rules("block = ['*.evil.com', '9.9.9.0/24']"))
        .user(rules("allow = ['a.evil.com', 'b.com']\nblock = ['c.com']"))
        .sandbox(rules("mode = 'allow'\nallow = ['**.evil.com', 'c.com']"));
    let denial = denied(&layers, "a.evil.com:443").unwrap();
    assert_eq!(
        (denial.reason, denial.layer()),
        (Reason::Blocked, Some(Layer::Organization))
    );
    assert_eq!(
        denial.rule.unwrap().to_string(),
        "organization: block *.evil.com"
    );
    let denial = denied(&layers, "c.com:443").unwrap();
    assert_eq!(
        (denial.reason, denial.layer()),
        (Reason::Blocked, Some(Layer::User))
    );
    let verdict = judged(&layers, "b.com:80", "9.9.9.9", "GET /");
    assert_eq!(verdict.denial().unwrap().layer(), Some(Layer::Organization));
    let Verdict::Allow(allow) = judged(&layers, "b.com:80", "8.8.8.8", "GET /") else {
        panic!("allowed");
    };
    assert_eq!(allow.rule.unwrap().layer(), Some(Layer::User));
}

#[test]
fn no_lower_layer_widens_a_limit() {
    let layers = Layers::new()
        .organization(rules(
            "limit = ['**.corp.com', { host = 'api.com', methods = ['GET'] }]",
        ))
        .sandbox(rules(
            "mode = 'allow'\nallow = ['a.corp.com:22', 'b.com', 'api.com']",
        ));
    let denial = denied(&layers, "b.com:443").unwrap();
    assert_eq!(
        (denial.reason, denial.layer()),
        (Reason::Limit, Some(Layer::Organization))
    );
    assert_eq!(
        denied(&layers, "a.corp.com:22").unwrap().reason,
        Reason::Limit
    );
    assert!(denied(&layers, "a.corp.com:443").is_none());
    let get = judged(&layers, "api.com:80", "8.8.8.8", "GET /");
    assert!(get.is_allowed());
    let post = judged(&layers, "api.com:80", "8.8.8.8", "POST /");
    assert_eq!(reason(&post), Some(Reason::Limit));
    // A limit allows nothing by itself.
    let alone = Layers::new().organization(rules("limit = ['a.com']"));
    assert_eq!(
        denied(&alone, "a.com:443").unwrap().reason,
        Reason::NotAllowed
    );
}

#[test]
fn where_a_layer_limits_private_networks_are_opened_only_if_it_names_them_too() {
    let opened = rules("allow = ['db.corp.com:5432', '10.1.0.0/16:5432']");
    let free = Layers::new()
        .organization(RuleSet::deny())
        .sandbox(opened.clone());
    assert!(judged(&free, "db.corp.com:5432", "10.1.2.3", "GET /").is_allowed());
    let limited = Layers::new()
        .organization(rules("limit = ['db.corp.com:5432']"))
        .sandbox(opened.clone());
    let verdict = judged(&limited, "db.corp.com:5432", "10.1.2.3", "GET /");
    assert!(
        matches!(reason(&verdict), Some(Reason::Address(_))),
        "{verdict:?}"
    );
    assert_eq!(verdict.denial().unwrap().layer(), Some(Layer::BuiltIn));
    let both = Layers::new()
        .organization(rules("limit = ['db.corp.com:5432', '10.1.2.0/24:5432']"))
        .sandbox(opened);
    assert!(judged(&both, "db.corp.com:5432", "10.1.2.3", "GET /").is_allowed());
    let verdict = judged(&both, "db.corp.com:5432", "10.1.3.3", "GET /");
    assert!(matches!(reason(&verdict), Some(Reason::Address(_))));
}

#[test]
fn the_lowest_layer_says_what_happens_to_the_rest() {
    let open = || rules("mode = 'allow'");
    let closed = Layers::new().organization(open()).sandbox(RuleSet::deny());
    assert_eq!(
        denied(&closed, "a.com:443").unwrap().reason,
        Reason::NotAllowed
    );
    let opened = Layers::new().organization(RuleSet::deny()).sandbox(open());
    assert!(denied(&opened, "a.com:443").is_none());
}

#[test]
fn e58_e59_a_tunnel_is_opened_only_for_a_rule_that_has_to_see_inside() {
    let policy =
        rules("allow = ['b.com', { host = 'api.com', methods = ['GET'], paths = ['/repos/**'] }]");
    let candidates = [Candidate::new("8.8.8.8".parse().unwrap(), false)];
    let ask = |host: &str, request: Option<(&str, &str)>| {
        let target = target(&format!("{host}:443"));
        let hello = Hello::Named(host.parse().unwrap());
        let request = request.map(|(method, path)| RequestLine::new(method, path));
        let facts = Facts::new(&target, Carriage::Tunnel)
            .with_candidates(&candidates)
            .with_hello(&hello);
        match &request {
            Some(request) => policy.judge(&facts.with_request(request)),
            None => policy.judge(&facts),
        }
    };
    assert!(
        ask("b.com", None).is_allowed(),
        "as if there were no such rules"
    );
    assert!(matches!(
        ask("api.com", None),
        Verdict::Need(Need::Request { .. })
    ));
    let Verdict::Allow(allow) = ask("api.com", Some(("GET", "/repos/x?y=/../z"))) else {
        panic!("allowed");
    };
    assert!(
        allow.by_request,
        "so that the proxy strips overrides and asks again"
    );
    for (method, path, expected) in [
        ("POST", "/repos/x", Reason::Request),
        ("GET", "/user", Reason::Request),
        ("GET", "/repos/../user", Reason::Ambiguous),
        ("GET", "/repos/%2e%2e/user", Reason::Ambiguous),
        ("GET", "/repos//user", Reason::Ambiguous),
        ("GET", "/repos%2fuser", Reason::Ambiguous),
        ("GET", "/repos/..;/user", Reason::Ambiguous),
    ] {
        assert_eq!(
            reason(&ask("api.com", Some((method, path)))),
            Some(expected),
            "{path}"
        );
    }
}

#[test]
fn e02_a_tunnel_whose_requests_are_judged_has_to_begin_with_tls_on_every_port() {
    let policy = rules("allow = [{ host = 'api.com:8443', methods = ['GET'] }]");
    let target = target("api.com:8443");
    let candidates = [Candidate::new("8.8.8.8".parse().unwrap(), false)];
    let facts = Facts::new(&target, Carriage::Tunnel).with_candidates(&candidates);
    assert!(matches!(
        policy.judge(&facts),
        Verdict::Need(Need::Hello { .. })
    ));
    let hello = Hello::Unreadable("not TLS");
    let verdict = policy.judge(&facts.with_hello(&hello));
    assert_eq!(reason(&verdict), Some(Reason::NotTls));
}

#[test]
fn e58_a_block_of_requests_is_read_widely_and_leaves_the_rest() {
    let policy = rules(
        "mode = 'allow'\nblock = [{ host = '*.a.com', methods = ['DELETE'] }, { host = 'b.com', paths = ['/admin/**'] }]",
    );
    for (host, request, expected) in [
        ("x.y.a.com:80", "DELETE /", Some(Reason::Blocked)),
        ("x.a.com:80", "delete /../", Some(Reason::Blocked)),
        ("x.a.com:80", "GET /../", None),
        ("b.com:80", "GET /Admin", Some(Reason::Blocked)),
        ("b.com:80", "GET /admin/x", Some(Reason::Blocked)),
        ("b.com:80", "GET /x/../admin", Some(Reason::Ambiguous)),
        ("b.com:80", "GET /administrator", None),
        ("c.com:80", "GET /x/../admin", None),
    ] {
        let verdict = judged(&policy, host, "8.8.8.8", request);
        assert_eq!(reason(&verdict), expected, "{host} {request}");
    }
}

#[test]
fn approval_stands_for_a_rule_and_for_no_more() {
    let layers = Layers::new()
        .organization(rules(
            "block = ['evil.com']\nlimit = ['**.com', '10.0.0.0/8:80']",
        ))
        .sandbox(rules("allow = [{ host = 'api.com', methods = ['GET'] }]"));
    let ask = |text: &str, address: &str| {
        let target = target(text);
        let candidates = [Candidate::new(address.parse().unwrap(), false)];
        let request = RequestLine::new("POST", "/");
        let facts = Facts::new(&target, Carriage::Http)
            .with_candidates(&candidates)
            .with_request(&request)
            .with_approval();
        reason(&layers.judge(&facts))
    };
    assert_eq!(ask("a.com:80", "8.8.8.8"), None);
    assert_eq!(ask("evil.com:80", "8.8.8.8"), Some(Reason::Blocked));
    assert_eq!(ask("a.org:80", "8.8.8.8"), Some(Reason::Limit));
    assert_eq!(ask("localhost:80", "127.0.0.1"), Some(Reason::Localhost));
    assert!(matches!(
        ask("a.com:80", "10.0.0.1"),
        Some(Reason::Address(_))
    ));
    assert_eq!(ask("api.com:80", "8.8.8.8"), Some(Reason::Request));
}

/// Whether a clause is about a target and a request, as anybody can check by eye. What cannot be told is `None`.
fn naive_fits(clause: &Clause, list: List, target: &Target, request: &RequestLine) -> Option<bool> {
    let block = list == List::Block;
    let port = match clause.pattern.port {
        Some(port) => port == target.port,
        None => block || WEB_PORTS.contains(&target.port),
    };
    let host = match (&clause.pattern.kind, &target.host) {
        (Kind::Exact(name), Host::Name(host)) => name == host,
        (Kind::Child(suffix), Host::Name(host)) => {
            let head = host.as_str().strip_suffix(&format!(".{suffix}"));
            head.is_some_and(|head| block || !head.contains('.'))
        }
        (Kind::Descendant(suffix), Host::Name(host)) => {
            host.as_str().ends_with(&format!(".{suffix}"))
        }
        (Kind::Network(network), Host::Address(address)) => network.contains(address),
        _ => false,
    };
    let reading = if block {
        Reading::Wide
    } else {
        Reading::Narrow
    };
    match &clause.requests {
        _ if !(host && port) => Some(false),
        Some(requests) => requests.fits(request, reading).ok(),
        None => Some(true),
    }
}

fn naive(sets: &[RuleSet], target: &Target, request: &RequestLine) -> bool {
    let any = |list: List, clauses: &[Clause], unknown: bool| {
        let mut fits = clauses.iter();
        fits.any(|clause| naive_fits(clause, list, target, request).unwrap_or(unknown))
    };
    let open = sets.last().is_some_and(|set| set.mode == Mode::Allow);
    let granted = open && WEB_PORTS.contains(&target.port);
    !sets.iter().any(|set| any(List::Block, &set.block, true))
        && sets
            .iter()
            .filter_map(|set| set.limit.as_ref())
            .all(|limit| any(List::Limit, limit, false))
        && (granted || sets.iter().any(|set| any(List::Allow, &set.allow, false)))
}

fn sets() -> impl Strategy<Value = RuleSet> {
    let host = "(\\*\\.|\\*\\*\\.)?([ab]\\.)?(a\\.com|b\\.org)(:80|:22)?|8\\.8\\.8\\.[0-3](:80)?|8\\.8\\.0\\.0/16";
    let methods = prop::collection::vec("GET|POST", 0..2);
    let paths = prop::collection::vec("/a|/a/\\*|/a/\\*\\*|/b\\*", 0..2);
    let rule = (0..5usize, host, methods, paths);
    (any::<bool>(), prop::collection::vec(rule, 0..7)).prop_map(|(open, rules)| {
        let mut set = if open {
            RuleSet::open()
        } else {
            RuleSet::deny()
        };
        for (list, host, methods, paths) in rules {
            let list = [
                List::Allow,
                List::Allow,
                List::Allow,
                List::Block,
                List::Limit,
            ][list];
            let requests = Requests::new()
                .methods(methods.iter().map(String::as_str))
                .and_then(|requests| requests.paths(paths.iter().map(String::as_str)));
            let requests = requests.ok().filter(|requests| !requests.is_empty());
            // An address takes no requests; it stands without them then.
            let clause = list
                .read(&host, requests)
                .or_else(|_| list.read(&host, None));
            set.add(list, clause.unwrap());
        }
        set
    })
}

fn layered(sets: &[RuleSet]) -> Layers {
    match sets {
        [] => Layers::new(),
        [a] => Layers::new().organization(a.clone()),
        [a, b] => Layers::new().organization(a.clone()).user(b.clone()),
        [a, b, c, ..] => Layers::new()
            .organization(a.clone())
            .user(b.clone())
            .sandbox(c.clone()),
    }
}

const HOSTS: &str = "([ab]\\.){0,2}(a\\.com|b\\.org)|8\\.8\\.[48]\\.[0-3]|localhost";
/// Without the name that is denied whatever rules say, which the naive matcher knows nothing of.
const PUBLIC_HOSTS: &str = "([ab]\\.){0,2}(a\\.com|b\\.org)|8\\.8\\.[48]\\.[0-3]";
const PATHS: &str = "/|/[abAB](/[ab]?)?|/a/\\.\\./b|/a//b|/b%2f";

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn layers_and_requests_agree_with_the_naive_matcher(
        sets in prop::collection::vec(sets(), 0..4),
        host in PUBLIC_HOSTS,
        port in prop_oneof![Just(80u16), Just(443), Just(22)],
        method in "GET|POST|get",
        path in PATHS,
    ) {
        let target = target(&format!("{host}:{port}"));
        let request = RequestLine::new(&method, &path);
        let facts = Facts::new(&target, Carriage::Http).with_request(&request);
        let fast = layered(&sets).judge(&facts).denial().is_none();
        let plain = naive(&sets, &target, &request);
        if request.path().is_ok() {
            prop_assert_eq!(fast, plain);
        } else {
            prop_assert!(plain || !fast, "what cannot be told is denied");
        }
    }

    /// Implicit denials aside, and those of an allow that a lower layer's allow goes beyond.
    #[test]
    fn e48_a_lower_layer_never_turns_a_higher_layers_denial_into_an_allow(
        sets in prop::collection::vec(sets(), 2..4),
        host in HOSTS,
        port in prop_oneof![Just(80u16), Just(443), Just(22)],
        address in prop_oneof![Just("8.8.8.1"), Just("10.0.0.1"), Just("169.254.169.254")],
        path in PATHS,
        tunnel: bool,
    ) {
        let target = target(&format!("{host}:{port}"));
        let address = match target.host {
            Host::Address(address) => address,
            Host::Name(_) => address.parse().unwrap(),
        };
        let candidates = [Candidate::new(address, false)];
        let request = RequestLine::new("POST", &path);
        let carriage = if tunnel { Carriage::Tunnel } else { Carriage::Http };
        let facts = Facts::new(&target, carriage)
            .with_candidates(&candidates)
            .with_request(&request);
        for higher in 1..sets.len() {
            let verdict = layered(&sets[..higher]).judge(&facts);
            let Some(denial) = verdict.denial() else { continue };
            let firm = matches!(
                denial.reason,
                Reason::Blocked | Reason::Limit | Reason::Localhost | Reason::Address(_)
            );
            if firm {
                let below = layered(&sets).judge(&facts);
                prop_assert!(below.denial().is_some(), "{:?} became {:?}", denial, below);
                let approved = layered(&sets).judge(&facts.clone().with_approval());
                prop_assert!(approved.denial().is_some(), "{:?} was approved away", denial);
            }
        }
    }

    /// Knowing the request early changes which of several reasons is named, and nothing else.
    #[test]
    fn a_request_known_early_and_late_gives_one_verdict(
        sets in prop::collection::vec(sets(), 1..4),
        host in HOSTS,
        path in PATHS,
    ) {
        let target = target(&format!("{host}:80"));
        let candidates = [Candidate::new("8.8.8.1".parse().unwrap(), false)];
        let request = RequestLine::new("GET", &path);
        let layers = layered(&sets);
        let facts = Facts::new(&target, Carriage::Http).with_candidates(&candidates);
        let whole = layers.judge(&facts.clone().with_request(&request));
        match layers.judge(&facts) {
            Verdict::Need(Need::Request { .. }) => {}
            Verdict::Deny(_) => prop_assert!(whole.denial().is_some()),
            verdict => prop_assert_eq!(verdict, whole),
        }
    }
}
