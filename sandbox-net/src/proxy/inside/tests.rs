//! Requests inside a tunnel, in both versions on both sides, over pipes in place of TLS.

use std::{convert::Infallible, io, net::SocketAddr, sync::Mutex, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn,
    server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::{
    Proxy,
    policy::{Carriage, Hello, RuleSet},
    proxy::{
        connection::serve_inside,
        upstream::{Judged, Link, Protocol},
    },
    resolve::FixedResolver,
};

type Sent = UnsyncBoxBody<Bytes, Infallible>;

/// An origin behind pipes: it says what it was asked, and sends trailers.
#[derive(Debug)]
struct Pipes {
    protocol: Protocol,
    connections: Mutex<usize>,
}

#[async_trait]
impl Connector for Pipes {
    async fn connect(&self, to: Judged<'_>, _: Duration) -> io::Result<Link> {
        *self.connections.lock().unwrap() += 1;
        let (ours, theirs) = duplex(64 * 1024);
        let io = TokioIo::new(theirs);
        let service = service_fn(|request| async move { Ok::<_, Infallible>(told(request).await) });
        match self.protocol {
            Protocol::Http1 => drop(tokio::spawn(
                server::conn::http1::Builder::new().serve_connection(io, service),
            )),
            Protocol::Http2 => drop(tokio::spawn(
                server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service),
            )),
        }
        Ok(Link {
            stream: Box::new(ours),
            address: Some(to.addresses[0].address()),
            protocol: self.protocol,
            absolute: None,
        })
    }
}

async fn told(request: Request<Incoming>) -> Response<Sent> {
    let (head, body) = request.into_parts();
    let collected = body.collect().await;
    let trailers = collected
        .as_ref()
        .ok()
        .and_then(|body| body.trailers().cloned());
    let told = format!(
        "{} {} host={:?} te={:?} body={} trailers={trailers:?}",
        head.method,
        head.uri,
        head.headers.get("host"),
        head.headers.get("te"),
        collected.map_or(0, |body| body.to_bytes().len()),
    );
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(Bytes::from(told)), Frame::trailers(trailers)].map(Ok);
    let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("alt-svc", "h3=\":443\"".parse().unwrap());
    response
}

/// A tunnel to app.test:443 that was opened, and the client's end of it.
struct Tunnel {
    proxy: Proxy,
    origin: Arc<Pipes>,
    client: DuplexStream,
}

async fn tunnel(client: Protocol, origin: Protocol) -> Tunnel {
    let rules = RuleSet::deny().allow("app.test").unwrap();
    let names =
        FixedResolver::new().with("app.test".parse().unwrap(), ["8.8.8.8".parse().unwrap()]);
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(Arc::new(names))
        .build();
    let context = Client::new(Arc::clone(&proxy.0), 0);
    let target = Target::parse("app.test:443").unwrap();
    let passed = context.judge(&target, None).await.unwrap();
    let address: SocketAddr = passed.addresses[0].address();
    let Host::Name(name) = target.host.clone() else {
        unreachable!("it is a name");
    };
    let mut lease = passed.lease(target, Carriage::Tunnel, Some(address));
    lease.hello = Some(Hello::Named(name));
    let origin = Arc::new(Pipes {
        protocol: origin,
        connections: Mutex::new(0),
    });
    let inside = Arc::new(Inside {
        lease,
        connector: Arc::clone(&origin) as _,
        #[cfg(feature = "inspect")]
        credentials: None,
    });
    let (ours, theirs) = duplex(64 * 1024);
    tokio::spawn(async move { serve_inside(&context, inside, (theirs, client)).await });
    Tunnel {
        proxy,
        origin,
        client: ours,
    }
}

fn request(uri: &str) -> http::request::Builder {
    Request::builder().method("POST").uri(uri)
}

