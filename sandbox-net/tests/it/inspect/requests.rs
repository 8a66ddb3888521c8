//! Heads: which requests pass, with what in them.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt;
use rustls::pki_types::ServerName;
use sandbox_net::{
    Proxy,
    credentials::{Credential, Credentials, Secret, Source},
    event::{Decided, Kind},
    inspect::Inspector,
    policy::{Requests, RuleSet},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::support::{Flaw, Sandbox, Site, VALUE, full, trusting};
use crate::support::{Rebinding, allowing, ask, body, client, connect, next, read_head, within};

/// Sends text and reads to the end of the connection.
async fn send(sandbox: &Sandbox, request: &str) -> String {
    let mut stream = sandbox.http1().await;
    let request = request.replace("PLACEHOLDER", &sandbox.placeholder);
    let request = request.replace("HOST", &sandbox.target);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(within(stream.read_to_end(&mut answer)).await);
    String::from_utf8(answer).unwrap()
}

const GET: &str = "GET /x?y=1 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n";

#[tokio::test]
async fn the_origin_gets_the_value_and_the_guest_never_sees_it() {
    let site = Site::mirror(&["h2", "http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let answer = send(&sandbox, &format!("{GET}X-Key: PLACEHOLDER\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(site.heads()[0].contains(VALUE), "{:?}", site.heads());
    // E70: the origin repeats its headers.
    assert!(
        !answer.contains(VALUE) && answer.contains("******"),
        "{answer}"
    );
    let mut seen = String::new();
    loop {
        let event = within(events.next()).await.unwrap();
        seen.push_str(&event.to_json_line());
        if event.kind == Kind::Credential {
            assert_eq!(event.credential.as_deref(), Some("ours"));
            assert_eq!(
                (event.path.as_deref(), event.host.as_deref()),
                (Some("/x"), Some("api.test"))
            );
        }
        if event.kind == Kind::End {
            assert!(event.bytes_up > Some(0) && event.bytes_down > Some(0));
            break;
        }
    }
    assert!(seen.contains(r#""kind":"credential""#));
    assert!(!seen.contains(VALUE), "{seen}");
    assert!(!format!("{:?} {:?}", sandbox.proxy, sandbox.inspector).contains(VALUE));
}

#[tokio::test]
async fn the_origins_choice_of_protocol_is_the_clients() {
    for (offered, chosen) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1")] {
        let site = Site::mirror(offered, Flaw::None).await;
        let sandbox = Sandbox::new(&site, &[]).await;
        let stream = sandbox.tls("api.test", &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen.as_bytes()));
        let without = sandbox.tls("api.test", &[]).await.unwrap();
        assert_eq!(without.get_ref().1.alpn_protocol(), None);
    }
}

#[tokio::test]
async fn http2_carries_many_requests_each_with_its_own_value() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let sender = sandbox.http2().await;
    let mut asked = Vec::new();
    for index in 0..20 {
        let request = Request::builder()
            .uri(format!("https://{}/{index}", sandbox.target))
            .header("authorization", format!("Bearer {}", sandbox.placeholder))
            .body(full(""))
            .unwrap();
        asked.push(tokio::spawn(sender.clone().send_request(request)));
    }
    for asked in asked {
        let response = within(asked).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
    }
    let heads = site.heads();
    assert_eq!(heads.len(), 20);
    assert!(
        heads
            .iter()
            .all(|head| head.contains(&format!("Bearer {VALUE}")))
    );
}

#[tokio::test]
async fn e03_another_host_inside_is_misdirected() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let answer = send(
        &sandbox,
        "GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    assert_eq!(body(&answer)["reason"], "misdirected");
    assert_eq!(
        next(&mut events, Kind::Refused).await.reason.as_deref(),
        Some("misdirected")
    );
    assert!(site.heads().is_empty());
}

#[tokio::test]
async fn e04_another_authority_over_http2_is_misdirected() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut sender = sandbox.http2().await;
    for (uri, host) in [("https://evil.test/", None), ("TARGET", Some("evil.test"))] {
        let uri = uri.replace("TARGET", &format!("https://{}/", sandbox.target));
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(full("")).unwrap();
        let response = within(sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 421);
    }
    assert!(site.heads().is_empty());
}

/// Smuggling works inside TLS, too: the same gate stands there.
#[tokio::test]
async fn e09_e10_e11_what_reads_two_ways_is_refused_inside_as_well() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Content-Length: +5\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n",
        "X: a\nContent-Length: 5\r\n\r\n",
    ] {
        let answer = send(
            &sandbox,
            &format!("POST / HTTP/1.1\r\nHost: HOST\r\n{head}"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    assert!(site.heads().is_empty());
}

#[tokio::test]
async fn e16_connect_inside_is_refused() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let answer = send(&sandbox, "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(site.heads().is_empty());
}

#[tokio::test]
async fn e53_other_ways_to_the_origin_are_not_told() {
    let site = Site::start(&["http/1.1"], Flaw::None, |_| async {
        let answer = Response::builder().header("alt-svc", "h3=\":443\"; ma=86400");
        answer.header("x-kept", "1").body(full("")).unwrap()
    })
    .await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let answer = send(&sandbox, &format!("{GET}\r\n"))
        .await
        .to_ascii_lowercase();
    assert!(
        answer.contains("x-kept") && !answer.contains("alt-svc"),
        "{answer}"
    );
}

#[tokio::test]
async fn e54_a_redirect_takes_no_credential_along() {
    let other = Site::mirror(&["http/1.1"], Flaw::None).await;
    let location = format!("https://{}/", other.host().replace("api", "x"));
    let to = location.clone();
    let site = Site::start(&["http/1.1"], Flaw::None, move |_| {
        let answer = Response::builder()
            .status(302)
            .header("location", &to)
            .body(full(""));
        async { answer.unwrap() }
    })
    .await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let answer = send(&sandbox, &format!("{GET}X-Key: PLACEHOLDER\r\n\r\n")).await;
    assert!(
        answer.starts_with("HTTP/1.1 302") && answer.contains(&location),
        "{answer}"
    );
    assert!(other.heads().is_empty(), "the proxy follows nothing");
}

#[tokio::test]
async fn e55_a_websocket_is_carried_and_counted() {
    let site = Site::start(&["http/1.1"], Flaw::None, |mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        });
        let answer = Response::builder()
            .status(101)
            .header("upgrade", "websocket");
        answer
            .header("connection", "upgrade")
            .body(full(""))
            .unwrap()
    })
    .await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let mut stream = sandbox.http1().await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Authorization: Bearer {}\r\n\r\n",
        sandbox.target, sandbox.placeholder
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = within(read_head(&mut stream)).await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"),
        "{head}"
    );
    // No HTTP, and nothing that the gate would let through.
    stream.write_all(b"\x81\n\0\r\x01").await.unwrap();
    let mut echoed = [0; 5];
    within(stream.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"\x81\n\0\r\x01");
    drop(stream);
    assert!(next(&mut events, Kind::End).await.bytes_up > Some(5));
    assert!(site.heads()[0].contains(VALUE));
}

