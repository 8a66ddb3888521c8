//! What hostile origins answer, and connections to origins that are used again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use sandbox_net::{
    Limits,
    event::{Kind, Subscription},
    policy::RuleSet,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Origin, allowing, client, fetch, next, proxy, proxy_with, read_head, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An origin that answers each request on a connection with the next of these, and the rest with the last.
async fn scripted(answers: &'static [&'static str]) -> Origin {
    let turn = Arc::new(AtomicUsize::new(0));
    Origin::start(move |mut stream| {
        let turn = Arc::clone(&turn);
        async move {
            while !read_head(&mut stream).await.is_empty() {
                let at = turn.fetch_add(1, Ordering::SeqCst);
                let answer = answers[at.min(answers.len() - 1)];
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Asks over one connection of a client, one after the other; returns the answers' heads.
async fn ask_all(proxy: &sandbox_net::Proxy, origin: &Origin, methods: &[&str]) -> Vec<String> {
    let mut client = client(proxy);
    let mut heads = Vec::new();
    for method in methods {
        let request = format!(
            "{method} http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n",
            origin.address
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let head = within(read_head(&mut client)).await;
        let length = head
            .to_ascii_lowercase()
            .split_once("content-length: ")
            .map_or(0, |(_, rest)| {
                rest.split("\r\n").next().unwrap().parse().unwrap()
            });
        if *method != "HEAD" {
            let mut body = vec![0; length];
            within(client.read_exact(&mut body)).await.unwrap();
        }
        heads.push(head);
    }
    heads
}

fn statuses(heads: &[String]) -> Vec<&str> {
    heads.iter().map(|head| &head[9..12]).collect()
}

#[tokio::test]
async fn e63_answers_that_can_be_read_in_two_ways_are_a_502_and_their_connection_is_not_used_again()
{
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\nX: y\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nok",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        // HTTP/0.9
        "<html>hello</html>\r\n\r\n",
    ] {
        let script = Box::leak(vec![bad, OK].into_boxed_slice());
        let origin = scripted(script).await;
        let proxy = proxy(allowing(&[origin.rule()]));
        let mut events = proxy.subscribe();
        let heads = ask_all(&proxy, &origin, &["GET", "GET"]).await;
        assert_eq!(statuses(&heads), ["502", "200"], "{bad:?}");
        assert_eq!(origin.connections(), 2, "{bad:?}");
        let end = next(&mut events, Kind::End).await;
        assert_eq!(end.reason.as_deref(), Some("broken"), "{bad:?}");
    }
}

#[tokio::test]
async fn e63_a_flood_of_interim_answers_ends_and_a_few_pass() {
    let few = format!(
        "{}{OK}",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(3)
    );
    let many = format!("{}{OK}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100));
    for (answer, status) in [(few, "200"), (many, "502")] {
        let answer: &'static str = Box::leak(answer.into_boxed_str());
        let origin = scripted(Box::leak(Box::new([answer]))).await;
        let proxy = proxy(allowing(&[origin.rule()]));
        let heads = ask_all(&proxy, &origin, &["GET"]).await;
        assert_eq!(statuses(&heads), [status]);
    }
}

#[tokio::test]
async fn e63_an_answers_head_is_bounded_in_bytes_and_lines() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n",
        "a".repeat(128 * 1024)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n",
        "X: a\r\n".repeat(200)
    );
    for answer in [long, many] {
        let answer: &'static str = Box::leak(answer.into_boxed_str());
        let origin = scripted(Box::leak(Box::new([answer]))).await;
        let proxy = proxy(allowing(&[origin.rule()]));
        let answer = fetch(&proxy, &format!("http://{}/", origin.address)).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    }
}

#[tokio::test]
async fn e63_a_chunked_answer_that_can_be_read_in_two_ways_is_cut() {
    for chunks in [
        "2;x=y\r\nok\r\n0\r\n\r\n",
        "2\nok\r\n0\r\n\r\n",
        "2\r\nokay\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nok",
        "-2\r\nok\r\n0\r\n\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let answer: &'static str = Box::leak(answer.into_boxed_str());
        let origin = scripted(Box::leak(Box::new([answer]))).await;
        let proxy = proxy(allowing(&[origin.rule()]));
        let got = fetch(&proxy, &format!("http://{}/", origin.address)).await;
        assert!(!got.ends_with("0\r\n\r\n"), "{chunks:?}: {got}");
    }
}

/// What an origin says before it is asked would be the answer to somebody's next request.
#[tokio::test]
async fn e63_an_answer_that_nobody_asked_for_is_nobodys() {
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 0\r\n\r\n";
    let origin = scripted(Box::leak(Box::new([two, OK]))).await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let heads = ask_all(&proxy, &origin, &["GET", "GET"]).await;
    assert_eq!(statuses(&heads), ["200", "200"]);
    assert!(
        !heads[1].to_ascii_lowercase().contains("evil"),
        "{}",
        heads[1]
    );
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn e13_a_body_behind_an_answer_to_head_is_no_next_answer() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\nHTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 0\r\n\r\n";
    let origin = scripted(Box::leak(Box::new([head, OK]))).await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let heads = ask_all(&proxy, &origin, &["HEAD", "GET"]).await;
    assert_eq!(statuses(&heads), ["200", "200"]);
    assert!(
        heads[0].to_ascii_lowercase().contains("content-length: 41"),
        "{}",
        heads[0]
    );
    assert!(
        !heads[1].to_ascii_lowercase().contains("evil"),
        "{}",
        heads[1]
    );
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn e33_a_connection_is_used_again_until_the_policy_changes() {
    let origin = scripted(&[OK]).await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut events = proxy.subscribe();
    let heads = ask_all(&proxy, &origin, &["GET", "HEAD", "GET"]).await;
    // The body that this origin sends to HEAD ends the connection.
    assert_eq!(statuses(&heads), ["200", "200", "200"]);
    let before = origin.connections();
    assert!(before < 3, "{before}");
    for _ in 0..3 {
        let end = next(&mut events, Kind::End).await;
        assert!(
            end.bytes_down.unwrap() >= 38 && end.bytes_up.unwrap() > 30,
            "{end:?}"
        );
    }
    ask_all(&proxy, &origin, &["GET"]).await;
    assert_eq!(origin.connections(), before);
    proxy.set_policy(Arc::new(allowing(&[origin.rule()])));
    ask_all(&proxy, &origin, &["GET"]).await;
    assert_eq!(origin.connections(), before + 1);
    proxy.set_policy(Arc::new(RuleSet::deny()));
    let heads = ask_all(&proxy, &origin, &["GET"]).await;
    assert_eq!(statuses(&heads), ["403"]);
}

/// Two names with one address are two hosts: what one said is not carried over to the other.
#[tokio::test]
async fn e33_a_connection_is_kept_for_its_host_alone() {
    let origin = scripted(&[OK]).await;
    let port = origin.port();
    let names = ["a.test", "b.test"].map(|name| format!("{name}:{port}"));
    let proxy = proxy(allowing(&[
        names[0].clone(),
        names[1].clone(),
        origin.rule(),
    ]));
    for name in &names {
        assert!(
            fetch(&proxy, &format!("http://{name}/"))
                .await
                .ends_with("ok")
        );
    }
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn no_connection_is_kept_where_none_may_be() {
    let origin = scripted(&[OK]).await;
    let proxy = proxy_with(
        allowing(&[origin.rule()]),
        Limits::default().with_waiting(0),
    );
    ask_all(&proxy, &origin, &["GET", "GET"]).await;
    assert_eq!(origin.connections(), 2);
}

/// The origin closes as soon as it has answered, without saying so before.
#[tokio::test]
async fn a_kept_connection_that_was_closed_is_made_anew() {
    let origin = Origin::start(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    for _ in 0..20 {
        let heads = ask_all(&proxy, &origin, &["GET", "GET"]).await;
        assert_eq!(statuses(&heads), ["200", "200"]);
    }
}

#[tokio::test]
async fn e53_e54_a_redirect_is_returned_as_it_is_and_what_follows_is_judged() {
    let origin = scripted(&[
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nAlt-Svc: h3=\":443\"\r\nContent-Length: 0\r\n\r\n",
    ])
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let answer = fetch(&proxy, &format!("http://{}/", origin.address))
        .await
        .to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 302"), "{answer}");
    assert!(
        answer.contains("location: http://169.254.169.254/"),
        "{answer}"
    );
    assert!(!answer.contains("alt-svc"), "{answer}");
    let answer = fetch(&proxy, "http://169.254.169.254/").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

/// What claims to inflate to gigabytes is passed on as the bytes that came.
#[tokio::test]
async fn e64_nothing_is_inflated() {
    let origin = scripted(&[
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\u{1f}xyz",
    ])
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let answer = fetch(&proxy, &format!("http://{}/", origin.address)).await;
    assert!(answer.ends_with("\r\n\r\n\u{1f}xyz"), "{answer:?}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("content-encoding: gzip")
    );
}

/// An origin that speaks WebSocket as far as its handshake, and then echoes.
async fn websocket(status: &'static str) -> Origin {
    Origin::start(move |mut stream| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        let (code, rest) = status.split_once(' ').unwrap();
        let asked = head.contains("upgrade: websocket");
        let answer = match (code, asked) {
            ("101", true) => format!(
                "HTTP/1.1 {status}\r\nConnection: Upgrade\r\nUpgrade: {rest}\r\nSec-WebSocket-Accept: x\r\n\r\n"
            ),
            _ => format!("HTTP/1.1 200 OK\r\nX-Asked: {asked}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        if !answer.starts_with("HTTP/1.1 101") {
            return;
        }
        let (mut read, mut write) = stream.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
    })
    .await
}

fn upgrade(origin: &Origin, to: &str) -> String {
    format!(
        "GET http://{}/chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n\
         Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        origin.address
    )
}

async fn ended(events: &mut Subscription) -> sandbox_net::event::Event {
    next(events, Kind::End).await
}

#[tokio::test]
async fn e55_a_websocket_passes_is_counted_and_is_cut_by_a_new_policy() {
    let origin = websocket("101 websocket").await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut events = proxy.subscribe();
    let mut client = client(&proxy);
    // The first frame comes along with the request, as an impatient client has it.
    let request = upgrade(&origin, "websocket") + "one";
    client.write_all(request.as_bytes()).await.unwrap();
    let head = within(read_head(&mut client)).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(
        head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    client.write_all(b"\x82\0two").await.unwrap();
    let mut echoed = [0; 8];
    within(client.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"one\x82\0two");
    proxy.set_policy(Arc::new(RuleSet::deny()));
    assert!(within(client.read_u8()).await.is_err(), "closed");
    let end = ended(&mut events).await;
    assert_eq!(end.reason.as_deref(), Some("not-allowed"));
    assert!(
        end.bytes_up.unwrap() > 8 && end.bytes_down.unwrap() > 8,
        "{end:?}"
    );
}

#[tokio::test]
async fn e55_a_websocket_to_a_host_that_is_not_allowed_is_denied() {
    let origin = websocket("101 websocket").await;
    let proxy = proxy(RuleSet::deny());
    let answer = crate::support::ask(&proxy, &upgrade(&origin, "websocket")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(origin.connections(), 0);
}

/// That the answer ends shows that the connection was closed, so that nothing behind the request is read as another.
#[tokio::test]
async fn e56_other_upgrades_are_not_passed_on() {
    let origin = websocket("101 websocket").await;
    let proxy = proxy(allowing(&[origin.rule()]));
    for to in [
        "h2c",
        "TLS/1.0",
        "custom",
        "websocket, h2c",
        "h2c, websocket",
    ] {
        let request = upgrade(&origin, to) + "GET http://smuggled.test/ HTTP/1.1\r\n\r\n";
        let answer = crate::support::ask(&proxy, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{to}: {answer}");
        assert!(
            answer.to_ascii_lowercase().contains("x-asked: false"),
            "{to}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{to}: {answer}");
    }
    let posted = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
        origin.address
    );
    let answer = crate::support::ask(&proxy, &posted).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("x-asked: false"),
        "{answer}"
    );
}

#[tokio::test]
async fn e56_a_host_that_upgrades_to_something_else_is_a_502() {
    let origin = websocket("101 h2c").await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let answer = crate::support::ask(&proxy, &upgrade(&origin, "websocket")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn e77_an_expected_continue_comes_and_pieces_are_passed_on_at_once() {
    let origin = Origin::start(|mut stream| async move {
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut byte = [0];
        // Each event is sent only once the one before was answered by a byte of the body.
        while stream.read_exact(&mut byte).await.is_ok() {
            let event = format!("5\r\nev: {}\r\n", char::from(byte[0]));
            stream.write_all(event.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut client = client(&proxy);
    let request = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
        origin.address
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let head = within(read_head(&mut client)).await;
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    let head = within(read_head(&mut client)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for byte in [b'a', b'b', b'c'] {
        client.write_all(&[byte]).await.unwrap();
        let mut chunk = [0; 10];
        within(client.read_exact(&mut chunk)).await.unwrap();
        assert_eq!(
            &chunk,
            format!("5\r\nev: {}\r\n", char::from(byte)).as_bytes()
        );
    }
}
