//! Bounds: nothing a sandbox does takes more than its limits say.

use std::time::Duration;

use sandbox_net::{Limits, event::Kind, policy::RuleSet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Origin, allowing, ask, body, client, connect, fetch, next, proxy, proxy_with, within,
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