fn with_trailers() -> Sent {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", "1".parse().unwrap());
    let frames = [
        Frame::data(Bytes::from_static(b"abc")),
        Frame::trailers(trailers),
    ]
    .map(Ok);
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

fn nothing() -> Sent {
    Full::default().boxed_unsync()
}

async fn http2(stream: DuplexStream) -> conn::http2::SendRequest<Sent> {
    let builder = conn::http2::Builder::new(TokioExecutor::new());
    let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    drop(tokio::spawn(driver));
    sender
}

async fn text(response: Response<Incoming>) -> (StatusCode, String, Option<HeaderMap>) {
    let status = response.status();
    assert!(!response.headers().contains_key("alt-svc"), "E53");
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned();
    (
        status,
        String::from_utf8(body.to_bytes().to_vec()).unwrap(),
        trailers,
    )
}

#[tokio::test]
async fn e77_http2_reaches_http2_with_the_trailers_of_both_sides() {
    let Tunnel { client, origin, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    let mut sender = http2(client).await;
    for _ in 0..3 {
        let asked = request("https://app.test/x?y").header("te", "trailers");
        let answer = sender
            .send_request(asked.body(with_trailers()).unwrap())
            .await
            .unwrap();
        let (status, told, trailers) = text(answer).await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            told.starts_with("POST https://app.test/x?y host=None te=Some(\"trailers\") body=3"),
            "{told}"
        );
        assert!(told.contains("x-end"), "{told}");
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }
    assert_eq!(
        *origin.connections.lock().unwrap(),
        1,
        "requests share a connection"
    );
}

#[tokio::test]
async fn http2_reaches_an_origin_that_speaks_http1_and_the_other_way_round() {
    let Tunnel { client, .. } = tunnel(Protocol::Http2, Protocol::Http1).await;
    let asked = request("https://app.test/x").body(with_trailers()).unwrap();
    let (status, told, _) = text(http2(client).await.send_request(asked).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        told.starts_with("POST /x host=Some(\"app.test\") te=None body=3"),
        "{told}"
    );
    assert!(told.ends_with("trailers=None"), "{told}");

    let Tunnel { mut client, .. } = tunnel(Protocol::Http1, Protocol::Http2).await;
    let asked = b"GET /x HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
    client.write_all(asked).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("GET https://app.test/x host=None"),
        "{answer}"
    );
}