#[tokio::test]
async fn e56_other_upgrades_are_not_passed_on() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    for upgrade in ["h2c", "TLS/1.0", "custom", "websocket, h2c"] {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n"
        );
        let answer = send(&sandbox, &head).await;
        assert!(!answer.starts_with("HTTP/1.1 101"), "{upgrade}: {answer}");
    }
    assert!(!site.heads().iter().any(|head| head.contains("upgrade")));
    let answer = send(&sandbox, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn e65_e66_a_placeholder_of_another_host_is_blocked_and_told() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let other = sandbox.credentials.placeholder("other").unwrap();
    let answer = send(
        &sandbox,
        &format!("{GET}Authorization: Bearer {other}\r\n\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "placeholder-not-bound");
    assert_eq!(body(&answer)["credential"], "other");
    let alert = next(&mut events, Kind::Alert).await;
    assert_eq!(
        (alert.verdict, alert.credential.as_deref()),
        (Some(Decided::Deny), Some("other"))
    );
    let misplaced = send(&sandbox, &format!("{GET}X-Other: PLACEHOLDER\r\n\r\n")).await;
    assert_eq!(body(&misplaced)["reason"], "placeholder-misplaced");
    assert!(site.heads().is_empty());
}

#[tokio::test]
async fn e67_e68_another_key_is_refused_and_a_duplicate_replaced() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let answer = send(&sandbox, &format!("{GET}X-Api-Key: attackers\r\n\r\n")).await;
    assert_eq!(body(&answer)["reason"], "foreign-credential");
    assert!(site.heads().is_empty());
    let twice = format!("{GET}x-key: attackers\r\nX-KEY: PLACEHOLDER\r\nX-Key: attackers\r\n\r\n");
    assert!(send(&sandbox, &twice).await.starts_with("HTTP/1.1 200"));
    let head = &site.heads()[0];
    assert!(
        head.matches("x-key").count() == 1 && head.contains(VALUE) && !head.contains("attackers")
    );
}

#[tokio::test]
async fn e72_without_tls_a_placeholder_goes_nowhere() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let request = format!(
        "GET http://{}/ HTTP/1.1\r\nHost: a\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
        sandbox.target, sandbox.placeholder
    );
    let answer = ask(&sandbox.proxy, &request).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "credential-needs-tls");
    assert_eq!(
        next(&mut events, Kind::Alert).await.credential.as_deref(),
        Some("ours")
    );
}

