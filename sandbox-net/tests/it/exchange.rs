//! Plain HTTP through the proxy.

use std::sync::Arc;

use sandbox_net::{
    Proxy,
    event::{Decided, Kind},
    policy::{Requests, RuleSet, Scripted},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Origin, Rebinding, allowing, ask, body, client, fetch, next, proxy, read_head, within,
};

#[tokio::test]
async fn a_request_reaches_the_origin_in_origin_form_without_the_proxys_headers() {
    let origin = Origin::mirror().await;
    let proxy = proxy(allowing(&[
        origin.rule(),
        format!("app.test:{}", origin.port()),
    ]));
    let answer = ask(
        &proxy,
        &format!(
            "GET http://app.test:{}/a?b=c HTTP/1.1\r\nHost: evil.test\r\nProxy-Authorization: x\r\n\
             Connection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 1\r\n\r\n",
            origin.port()
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("keep-alive"), "{head}");
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    let seen = seen.to_ascii_lowercase();
    // E06: routed and named by the URI.
    assert!(
        seen.contains(&format!("host: app.test:{}\r\n", origin.port())),
        "{seen}"
    );
    assert!(seen.contains("x-end: 1"));
    for gone in ["proxy-authorization", "x-hop", "evil.test"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[tokio::test]
async fn e81_a_denial_is_a_403_with_reason_rule_and_remedy() {
    let proxy = proxy(RuleSet::open().block("*.evil.test").unwrap());
    let mut events = proxy.subscribe();
    let answer = fetch(&proxy, "http://a.evil.test/x?secret=1").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let denial = body(&answer);
    assert_eq!(denial["reason"], "blocked");
    assert_eq!(denial["rule"], "block *.evil.test");
    assert_eq!(denial["host"], "a.evil.test");
    let event = next(&mut events, Kind::Decision).await;
    assert_eq!(event.verdict, Some(Decided::Deny));
    assert_eq!(event.path.as_deref(), Some("/x"));
    assert!(!event.to_json_line().contains("secret"));

    let denied = body(&fetch(&proxy_denying(), "http://some.test/").await);
    assert_eq!(denied["remedy"], "allow `some.test`");
}

fn proxy_denying() -> Proxy {
    proxy(RuleSet::deny())
}

#[tokio::test]
async fn e18_e21_e29_private_addresses_are_refused_in_allow_mode() {
    let proxy = proxy(RuleSet::open());
    for host in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "[::]",
        "168.63.129.16",
    ] {
        let answer = fetch(&proxy, &format!("http://{host}/")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
        assert_eq!(body(&answer)["reason"], "address-refused", "{host}");
    }
}

#[tokio::test]
async fn e30_an_allowed_name_that_means_loopback_is_refused_without_its_address() {
    let origin = Origin::mirror().await;
    let proxy = proxy(allowing(&[format!("app.test:{}", origin.port())]));
    let answer = fetch(&proxy, &format!("http://app.test:{}/", origin.port())).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(!answer.contains("127.0.0.1"), "{answer}");
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn e31_a_name_is_looked_up_once_and_what_was_judged_is_dialled() {
    let origin = Origin::mirror().await;
    let rules = allowing(&[origin.rule(), format!("app.test:{}", origin.port())]);
    // The second answer is loopback too, but not the address that the rule opens.
    let resolver = Rebinding::new(&["127.0.0.1", "127.0.0.2"]);
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(Arc::clone(&resolver) as _)
        .build();
    let url = format!("http://app.test:{}/", origin.port());
    assert!(fetch(&proxy, &url).await.starts_with("HTTP/1.1 200"));
    assert_eq!(resolver.asked(), 1);
    assert!(fetch(&proxy, &url).await.starts_with("HTTP/1.1 403"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn e50_a_denied_name_is_never_looked_up() {
    let resolver = Rebinding::new(&["127.0.0.1"]);
    let policy = Arc::new(Scripted::new(RuleSet::deny()));
    let proxy = Proxy::builder(Arc::clone(&policy) as _)
        .resolver(Arc::clone(&resolver) as _)
        .build();
    assert!(
        fetch(&proxy, "http://secrets.evil.test/")
            .await
            .starts_with("HTTP/1.1 403")
    );
    assert_eq!(resolver.asked(), 0);
    assert_eq!(policy.asked().len(), 1);
}

#[tokio::test]
async fn e07_e08_e19_e26_e40_unclear_requests_are_refused_and_the_connection_closed() {
    let proxy = proxy(RuleSet::open());
    for head in [
        "GET / HTTP/1.1\r\nHost: a.test",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test, b.test",
        "GET http://a.test/ HTTP/1.1\r\nHost:",
        "GET http://user@a.test/ HTTP/1.1\r\nHost: a.test",
        "GET http://127.1/ HTTP/1.1\r\nHost: a.test",
        "GET http://2130706433/ HTTP/1.1\r\nHost: a.test",
        "GET http://0x7f.1/ HTTP/1.1\r\nHost: a.test",
        "GET http://[fe80::1%25lo]/ HTTP/1.1\r\nHost: a.test",
        "GET http://a%2etest/ HTTP/1.1\r\nHost: a.test",
        "GET https://a.test/ HTTP/1.1\r\nHost: a.test",
        "TRACE http://a.test/ HTTP/1.1\r\nHost: a.test",
        "CONNECT a.test HTTP/1.1\r\nHost: a.test",
        "CONNECT u@a.test:443 HTTP/1.1\r\nHost: a.test",
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3",
        "PRI * HTTP/2.0",
    ] {
        // No `Connection: close`: that the answer ends shows that the proxy closed.
        let answer = ask(&proxy, &format!("{head}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
}

#[tokio::test]
async fn e09_e10_e11_malformed_lengths_never_reach_an_origin() {
    let origin = Origin::mirror().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: 5,5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding:\u{b}chunked",
        "X: a\r\n folded",
        "X: a\nbare: 1",
        "X: a\rbare: 1",
    ] {
        let request = format!(
            "POST http://{}/ HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n",
            origin.address
        );
        let answer = ask(&proxy, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields}: {answer}");
        assert_eq!(body(&answer)["reason"], "malformed", "{fields}");
    }
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn e12_a_chunked_body_that_can_be_read_in_two_ways_never_completes() {
    let origin = Origin::start(|mut stream| async move {
        read_head(&mut stream).await;
        let mut body = Vec::new();
        drop(stream.read_to_end(&mut body).await);
        assert!(!body.ends_with(b"0\r\n\r\n"), "{body:?}");
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await);
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    for chunks in [
        "5;x\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST http://{}/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}",
            origin.address
        );
        let answer = ask(&proxy, &request).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{chunks:?}: {answer}");
    }
}

#[tokio::test]
async fn a_chunked_body_arrives_whole_and_without_its_trailers() {
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut request = read_head(&mut stream).await;
            while !request.ends_with("\r\n0\r\n\r\n") && !request.ends_with("evil: 1\r\n\r\n") {
                request.push(char::from(stream.read_u8().await.unwrap()));
            }
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
            seen.send(request).unwrap();
        }
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let request = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTrailer: Host, X-Evil\r\n\
         Transfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nHost: evil.test\r\nX-Evil: 1\r\n\r\n",
        origin.address
    );
    let answer = ask(&proxy, &request).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    let request = within(sees.recv()).await.unwrap();
    assert!(
        request.contains("hello") && !request.to_ascii_lowercase().contains("evil"),
        "{request}"
    );
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let origin = Origin::mirror().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut client = client(&proxy);
    for (host, status) in [
        (origin.address.to_string(), "200"),
        ("other.test".into(), "403"),
    ] {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let head = within(read_head(&mut client)).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        let length = head
            .to_ascii_lowercase()
            .split_once("content-length: ")
            .and_then(|(_, rest)| rest.split("\r\n").next().unwrap().parse().ok())
            .unwrap();
        let mut body = vec![0; length];
        within(client.read_exact(&mut body)).await.unwrap();
    }
}

/// 64 MiB through pipes of 64 KiB: if a body were collected, the sender would not have to wait for the reader.
#[tokio::test]
async fn bodies_stream_both_ways_with_back_pressure() {
    const CHUNK: usize = 64 * 1024;
    const UNREAD: usize = 64 * 1024 * 1024;
    let origin = Origin::echo_body().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut client = client(&proxy);
    let head = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: a\r\nContent-Length: {UNREAD}\r\n\r\n",
        origin.address
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(client);
    let chunk = vec![7; CHUNK];
    // Nobody reads the echo, so the sender must come to a halt long before the end.
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(std::time::Duration::from_millis(500), write.write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(sent < UNREAD, "the proxy holds the whole body");
    }
    let sending = tokio::spawn(async move {
        while sent < UNREAD {
            sent += write
                .write(&chunk[..CHUNK.min(UNREAD - sent)])
                .await
                .unwrap();
        }
        write
    });
    let answer = within(read_head(&mut read)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < UNREAD {
        let count = within(read.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "ended after {received}");
        assert!(buffer[..count].iter().all(|byte| *byte == 7));
        received += count;
    }
    drop(within(sending).await.unwrap());
}

#[tokio::test]
async fn a_policy_change_cuts_a_body_that_still_streams() {
    let origin = Origin::start(|mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut events = proxy.subscribe();
    let mut client = client(&proxy);
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n", origin.address);
    client.write_all(request.as_bytes()).await.unwrap();
    within(read_head(&mut client)).await;
    let mut first = [0; 5];
    within(client.read_exact(&mut first)).await.unwrap();
    proxy.set_policy(Arc::new(RuleSet::deny()));
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    let end = next(&mut events, Kind::End).await;
    assert_eq!(end.reason.as_deref(), Some("not-allowed"));
}

#[tokio::test]
async fn an_origin_that_is_gone_is_a_502() {
    let origin = Origin::start(|stream| async move { drop(stream) }).await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let answer = fetch(&proxy, &format!("http://{}/", origin.address)).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    let port = {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        listener.local_addr().unwrap().port()
    };
    let proxy = crate::support::proxy(allowing(&[format!("127.0.0.1:{port}")]));
    let answer = fetch(&proxy, &format!("http://127.0.0.1:{port}/")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn e58_e59_requests_are_judged_and_what_overrides_them_is_removed() {
    let origin = Origin::mirror().await;
    let host = format!("app.test:{}", origin.port());
    let reads = Requests::new().methods(["GET"]).unwrap();
    let reads = reads.paths(["/api/**"]).unwrap();
    let rules = RuleSet::deny().allow_requests(&host, reads).unwrap();
    let proxy = proxy(rules.limit(&host).unwrap().limit(&origin.rule()).unwrap());
    let answer = fetch(&proxy, &format!("http://{host}/api/x")).await;
    // The limit opens nothing by itself.
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");

    let reads = Requests::new().methods(["GET"]).unwrap();
    let reads = reads.paths(["/api/**"]).unwrap();
    let rules = allowing(&[origin.rule()])
        .allow_requests(&host, reads)
        .unwrap();
    let proxy = crate::support::proxy(rules);
    let answer = ask(
        &proxy,
        &format!(
            "GET http://{host}/api/x HTTP/1.1\r\nHost: {host}\r\nX-HTTP-Method-Override: DELETE\r\n\
             x-original-url: /admin\r\nX-Kept: 1\r\nConnection: close\r\n\r\n"
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = answer.to_ascii_lowercase();
    assert!(seen.contains("x-kept: 1"), "{seen}");
    assert!(
        !seen.contains("override") && !seen.contains("x-original-url"),
        "{seen}"
    );
    for (request, status, reason) in [
        ("POST /api/x", "403", "request-not-allowed"),
        ("GET /admin", "403", "request-not-allowed"),
        ("GET /api/../admin", "400", "ambiguous-request"),
        ("GET /api/%2e%2e/admin", "400", "ambiguous-request"),
        ("GET /api//x", "400", "ambiguous-request"),
        ("GET /api%2fx", "400", "ambiguous-request"),
        ("GET /api/x;y", "400", "ambiguous-request"),
        ("GET /api\\x", "400", "ambiguous-request"),
    ] {
        let (method, path) = request.split_once(' ').unwrap();
        let request = format!(
            "{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = ask(&proxy, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
        // A backslash does not pass the reader of requests, which has its own words.
        if !path.contains('\\') {
            assert_eq!(body(&answer)["reason"], reason, "{request}");
        }
    }
    assert_eq!(origin.connections(), 1, "denied requests reach nobody");
}

#[tokio::test]
async fn what_no_rule_allows_can_be_approved() {
    use sandbox_net::{
        approval::{Answer, Approvals, Approver, Question},
        policy::Pattern,
    };

    #[derive(Debug)]
    struct Yes;

    #[async_trait::async_trait]
    impl Approver for Yes {
        async fn ask(&self, question: &Question) -> Answer {
            match question.target.to_string().starts_with("app.test:") {
                true => Answer::Session,
                false => Answer::Deny,
            }
        }

        fn keep(&self, _: &Pattern) {}
    }

    let origin = Origin::mirror().await;
    // The address is opened, the name is not allowed.
    let proxy = Proxy::builder(Arc::new(allowing(&[origin.rule()])))
        .resolver(Rebinding::new(&["127.0.0.1"]))
        .approvals(Approvals::new(Arc::new(Yes)))
        .build();
    let answer = fetch(&proxy, &format!("http://app.test:{}/", origin.port())).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = fetch(&proxy, &format!("http://other.test:{}/", origin.port())).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "not-approved");
    // A replaced policy still beats the approval.
    proxy.set_policy(Arc::new(
        allowing(&[origin.rule()]).block("app.test").unwrap(),
    ));
    let answer = fetch(&proxy, &format!("http://app.test:{}/", origin.port())).await;
    assert_eq!(body(&answer)["reason"], "blocked");
}
