//! Bounds: nothing a sandbox does takes more than its limits say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandbox_net::{Limits, Proxy, event::Kind, policy::RuleSet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Origin, Rebinding, allowing, ask, body, client, connect, fetch, next, proxy, proxy_with,
    read_head, within,
};

#[tokio::test]
async fn e60_a_head_that_does_not_arrive_ends_the_connection() {
    let limits = Limits::default().with_head_timeout(Duration::from_millis(200));
    let proxy = proxy_with(RuleSet::deny(), limits);
    let mut events = proxy.subscribe();
    let mut client = client(&proxy);
    client
        .write_all(b"GET http://a.test/ HTTP/1.1\r\nX-Slow: ")
        .await
        .unwrap();
    let mut rest = Vec::new();
    drop(within(client.read_to_end(&mut rest)).await);
    let event = next(&mut events, Kind::Refused).await;
    assert_eq!(event.reason.as_deref(), Some("head-timeout"));
}

#[tokio::test]
async fn e61_heads_are_bounded_in_bytes_and_lines() {
    let proxy = proxy(RuleSet::deny());
    let long = format!("X: {}\r\n", "a".repeat(128 * 1024));
    let many = "X: a\r\n".repeat(200);
    for fields in [long, many] {
        let answer = ask(
            &proxy,
            &format!("GET http://a.test/ HTTP/1.1\r\n{fields}\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let url = format!("http://a.test/{}", "a".repeat(70 * 1024));
    let answer = fetch(&proxy, &url).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_closed() {
    let limits = Limits::default().with_connections(1);
    let proxy = proxy_with(RuleSet::deny(), limits);
    let mut first = client(&proxy);
    first.write_all(b"GET ").await.unwrap();
    tokio::task::yield_now().await;
    let mut second = client(&proxy);
    let mut answer = String::new();
    within(second.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(body(&answer)["reason"], "busy");
    drop(first);
    // The place is free again as soon as the first connection's end was seen.
    within(async {
        while !fetch(&proxy, "http://a.test/")
            .await
            .starts_with("HTTP/1.1 403")
        {}
    })
    .await;
}

#[tokio::test]
async fn e60_a_client_that_does_not_read_loses_its_place() {
    let origin = Origin::start(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
            .await
            .unwrap();
        let endless = vec![0; 1 << 20];
        while stream.write_all(&endless).await.is_ok() {}
    })
    .await;
    let limits = Limits::default()
        .with_connections(1)
        .with_idle_timeout(Duration::from_millis(200));
    let proxy = proxy_with(allowing(&[origin.rule()]), limits);
    let mut events = proxy.subscribe();
    let mut stuck = client(&proxy);
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n", origin.address);
    stuck.write_all(request.as_bytes()).await.unwrap();
    next(&mut events, Kind::End).await;
    within(async {
        while !fetch(&proxy, "http://a.test/")
            .await
            .starts_with("HTTP/1.1 403")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(stuck);
}

#[tokio::test]
async fn a_dropped_listener_cuts_its_connections() {
    let origin = Origin::echo().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let listening = tokio::spawn(async move { proxy.listen(listener).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    connect(&mut client, &origin.address.to_string()).await;
    client.write_all(b"x").await.unwrap();
    within(client.read_u8()).await.unwrap();
    listening.abort();
    assert!(within(client.read_u8()).await.is_err());
}

/// An origin that answers every request.
async fn answering() -> Origin {
    Origin::start(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn e60_requests_too_many_are_told_so_and_another_sandbox_is_served() {
    let origin = answering().await;
    let url = format!("http://{}/", origin.address);
    let limits = Limits::default().with_requests_per_second(2);
    let flooded = proxy_with(allowing(&[origin.rule()]), limits);
    let other = proxy(allowing(&[origin.rule()]));
    let mut events = flooded.subscribe();
    let flood = async {
        let mut refused = Vec::new();
        for _ in 0..100 {
            let answer = fetch(&flooded, &url).await;
            if answer.starts_with("HTTP/1.1 429") {
                refused.push(answer);
            }
        }
        refused
    };
    let served = async {
        for _ in 0..100 {
            let answer = fetch(&other, &url).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    };
    let (refused, ()) = tokio::join!(flood, served);
    // Ten at once, and two in each second that the test took.
    let answer = refused.last().expect("the flood was faster than its limit");
    assert_eq!(body(answer)["reason"], "busy");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 1\r\n"));
    let tunnel = connect(&mut client(&flooded), &origin.address.to_string()).await;
    assert!(tunnel.starts_with("HTTP/1.1 429"), "{tunnel}");
    let event = next(&mut events, Kind::Refused).await;
    assert_eq!(event.reason.as_deref(), Some("busy"));
    let told = std::iter::from_fn(|| events.try_next());
    let told = told.filter(|event| event.kind == Kind::Refused).count();
    assert!(told < refused.len() / 2, "{told} of {}", refused.len());
}

#[tokio::test]
async fn e51_new_names_too_many_are_denied_and_known_ones_are_not() {
    let origin = answering().await;
    let resolver = Rebinding::new(&["127.0.0.1"]);
    let rules = allowing(&[origin.rule(), format!("*.app.test:{}", origin.port())]);
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(Arc::clone(&resolver) as _)
        .limits(Limits::default().with_lookups_per_second(1))
        .build();
    let url = |name: &str| format!("http://{name}.app.test:{}/", origin.port());
    let ask = async |name: String| fetch(&proxy, &url(&name)).await;
    // Ten at once, five that wait for up to five seconds: the last of these is the first that does not.
    let asked = futures::future::join_all((0..40).map(|n| ask(format!("n{n}")))).await;
    let (busy, served): (Vec<_>, Vec<_>) = asked
        .iter()
        .partition(|answer| answer.starts_with("HTTP/1.1 429"));
    assert!(
        served
            .iter()
            .all(|answer| answer.starts_with("HTTP/1.1 200"))
    );
    assert!((10..=25).contains(&served.len()), "{}", served.len());
    assert_eq!(body(busy[0])["reason"], "busy");
    assert_eq!(resolver.asked(), served.len());
    for _ in 0..5 {
        assert!(ask("n0".to_owned()).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn e60_a_body_that_drips_is_cut_and_one_that_flows_is_not() {
    let origin = Origin::start(|mut stream| async move {
        let head = read_head(&mut stream).await;
        let mut body = vec![0; if head.contains("20000") { 20_000 } else { 2000 }];
        if stream.read_exact(&mut body).await.is_ok() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let limits = Limits::default().with_body_rate(1000, Duration::from_secs(1));
    let proxy = proxy_with(allowing(&[origin.rule()]), limits);
    let mut events = proxy.subscribe();
    let head = |length: usize| {
        let address = origin.address;
        format!(
            "POST http://{address}/ HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        )
    };
    let send = async |length: usize, piece: usize| {
        let (mut read, mut write) = tokio::io::split(client(&proxy));
        let sending = async {
            write.write_all(head(length).as_bytes()).await.unwrap();
            for _ in 0..length / piece {
                if write.write_all(&vec![b'x'; piece]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut answer = String::new();
        let reading = async { drop(read.read_to_string(&mut answer).await) };
        within(async { tokio::join!(sending, reading) }).await;
        answer
    };
    let answer = send(2000, 1).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let end = next(&mut events, Kind::End).await;
    assert_eq!(end.reason.as_deref(), Some("broken"));
    assert!(end.text.unwrap().contains("too slowly"));
    let answer = send(20_000, 1000).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn bytes_take_as_long_as_the_bandwidth_makes_them() {
    let origin = Origin::echo().await;
    let limits = Limits::default().with_bytes_per_second(1 << 20);
    let proxy = proxy_with(allowing(&[origin.rule()]), limits);
    let mut client = client(&proxy);
    connect(&mut client, &origin.address.to_string()).await;
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let started = Instant::now();
    let (mut read, mut write) = tokio::io::split(client);
    let mut got = vec![0; sent.len()];
    let (written, read) =
        within(async { tokio::join!(write.write_all(&sent), read.read_exact(&mut got)) }).await;
    written.and(read.map(drop)).unwrap();
    assert!(got == sent, "every byte arrives");
    // Two MiB both ways, of which one is free and the last 64 KiB are paid for afterwards.
    assert!(started.elapsed() > Duration::from_millis(800));
}

#[tokio::test]
async fn e49_a_new_policy_is_asked_by_the_next_decision() {
    let origin = answering().await;
    let url = format!("http://{}/", origin.address);
    let proxy = proxy(allowing(&[origin.rule()]));
    for _ in 0..20 {
        proxy.set_policy(Arc::new(RuleSet::deny()));
        assert!(fetch(&proxy, &url).await.starts_with("HTTP/1.1 403"));
        let tunnel = connect(&mut client(&proxy), &origin.address.to_string()).await;
        assert!(tunnel.starts_with("HTTP/1.1 403"), "{tunnel}");
        proxy.set_policy(Arc::new(allowing(&[origin.rule()])));
        assert!(fetch(&proxy, &url).await.starts_with("HTTP/1.1 200"));
    }
}