#[tokio::test]
async fn e72_a_captured_connection_without_tls_gets_nothing_either() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let (mut stream, far) = tokio::io::duplex(64 * 1024);
    let proxy = sandbox.proxy.clone();
    tokio::spawn(async move { proxy.serve_captured(far).await });
    // A program's connection to port 80 of `api.test`, as the guest's half begins it.
    let first = [&[11, 0, 0, 0, 1, 8][..], b"api.test", &[80]].concat();
    stream.write_all(&first).await.unwrap();
    within(stream.read_exact(&mut [0; 5])).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: api.test\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
        sandbox.placeholder
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    drop(within(stream.read_to_string(&mut answer)).await);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "credential-needs-tls");
    let alert = next(&mut events, Kind::Alert).await;
    assert_eq!(alert.credential.as_deref(), Some("ours"));
}

#[tokio::test]
async fn a_credential_is_revoked_and_replaced_while_a_connection_lives() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut sender = sandbox.http2().await;
    let mut ask = async || {
        let request = Request::builder()
            .uri(format!("https://{}/", sandbox.target))
            .header("x-key", &sandbox.placeholder)
            .body(full(""))
            .unwrap();
        within(sender.send_request(request)).await.unwrap().status()
    };
    assert_eq!(ask().await, 200);
    assert!(sandbox.credentials.revoke("ours"));
    assert_eq!(ask().await, 403);
    sandbox
        .credentials
        .replace("ours", Secret::new("the-next-value").unwrap())
        .unwrap();
    assert_eq!(ask().await, 200);
    assert!(site.heads()[1].contains("the-next-value"));
    assert!(
        Source::Value(Secret::new("x").unwrap())
            .load()
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn an_origin_that_closed_is_connected_to_again() {
    let site = Site::start(&["http/1.1"], Flaw::None, |_| async {
        Response::builder()
            .header("connection", "close")
            .body(full("x"))
            .unwrap()
    })
    .await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut stream = sandbox.http1().await;
    for _ in 0..3 {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", sandbox.target);
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = within(read_head(&mut stream)).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
    }
    assert_eq!(site.heads().len(), 3);
}

#[tokio::test]
async fn e49_a_policy_change_cuts_an_opened_connection() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let mut sender = sandbox.http2().await;
    let request = || {
        Request::get(format!("https://{}/", sandbox.target))
            .body(full(""))
            .unwrap()
    };
    let response = within(sender.send_request(request())).await.unwrap();
    within(response.into_body().collect()).await.unwrap();
    sandbox.proxy.set_policy(Arc::new(RuleSet::deny()));
    // The exchange before has an end of its own.
    while next(&mut events, Kind::End).await.verdict != Some(Decided::Deny) {}
    assert!(within(sender.send_request(request())).await.is_err());
}