#[tokio::test]
async fn e03_e04_a_request_for_another_host_is_misdirected() {
    for (uri, host) in [
        ("https://evil.test/", None),
        ("https://app.test:8443/", None),
        ("https://app.test/", Some("evil.test")),
        ("https://evil.test/", Some("app.test")),
        ("https://app.test/", Some("app.test:80")),
    ] {
        let Tunnel { client, origin, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
        let mut asked = request(uri);
        if let Some(host) = host {
            asked = asked.header("host", host);
        }
        let answer = http2(client)
            .await
            .send_request(asked.body(nothing()).unwrap())
            .await;
        assert_eq!(
            answer.unwrap().status(),
            StatusCode::MISDIRECTED_REQUEST,
            "{uri} {host:?}"
        );
        assert_eq!(*origin.connections.lock().unwrap(), 0);
    }
    for head in [
        "GET / HTTP/1.1\r\nHost: evil.test",
        "GET https://evil.test/ HTTP/1.1\r\nHost: app.test",
    ] {
        let Tunnel { mut client, .. } = tunnel(Protocol::Http1, Protocol::Http1).await;
        client
            .write_all(format!("{head}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 421"), "{head}: {answer}");
    }
}

#[tokio::test]
async fn e16_e56_inside_a_tunnel_there_is_no_tunnel_and_no_other_protocol() {
    for head in [
        "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test",
        "TRACE / HTTP/1.1\r\nHost: app.test",
        "GET http://app.test/ HTTP/1.1\r\nHost: app.test",
        "GET / HTTP/1.1\r\nX: y",
        "GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test",
        "PRI * HTTP/2.0",
    ] {
        let Tunnel {
            mut client, origin, ..
        } = tunnel(Protocol::Http1, Protocol::Http1).await;
        client
            .write_all(format!("{head}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert_eq!(*origin.connections.lock().unwrap(), 0);
    }
    let Tunnel { client, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    let asked = Request::builder()
        .method("CONNECT")
        .uri("app.test:443")
        .body(nothing())
        .unwrap();
    let answer = http2(client).await.send_request(asked).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn e49_a_new_policy_holds_for_the_next_request_inside() {
    let Tunnel { client, proxy, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    let mut sender = http2(client).await;
    let asked = || request("https://app.test/").body(nothing()).unwrap();
    assert_eq!(
        sender.send_request(asked()).await.unwrap().status(),
        StatusCode::OK
    );
    proxy.set_policy(Arc::new(RuleSet::deny()));
    assert_eq!(
        sender.send_request(asked()).await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
}

/// Frames of HTTP/2 by hand: length, type, flags, stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends frames behind the preface until the other side has had enough; returns the error code of its GOAWAY.
async fn attack(frames: impl Iterator<Item = Vec<u8>>) -> Option<u32> {
    let Tunnel { mut client, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let (mut read, mut write) = tokio::io::split(client);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        drop(read.read_to_end(&mut all).await);
        all
    });
    for frame in frames {
        if write.write_all(&frame).await.is_err() {
            break;
        }
    }
    let limit = Duration::from_secs(20);
    let all = tokio::time::timeout(limit, reading)
        .await
        .expect("it ends")
        .unwrap();
    let mut rest = &all[..];
    while let [a, b, c, kind, _, _, _, _, _, tail @ ..] = rest {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let (payload, next) = tail.split_at(length.min(tail.len()));
        if *kind == 7 && payload.len() >= 8 {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = next;
    }
    None
}

/// `:method GET`, `:scheme https`, `:path /` of the static table, and `:authority app.test`.
const HEAD: &[u8] = b"\x82\x87\x84\x41\x08app.test";
const ENHANCE_YOUR_CALM: Option<u32> = Some(11);

#[tokio::test]
async fn e62_rapid_resets_end_the_connection() {
    let pairs = (0..5_000u32).flat_map(|number| {
        let stream = number * 2 + 1;
        [
            frame(1, 5, stream, HEAD),
            frame(3, 0, stream, &8u32.to_be_bytes()),
        ]
    });
    assert_eq!(attack(pairs).await, ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn e62_a_flood_of_continuations_ends_the_connection() {
    let first = frame(1, 1, 1, HEAD);
    // A literal field without indexing, over and over.
    let more = (0..20_000).map(|_| frame(9, 0, 1, &b"\0\x01x\x01y".repeat(200)));
    assert!(attack(std::iter::once(first).chain(more)).await.is_some());
}

/// One large entry of the dynamic table, named thousands of times by a byte each.
#[tokio::test]
async fn e62_headers_that_unpack_to_too_much_are_not_served() {
    let value = vec![b'a'; 3000];
    // A literal with incremental indexing: new name `x`, a value of 3,000 bytes.
    let mut block = [HEAD, b"\x40\x01x\x7f\xb9\x16"].concat();
    block.extend(value);
    block.extend([0xbe; 4_000]);
    let Tunnel {
        mut client, origin, ..
    } = tunnel(Protocol::Http2, Protocol::Http2).await;
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    client.write_all(&frame(1, 5, 1, &block)).await.unwrap();
    let mut answer = vec![0; 4096];
    let limit = Duration::from_secs(20);
    // Settings first; then 431, a reset or the end, but nothing is asked of the origin.
    for _ in 0..3 {
        match tokio::time::timeout(limit, client.read(&mut answer)).await {
            Ok(Ok(1..)) => {}
            _ => break,
        }
        if *origin.connections.lock().unwrap() > 0 {
            break;
        }
        if answer.windows(4).any(|bytes| bytes == [0, 0, 0, 1]) {
            break;
        }
    }
    assert_eq!(*origin.connections.lock().unwrap(), 0);
}

/// A client that does not wait for its turn, as the library below does: 128 streams are left open, then one more.
#[tokio::test]
async fn e62_a_stream_beyond_the_bound_is_reset() {
    let Tunnel { mut client, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    // END_HEADERS without END_STREAM: the request's body is still to come.
    sent.extend((0..129).flat_map(|number| frame(1, 4, number * 2 + 1, HEAD)));
    client.write_all(&sent).await.unwrap();
    const REFUSED_STREAM: u32 = 7;
    let refusal = frame(3, 0, 128 * 2 + 1, &REFUSED_STREAM.to_be_bytes());
    let mut answer = Vec::new();
    let refused = async {
        while !answer.windows(refusal.len()).any(|bytes| bytes == refusal) {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
    };
    let limit = Duration::from_secs(5);
    assert!(tokio::time::timeout(limit, refused).await.is_ok());
}

#[tokio::test]
async fn e62_streams_beyond_the_bound_are_refused_and_the_connection_lives() {
    let Tunnel { client, .. } = tunnel(Protocol::Http2, Protocol::Http2).await;
    let sender = http2(client).await;
    // More than are allowed at a time: the library on our side waits for its turn.
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let mut sender = sender.clone();
        let asked = request("https://app.test/").body(nothing()).unwrap();
        asking.spawn(async move { sender.send_request(asked).await.unwrap().status() });
    }
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
}
