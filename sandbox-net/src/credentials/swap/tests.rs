use super::*;
use crate::{
    credentials::{Credential, Credentials, Grant, MARKER, Source},
    testing_cases::cases,
};
use proptest::prelude::*;

const VALUE: &str = "s3cr3t/val+ue==";

/// A broker with `ours`, granted to api.test in several places, and `other`, granted to other.test.
fn broker() -> Credentials {
    let places = [
        Place::Header("X-Api-Key".into()),
        Place::Bearer,
        Place::Scheme("token".into()),
        Place::Basic,
        Place::Query("key".into()),
    ];
    load([
        credential("ours", VALUE).grant(Grant::new("api.test", places).unwrap()),
        credential("other", "0ther-value")
            .grant(Grant::new("other.test:8443", [Place::Bearer]).unwrap())
            .scrub(),
    ])
}

fn credential(name: &str, value: &str) -> Credential {
    Credential::new(name, Source::Value(Secret::new(value).unwrap()))
}

fn load(credentials: impl IntoIterator<Item = Credential>) -> Credentials {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(Credentials::load(credentials)).unwrap()
}

fn target(text: &str) -> Target {
    Target::parse_with_default_port(text, 443).unwrap()
}

fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// What is sent, or why not; `{}` stands for the placeholder of `ours`.
fn send(uri: &str, headers: &[(&str, &str)]) -> Result<(Parts, Swap), Refusal> {
    send_with(&broker(), "api.test", uri, headers)
}

fn send_with(
    broker: &Credentials,
    host: &str,
    uri: &str,
    headers: &[(&str, &str)],
) -> Result<(Parts, Swap), Refusal> {
    let placeholder = broker.placeholder("ours").unwrap().to_string();
    let fill = |text: &str| match text.strip_prefix("base64:") {
        Some(text) => STANDARD.encode(text.replace("{}", &placeholder)),
        None => text.replace("{}", &placeholder),
    };
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            let words: Vec<_> = value.split(' ').map(fill).collect();
            (*name, words.join(" "))
        })
        .collect();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut head = head(&fill(uri), &headers);
    let swap = broker.table().swap(&target(host), &mut head)?;
    Ok((head, swap))
}

fn values(head: &Parts, name: &str) -> Vec<String> {
    let values = head.headers.get_all(name).iter();
    values
        .map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
        .collect()
}

#[test]
fn each_declared_place_gets_the_value() {
    let (head, swap) = send("/", &[("x-api-key", "{}")]).unwrap();
    assert_eq!(values(&head, "x-api-key"), [VALUE]);
    assert_eq!(swap.used, ["ours"]);
    let (head, _) = send("/", &[("authorization", "Bearer {}")]).unwrap();
    assert_eq!(values(&head, "authorization"), [format!("Bearer {VALUE}")]);
    let (head, _) = send("/", &[("authorization", "TOKEN {}")]).unwrap();
    assert_eq!(values(&head, "authorization"), [format!("TOKEN {VALUE}")]);
    let (head, _) = send("/", &[("authorization", "Basic base64:git:{}")]).unwrap();
    let pair = STANDARD.encode(format!("git:{VALUE}"));
    assert_eq!(values(&head, "authorization"), [format!("Basic {pair}")]);
    let (head, _) = send("/p?a=1&Key={}&b=%20", &[]).unwrap();
    assert_eq!(
        head.uri.query(),
        Some("a=1&Key=s3cr3t%2Fval%2Bue%3D%3D&b=%20")
    );
}

#[test]
fn a_request_without_credentials_passes_as_it_is() {
    let (head, swap) = send("/p?q=a%20b&keys=1", &[("accept", "*/*")]).unwrap();
    assert_eq!(head.uri, "/p?q=a%20b&keys=1");
    assert!(swap.used.is_empty());
}

#[test]
fn e65_a_placeholder_to_another_host_or_port_is_refused() {
    let broker = broker();
    for host in [
        "evil.test",
        "api.test:8443",
        "other.test:8443",
        "x.api.test",
    ] {
        for (uri, headers) in [
            ("/", &[("x-api-key", "{}")][..]),
            ("/", &[("authorization", "Basic base64:x:{}")]),
            ("/?q={}", &[]),
            ("/{}", &[]),
            ("/", &[("cookie", "a={}")]),
        ] {
            let refusal = send_with(&broker, host, uri, headers).unwrap_err();
            assert_eq!(refusal, Refusal::Unbound("ours".into()), "{host} {uri}");
            assert!(refusal.is_alert());
        }
    }
}