#[tokio::test]
async fn e58_a_rule_for_requests_opens_tls_and_judges_each_request() {
    let site = Site::mirror(&["h2", "http/1.1"], Flaw::None).await;
    // Its one secret is for another host, so nothing but the rule opens this one.
    let source = Source::Value(Secret::new("value").unwrap());
    let ours = Credential::new("ours", source);
    let sandbox = Sandbox::with(&site, Credentials::load([ours]).await.unwrap());
    let reads = Requests::new().methods(["GET"]).unwrap();
    let reads = reads.paths(["/x/**"]).unwrap();
    let port = site.address.port();
    let opening = allowing(&[format!("127.0.0.1/32:{port}")]);
    let rules = opening.allow_requests(&site.host(), reads).unwrap();
    sandbox.proxy.set_policy(Arc::new(rules));

    let get = |path: &str| GET.replace("/x?y=1", path) + "\r\n";
    let answer = send(&sandbox, &get("/x/1")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = send(&sandbox, &get("/admin")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let answer = send(&sandbox, &get("/x/../admin")).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = send(&sandbox, &get("/x/1").replace("GET", "DELETE")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(site.heads().len(), 1, "{:?}", site.heads());
}

#[tokio::test]
async fn e76_a_rule_for_requests_does_not_open_what_is_to_stay_closed() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let reads = Requests::new().methods(["GET"]).unwrap();
    let opening = allowing(&[format!("127.0.0.1/32:{}", site.address.port())]);
    let rules = opening.allow_requests(&site.host(), reads).unwrap();
    let inspector = Inspector::builder().bypass(&site.host()).unwrap();
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(Rebinding::new(&["127.0.0.1"]))
        .inspector(inspector.without_system_roots().build().unwrap())
        .build();
    let mut events = proxy.subscribe();
    let mut stream = client(&proxy);
    connect(&mut stream, &site.host()).await;
    let config = trusting(&site.root, &["http/1.1"]);
    let name = ServerName::try_from("api.test").unwrap();
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
    assert!(within(shaken).await.is_err());
    let event = next(&mut events, Kind::Decision).await;
    assert_eq!(event.reason.as_deref(), Some("not-inspected"));
}

#[tokio::test]
async fn e58_check_knows_whether_a_rule_could_see_inside() {
    let reads = Requests::new().methods(["GET"]).unwrap();
    let rules = RuleSet::deny().allow_requests("api.test", reads).unwrap();
    let rules = rules.allow("127.0.0.1/32:443").unwrap();
    let proxy = || {
        let builder = Proxy::builder(Arc::new(rules.clone()));
        builder.resolver(Rebinding::new(&["127.0.0.1"]))
    };
    let bypassing = Inspector::builder().bypass("api.test").unwrap();
    let opening = Inspector::builder().build().unwrap();
    for (proxy, get, post) in [
        (proxy().build(), "not-inspected", "not-inspected"),
        (
            proxy().inspector(bypassing.build().unwrap()).build(),
            "not-inspected",
            "not-inspected",
        ),
        (
            proxy().inspector(opening).build(),
            "",
            "request-not-allowed",
        ),
    ] {
        for (text, reason) in [("GET", get), ("POST", post)] {
            let found = proxy.check(&format!("{text} https://api.test/x")).await;
            let verdict = found.unwrap().verdict;
            let denial = verdict.denial().map(|denial| denial.reason.as_str());
            assert_eq!(denial.unwrap_or_default(), reason, "{text}");
        }
    }
}
