//! Upstream proxies that answer what they should not.

use std::time::Duration;

use sandbox_net::{Limits, Proxy, UpstreamProxy, event::Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    echo,
    support::{Company, behind, names},
};
use crate::support::{allowing, body, client, connect, fetch, next, read_head, within};

const TARGET: &str = "www.example.com:7000";

async fn told(answer: &[u8]) -> (String, String) {
    let company = Company::saying(answer.to_vec()).await;
    let proxy = behind(company.at(), allowing(&[TARGET]));
    let mut events = proxy.subscribe();
    let answer = echo(&proxy, TARGET).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(!answer.contains("EVIL"), "{answer}");
    let event = next(&mut events, Kind::Decision).await;
    let (reason, text) = (event.reason.unwrap(), event.text.unwrap());
    assert_eq!(body(&answer)["reason"], reason.as_str());
    assert!(!text.contains("EVIL"), "{text}");
    (reason, text)
}

#[tokio::test]
async fn e34_what_is_no_plain_yes_is_a_502_with_its_reason() {
    let huge = [&b"HTTP/1.1 200 EVIL\r\nX: "[..], &[b'a'; 64 * 1024]].concat();
    let many = format!("HTTP/1.1 200 EVIL\r\n{}\r\n", "X: y\r\n".repeat(500));
    for answer in [
        &b""[..],
        b"EVIL\r\n\r\n",
        b"HTTP/1.1 2000 EVIL\r\n\r\n",
        b"HTTP/1.1 200 EVIL\r\nX y\r\n\r\n",
        b"HTTP/1.1 200 EVIL\r\n X: folded\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/2.0 200 EVIL\r\n\r\n",
        b"\0\xff\xfe\r\n\r\n",
        b"SSH-2.0-EVIL\r\n",
        &[22, 3, 1, 2, 0],
        &huge,
        many.as_bytes(),
    ] {
        let (reason, text) = told(answer).await;
        assert_eq!(reason, "upstream-proxy", "{text}");
    }
    for (answer, status) in [
        (
            &b"HTTP/1.1 502 EVIL\r\nContent-Length: 4\r\n\r\nEVIL"[..],
            "502",
        ),
        (b"HTTP/1.1 403 EVIL\r\n\r\n", "403"),
        (
            b"HTTP/1.1 302 EVIL\r\nLocation: http://EVIL/\r\n\r\n",
            "302",
        ),
        (
            b"HTTP/1.1 101 EVIL\r\nUpgrade: EVIL\r\nConnection: upgrade\r\n\r\n",
            "101",
        ),
    ] {
        let (reason, text) = told(answer).await;
        assert_eq!(reason, "upstream-proxy-refused", "{text}");
        assert!(text.contains(status), "{text}");
    }
    let login = b"HTTP/1.1 407 EVIL\r\nProxy-Authenticate: Basic realm=EVIL\r\n\r\n";
    let (reason, _) = told(login).await;
    assert_eq!(reason, "upstream-proxy-login");
}

#[tokio::test]
async fn e34_a_silent_proxy_and_an_endless_one_are_left_in_time() {
    let forever = |mut stream: tokio::net::TcpStream| async move {
        let head = read_head(&mut stream).await;
        while stream.write_all(b"HTTP/1.1 103 X\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        head
    };
    let silent = |mut stream: tokio::net::TcpStream| async move {
        drop(stream.read_to_end(&mut Vec::new()).await);
        String::new()
    };
    for company in [Company::start(forever).await, Company::start(silent).await] {
        for upstream in [company.at(), company.at().names()] {
            let limits = Limits::default().with_connect_timeout(Duration::from_millis(300));
            let proxy = Proxy::builder(std::sync::Arc::new(allowing(&[TARGET])));
            let proxy = proxy.resolver(std::sync::Arc::new(names())).limits(limits);
            let proxy = proxy.upstream_proxy(upstream).build();
            let answer = echo(&proxy, TARGET).await;
            assert_eq!(body(&answer)["reason"], "upstream-proxy", "{answer}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["http", "socks5", "https"] {
        let upstream = UpstreamProxy::at(&format!("{scheme}://{gone}")).unwrap();
        let answer = echo(&behind(upstream, allowing(&[TARGET])), TARGET).await;
        assert_eq!(body(&answer)["reason"], "upstream-proxy", "{answer}");
    }
}

#[tokio::test]
async fn bytes_right_behind_the_answer_belong_to_the_tunnel() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nSSH-2.0-first";
    let company = Company::saying(answer.to_vec()).await;
    let proxy = behind(company.at(), allowing(&[TARGET]));
    let mut client = client(&proxy);
    let head = connect(&mut client, TARGET).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut rest = String::new();
    within(client.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "SSH-2.0-first");
}

#[tokio::test]
async fn e34_a_login_that_is_asked_for_is_not_asked_of_the_guest() {
    let answer = b"HTTP/1.1 407 EVIL\r\nProxy-Authenticate: Basic realm=EVIL\r\n\
                   WWW-Authenticate: Basic\r\nContent-Length: 4\r\n\r\nEVIL";
    let company = Company::saying(answer.to_vec()).await;
    let proxy = behind(company.at().names(), allowing(&["www.example.com"]));
    let mut events = proxy.subscribe();
    let answer = fetch(&proxy, "http://www.example.com/").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        !answer.contains("EVIL") && !answer.contains("uthenticate"),
        "{answer}"
    );
    let end = next(&mut events, Kind::End).await;
    assert!(end.text.unwrap().contains("login"));
    assert_eq!(body(&answer)["reason"], "upstream-proxy-login");
}

#[tokio::test]
async fn e34_e63_an_answer_that_can_be_read_in_two_ways_is_none_there_either() {
    let answer =
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let company = Company::saying(answer.to_vec()).await;
    let proxy = behind(company.at().names(), allowing(&["www.example.com"]));
    let answer = fetch(&proxy, "http://www.example.com/").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}