#[test]
fn e65_a_placeholder_of_another_sandbox_is_refused() {
    let strange = super::super::Placeholder::new("sk-").unwrap();
    let refusal = send("/", &[("x-api-key", strange.as_str())]).unwrap_err();
    assert_eq!(refusal, Refusal::Unknown);
}

#[test]
fn e66_a_placeholder_in_an_undeclared_place_is_refused() {
    for (uri, headers) in [
        ("/{}", &[][..]),
        ("/?other={}", &[]),
        ("/?key=x{}", &[]),
        ("/", &[("x-other", "{}")]),
        ("/", &[("x-api-key", "x{}")]),
        ("/", &[("authorization", "Digest {}")]),
        ("/", &[("authorization", "Basic base64:a{}:b")]),
        // One in its place does not excuse the next.
        ("/", &[("x-api-key", "{}"), ("x-other", "{}")]),
    ] {
        let refusal = send(uri, headers).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Misplaced("ours".into()),
            "{uri} {headers:?}"
        );
    }
}

#[test]
fn e67_any_other_credential_on_a_granted_host_is_refused() {
    for (uri, headers) in [
        ("/", &[("authorization", "Bearer attackers")][..]),
        ("/", &[("x-api-key", "attackers")]),
        ("/", &[("x-goog-api-key", "attackers")]),
        ("/?KEY=attackers", &[]),
        ("/?access%5Ftoken=attackers", &[]),
        // Beside ours, in another place than the grant has.
        ("/", &[("x-api-key", "{}"), ("private-token", "attackers")]),
    ] {
        let refusal = send(uri, headers).unwrap_err();
        assert!(matches!(refusal, Refusal::Foreign(_)), "{uri} {headers:?}");
        assert!(!refusal.to_string().contains("attackers"));
    }
    let (head, _) = send("/", &[("cookie", "session=attackers")]).unwrap();
    assert!(values(&head, "cookie").is_empty());
}

#[test]
fn e67_a_shared_host_takes_the_guests_own() {
    let grant = Grant::new("api.test", [Place::Bearer])
        .unwrap()
        .beside_others();
    let broker = load([credential("ours", VALUE).grant(grant)]);
    let (head, swap) =
        send_with(&broker, "api.test", "/", &[("authorization", "Bearer own")]).unwrap();
    assert_eq!(values(&head, "authorization"), ["Bearer own"]);
    assert!(swap.used.is_empty());
}

#[test]
fn e68_ours_replaces_all_duplicates_and_strips_the_others() {
    let (head, swap) = send(
        "/?key=attackers&key={}&a=1&KEY=x",
        &[
            ("X-API-KEY", "attackers"),
            ("x-api-key", "{}"),
            ("x-Api-Key", "another"),
            ("authorization", "Bearer attackers"),
            ("authorization", "Bearer {}"),
        ],
    )
    .unwrap();
    assert_eq!(values(&head, "x-api-key"), [VALUE]);
    assert!(values(&head, "authorization").is_empty());
    assert_eq!(head.uri.query(), Some("a=1"));
    assert_eq!(swap.used, ["ours"]);
}

#[test]
fn e72_without_tls_nothing_passes() {
    let broker = broker();
    let placeholder = broker.placeholder("ours").unwrap();
    let check = |uri: &str, headers| broker.table().check_plain(&head(uri, headers));
    assert_eq!(check("http://api.test/", &[]), Ok(()));
    let headers = [("x-api-key", placeholder.as_str())];
    let refusal = check("http://api.test/", &headers);
    assert_eq!(refusal, Err(Refusal::Plain("ours".into())));
    assert!(check(&format!("http://api.test/?key={placeholder}"), &[]).is_err());
}

#[test]
fn a_revoked_credential_is_refused_until_it_has_a_value_again() {
    let broker = broker();
    assert!(broker.revoke("ours"));
    assert!(!broker.revoke("nobody"));
    let send = || send_with(&broker, "api.test", "/", &[("x-api-key", "{}")]);
    assert_eq!(send().unwrap_err(), Refusal::Revoked("ours".into()));
    broker
        .replace("ours", Secret::new("new-value").unwrap())
        .unwrap();
    assert_eq!(values(&send().unwrap().0, "x-api-key"), ["new-value"]);
}

