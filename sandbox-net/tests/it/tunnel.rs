//! CONNECT through the proxy.

use std::sync::Arc;

use sandbox_net::{
    Limits,
    event::{Decided, Kind},
    policy::RuleSet,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::support::{
    Origin, allowing, ask, body, client, client_hello, connect, next, proxy, within,
};

#[tokio::test]
async fn a_tunnel_to_a_named_port_carries_bytes_and_half_closes() {
    let origin = Origin::echo().await;
    let proxy = proxy(allowing(&[
        origin.rule(),
        format!("db.test:{}", origin.port()),
    ]));
    let mut events = proxy.subscribe();
    let mut client = client(&proxy);
    let head = connect(&mut client, &format!("db.test:{}", origin.port())).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut echoed = String::new();
    within(client.read_to_string(&mut echoed)).await.unwrap();
    assert_eq!(echoed, "hello");
    let decision = next(&mut events, Kind::Decision).await;
    assert_eq!(decision.verdict, Some(Decided::Allow));
    assert_eq!(decision.address, Some(origin.address));
    let end = next(&mut events, Kind::End).await;
    assert_eq!((end.bytes_up, end.bytes_down), (Some(5), Some(5)));
}

#[tokio::test]
async fn e15_bytes_sent_along_with_connect_belong_to_the_tunnel() {
    let origin = Origin::echo().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut client = client(&proxy);
    let request = format!(
        "CONNECT {} HTTP/1.1\r\nHost: a\r\n\r\nearly",
        origin.address
    );
    client.write_all(request.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("\r\n\r\nearly"), "{answer}");
}

/// What follows a CONNECT that is refused was meant for the tunnel, whatever it looks like.
#[tokio::test]
async fn e15_behind_a_refused_connect_nothing_is_read_as_a_request() {
    let origin = Origin::mirror().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let request = format!(
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: a\r\n\r\nGET http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n",
        origin.address
    );
    let answer = ask(&proxy, &request).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn e57_a_tunnel_to_a_port_that_no_rule_names_is_denied() {
    let proxy = proxy(RuleSet::open());
    for (target, reason) in [
        ("a.test:22", "port-not-allowed"),
        ("a.test:80", "tunnel-not-allowed"),
    ] {
        let answer = ask(
            &proxy,
            &format!("CONNECT {target} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_eq!(body(&answer)["reason"], reason);
    }
}

#[tokio::test]
async fn e49_a_policy_change_cuts_a_live_tunnel_and_spares_others() {
    let origin = Origin::echo().await;
    let other = Origin::echo().await;
    let proxy = proxy(allowing(&[origin.rule(), other.rule()]));
    let mut events = proxy.subscribe();
    let mut cut = client(&proxy);
    let mut kept = client(&proxy);
    connect(&mut cut, &origin.address.to_string()).await;
    connect(&mut kept, &other.address.to_string()).await;
    // Both are carried before the change.
    for stream in [&mut cut, &mut kept] {
        stream.write_all(b"x").await.unwrap();
        within(stream.read_u8()).await.unwrap();
    }
    proxy.set_policy(Arc::new(allowing(&[other.rule()])));
    assert!(within(cut.read_u8()).await.is_err(), "closed");
    let end = next(&mut events, Kind::End).await;
    assert_eq!(end.verdict, Some(Decided::Deny));
    assert_eq!(end.reason.as_deref(), Some("port-not-allowed"));
    kept.write_all(b"y").await.unwrap();
    assert_eq!(within(kept.read_u8()).await.unwrap(), b'y');
}

#[tokio::test]
async fn an_idle_tunnel_is_ended_and_a_busy_one_is_not() {
    let origin = Origin::echo().await;
    let limits = Limits::default().with_idle_timeout(std::time::Duration::from_millis(300));
    let proxy = crate::support::proxy_with(allowing(&[origin.rule()]), limits);
    let mut events = proxy.subscribe();
    let mut client = client(&proxy);
    connect(&mut client, &origin.address.to_string()).await;
    client.write_all(b"x").await.unwrap();
    within(client.read_u8()).await.unwrap();
    assert!(within(client.read_u8()).await.is_err());
    let end = next(&mut events, Kind::End).await;
    assert_eq!(end.reason.as_deref(), Some("idle"));
}

/// Port 443, which an ordinary user cannot bind; so the handshake is judged where the origin cannot listen.
mod tls {
    use super::*;
    use crate::support::Moved;

    const RULES: [&str; 2] = ["app.test", "127.0.0.1/32:443"];

    /// What reached the origin, and what the client read, after it sent these first bytes.
    async fn tunnel(target: &str, first: &[u8]) -> (Vec<u8>, Vec<u8>, sandbox_net::event::Event) {
        let (seen, mut sees) = mpsc::unbounded_channel();
        let origin = Origin::start(move |mut stream| {
            let seen = seen.clone();
            async move {
                let mut bytes = vec![0; 1024];
                let count = stream.read(&mut bytes).await.unwrap_or(0);
                bytes.truncate(count);
                drop(stream.write_all(b"from the origin").await);
                drop(seen.send(bytes));
            }
        })
        .await;
        let proxy = proxy(RuleSet::deny());
        proxy.set_policy(Arc::new(Moved::to(&origin, &RULES)));
        let mut events = proxy.subscribe();
        let mut client = client(&proxy);
        let head = connect(&mut client, target).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // In two writes, so that the name arrives in pieces.
        let (one, two) = first.split_at(first.len() / 2);
        client.write_all(one).await.unwrap();
        client.flush().await.unwrap();
        drop(client.write_all(two).await);
        drop(client.shutdown().await);
        let mut read = Vec::new();
        drop(within(client.read_to_end(&mut read)).await);
        let reached = within(sees.recv()).await.unwrap();
        (reached, read, next(&mut events, Kind::Decision).await)
    }

    #[tokio::test]
    async fn e01_another_name_is_closed_before_a_byte_goes_upstream() {
        let (reached, read, event) = tunnel("app.test:443", &client_hello(Some("evil.test"))).await;
        assert!(reached.is_empty());
        assert_eq!(read, [21, 3, 3, 0, 2, 2, 49], "an alert");
        assert_eq!(event.reason.as_deref(), Some("tls-name-mismatch"));
    }

    #[tokio::test]
    async fn e02_no_name_and_no_tls_are_closed_before_a_byte_goes_upstream() {
        for first in [
            client_hello(None),
            b"SSH-2.0-x\r\n".to_vec(),
            b"\x16\x03\x01\x00".to_vec(),
        ] {
            let (reached, _, event) = tunnel("app.test:443", &first).await;
            assert!(reached.is_empty());
            assert_eq!(event.reason.as_deref(), Some("not-tls"));
        }
    }

    #[tokio::test]
    async fn e16_connect_inside_a_tunnel_is_no_handshake() {
        let nested = b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n";
        let (reached, read, event) = tunnel("app.test:443", nested).await;
        assert!(reached.is_empty() && read.is_empty());
        assert_eq!(event.reason.as_deref(), Some("not-tls"));
    }

    /// The name that the client means is hidden; what it shows is the one of whoever hides it.
    #[tokio::test]
    async fn e05_of_an_encrypted_hello_the_outer_name_counts() {
        for (shown, reason) in [
            ("shared-outer.test", Some("tls-name-mismatch")),
            ("app.test", None),
        ] {
            let hello = crate::support::encrypted_hello(shown);
            let (reached, _, event) = tunnel("app.test:443", &hello).await;
            assert_eq!(event.reason.as_deref(), reason, "{shown}");
            let expected = if reason.is_none() { hello } else { Vec::new() };
            assert_eq!(reached, expected, "{shown}");
        }
    }

    /// All in one write: the first bytes are there before CONNECT is answered.
    #[tokio::test]
    async fn e15_bytes_sent_along_with_connect_are_judged_as_the_tunnels_first() {
        for (named, passes) in [("app.test", true), ("evil.test", false)] {
            let (seen, mut sees) = mpsc::unbounded_channel();
            let origin = Origin::start(move |mut stream| {
                let seen = seen.clone();
                async move {
                    let mut bytes = vec![0; 1024];
                    let count = stream.read(&mut bytes).await.unwrap_or(0);
                    bytes.truncate(count);
                    drop(seen.send(bytes));
                }
            })
            .await;
            let proxy = proxy(RuleSet::deny());
            proxy.set_policy(Arc::new(Moved::to(&origin, &RULES)));
            let mut client = client(&proxy);
            let hello = client_hello(Some(named));
            let head = b"CONNECT app.test:443 HTTP/1.1\r\nHost: app.test\r\n\r\n";
            let all = [&head[..], &hello].concat();
            client.write_all(&all).await.unwrap();
            client.shutdown().await.unwrap();
            let reached = within(sees.recv()).await.unwrap();
            assert_eq!(reached, if passes { hello } else { Vec::new() }, "{named}");
        }
    }

    #[tokio::test]
    async fn the_targets_own_name_passes_and_its_bytes_arrive_unchanged() {
        let hello = client_hello(Some("APP.test"));
        let (reached, read, event) = tunnel("app.test:443", &hello).await;
        assert_eq!(reached, hello);
        assert_eq!(read, b"from the origin");
        assert_eq!(event.verdict, Some(Decided::Allow));
    }

    #[tokio::test]
    async fn e60_a_handshake_that_does_not_arrive_ends_the_tunnel() {
        let origin = Origin::echo().await;
        let limits = Limits::default().with_hello_timeout(std::time::Duration::from_millis(200));
        let proxy = crate::support::proxy_with(RuleSet::deny(), limits);
        proxy.set_policy(Arc::new(Moved::to(&origin, &RULES)));
        let mut events = proxy.subscribe();
        let mut client = client(&proxy);
        connect(&mut client, "app.test:443").await;
        let hello = client_hello(Some("app.test"));
        client.write_all(&hello[..hello.len() - 1]).await.unwrap();
        let mut rest = Vec::new();
        drop(within(client.read_to_end(&mut rest)).await);
        let event = next(&mut events, Kind::Decision).await;
        assert_eq!(event.reason.as_deref(), Some("not-tls"));
    }

    #[tokio::test]
    async fn e02_a_literal_address_takes_a_handshake_without_a_name_and_no_other() {
        let hello = client_hello(None);
        let (reached, ..) = tunnel("127.0.0.1:443", &hello).await;
        assert_eq!(reached, hello);
        let (reached, _, event) = tunnel("127.0.0.1:443", &client_hello(Some("evil.test"))).await;
        assert!(reached.is_empty());
        assert_eq!(event.reason.as_deref(), Some("tls-name-mismatch"));
    }
}