#[test]
fn a_body_takes_the_value_in_its_own_spelling() {
    let grant = Grant::new("api.test", [Place::Body(100)]).unwrap();
    let broker = load([
        credential("ours", "a\"b c").grant(grant),
        credential("other", "x").grant(Grant::new("other.test", [Place::Bearer]).unwrap()),
    ]);
    let placeholder = broker.placeholder("ours").unwrap();
    let (_, swap) = send_with(&broker, "api.test", "/", &[]).unwrap();
    assert_eq!(swap.hold, Some(100));
    for (kind, expected) in [
        ("application/json; charset=utf-8", r#"[a\"b c]"#),
        ("application/x-www-form-urlencoded", "[a%22b%20c]"),
        ("text/plain", "[a\"b c]"),
    ] {
        let kind = HeaderValue::from_static(kind);
        let body = format!("[{placeholder}]");
        let table = broker.table();
        let (body, used) = table
            .swap_body(&target("api.test"), Some(&kind), body.as_bytes())
            .unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(used, ["ours"]);
    }
    let other = broker.placeholder("other").unwrap().to_string();
    let refusal = broker
        .table()
        .swap_body(&target("api.test"), None, other.as_bytes());
    assert_eq!(refusal.unwrap_err(), Refusal::Unbound("other".into()));
    let tolerant = broker.report_bodies_only();
    assert!(
        tolerant
            .table()
            .swap_body(&target("api.test"), None, other.as_bytes())
            .is_ok()
    );
}

#[test]
fn a_scrubbed_answer_is_asked_for_uncompressed() {
    let broker = broker();
    let other = broker.placeholder("other").unwrap();
    let bearer = format!("Bearer {other}");
    let headers = [
        ("accept-encoding", "gzip"),
        ("authorization", bearer.as_str()),
    ];
    let mut head = head("/", &headers);
    let swap = broker
        .table()
        .swap(&target("other.test:8443"), &mut head)
        .unwrap();
    assert_eq!(swap.scrub.len(), 1);
    assert!(values(&head, "accept-encoding").is_empty());
}

#[test]
fn no_value_is_shown_by_anything_here() {
    let broker = broker();
    let (head, swap) = send_with(&broker, "api.test", "/?key={}", &[]).unwrap();
    let (with_header, _) = send_with(&broker, "api.test", "/", &[("x-api-key", "{}")]).unwrap();
    let shown = format!(
        "{broker:?} {:?} {swap:?} {:?}",
        broker.table(),
        with_header.headers
    );
    assert!(!shown.contains("s3cr3t"), "{shown}");
    assert!(
        head.uri.to_string().contains("s3cr3t"),
        "the search finds what is there"
    );
}

/// Parts of requests, `{}` for the placeholder; combined at random.
const PARTS: [(&str, &str); 10] = [
    ("x-api-key", "{}"),
    ("x-api-key", "own"),
    ("authorization", "Bearer {}"),
    ("authorization", "bearer own"),
    ("authorization", "Basic base64:u:{}"),
    ("authorization", "token {}"),
    ("x-other", "{}"),
    ("x-other", "a"),
    ("private-token", "own"),
    ("cookie", "{}"),
];

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_passes_holds_no_placeholder_and_no_other_credential(
        parts in prop::collection::vec(0usize..PARTS.len(), 0..6),
        query in prop::collection::vec(0usize..4, 0..4),
    ) {
        let headers: Vec<_> = parts.iter().map(|part| PARTS[*part]).collect();
        let query: Vec<_> = query.iter().map(|which| ["key={}", "KEY=own", "a={}", "a=b"][*which]).collect();
        let broker = broker();
        let uri = format!("/?{}", query.join("&"));
        if let Ok((head, swap)) = send_with(&broker, "api.test", &uri, &headers) {
            let shown = format!("{} {:?}", head.uri, head.headers.iter().map(|(_, value)| {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                let decoded = text.split(' ').filter_map(|word| STANDARD.decode(word).ok());
                let decoded: Vec<_> = decoded.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
                format!("{text} {}", decoded.join(" "))
            }).collect::<Vec<_>>());
            prop_assert!(!shown.contains(MARKER), "{shown}");
            prop_assert!(!shown.contains("own"), "{shown}");
            // The value stands there once if it was used, and never otherwise.
            let count = shown.matches("s3cr3t").count();
            prop_assert_eq!(count, swap.used.len(), "{}", shown);
        }
        // To any other host nothing passes that has a placeholder in it.
        let any = headers.iter().any(|(_, value)| value.contains("{}"))
            || query.iter().any(|part| part.contains("{}"));
        let elsewhere = send_with(&broker, "evil.test", &uri, &headers);
        prop_assert_eq!(elsewhere.is_err(), any);
    }
}
