//! Bodies: streamed as they come, looked through, scrubbed.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody, channel::Channel};
use hyper::body::Frame;
use sandbox_net::{
    credentials::{Credential, Credentials, Grant, Place, Secret, Source},
    event::Kind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Body, Flaw, Sandbox, Site, VALUE, full};
use crate::support::{next, read_head, within};

fn post(sandbox: &Sandbox, body: Body) -> Request<Body> {
    Request::post(format!("https://{}/", sandbox.target))
        .body(body)
        .unwrap()
}

/// A body that is sent piece by piece.
fn pieces() -> (http_body_util::channel::Sender<Bytes, Infallible>, Body) {
    let (sender, body) = Channel::<Bytes, Infallible>::new(8);
    (sender, body.boxed())
}

#[tokio::test]
async fn e66_a_placeholder_in_an_http2_body_is_stopped_where_it_ends() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let mut client = sandbox.http2().await;
    let other = sandbox
        .credentials
        .placeholder("other")
        .unwrap()
        .to_string();
    let (mut sender, stream) = pieces();
    let asked = tokio::spawn(client.send_request(post(&sandbox, stream)));
    for piece in other.as_bytes().chunks(7) {
        drop(sender.send_data(Bytes::copy_from_slice(piece)).await);
        tokio::task::yield_now().await;
    }
    let alert = next(&mut events, Kind::Alert).await;
    assert_eq!(alert.credential.as_deref(), Some("other"));
    let response = within(asked).await.unwrap().unwrap();
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn e66_a_placeholder_in_a_chunked_body_is_stopped_where_it_ends() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let other = sandbox
        .credentials
        .placeholder("other")
        .unwrap()
        .to_string();
    let mut stream = sandbox.http1().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        sandbox.target
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in other.as_bytes().chunks(5) {
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        stream.write_all(&chunk).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert_eq!(
        next(&mut events, Kind::Alert).await.credential.as_deref(),
        Some("other")
    );
    let head = within(read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
}

#[tokio::test]
async fn a_placeholder_of_the_host_itself_passes_in_a_body_unchanged() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut client = sandbox.http2().await;
    let request = post(&sandbox, full(sandbox.placeholder.clone()));
    let response = within(client.send_request(request)).await.unwrap();
    let answer = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert!(String::from_utf8_lossy(&answer).contains(&sandbox.placeholder));
}

#[tokio::test]
async fn a_body_is_only_reported_where_that_is_asked_for() {
    let site = Site::mirror(&["h2"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let sandbox = Sandbox::with(&site, sandbox.credentials.report_bodies_only());
    let mut events = sandbox.proxy.subscribe();
    let mut client = sandbox.http2().await;
    let other = sandbox
        .credentials
        .placeholder("other")
        .unwrap()
        .to_string();
    let response = within(client.send_request(post(&sandbox, full(other))))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        next(&mut events, Kind::Alert).await.credential.as_deref(),
        Some("other")
    );
}

#[tokio::test]
async fn a_declared_body_gets_the_value_and_a_long_one_is_refused() {
    let site = Site::mirror(&["h2", "http/1.1"], Flaw::None).await;
    let grant = Grant::new(&site.host(), [Place::Body(1000)]).unwrap();
    let source = Source::Value(Secret::new("va\"lue").unwrap());
    let credentials = Credentials::load([Credential::new("ours", source).grant(grant)])
        .await
        .unwrap();
    let sandbox = Sandbox::with(&site, credentials);
    let mut client = sandbox.http2().await;
    let mut request = post(
        &sandbox,
        full(format!(r#"{{"key":"{}"}}"#, sandbox.placeholder)),
    );
    let json = "application/json".parse().unwrap();
    request.headers_mut().insert("content-type", json);
    let response = within(client.send_request(request)).await.unwrap();
    let answer = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert!(
        String::from_utf8_lossy(&answer).contains(r#"{"key":"va\"lue"}"#),
        "{answer:?}"
    );
    for (body, encoding, reason) in [
        (vec![b'x'; 1001], None, "body-too-long"),
        (vec![b'x'; 10], Some("gzip"), "body-encoded"),
    ] {
        let mut request = post(&sandbox, full(body));
        if let Some(encoding) = encoding {
            request
                .headers_mut()
                .insert("content-encoding", encoding.parse().unwrap());
        }
        let response = within(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 403);
        let answer = within(response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["reason"], reason);
    }
}

/// An origin that waits for the client before it goes on: whoever buffers, hangs.
async fn slow() -> Site {
    Site::start(&["h2", "http/1.1"], Flaw::None, |request| async {
        let (mut sender, body) = pieces();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                // HTTP/2 may end a stream with an empty frame.
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    drop(
                        sender
                            .send_data([b"data: ", &data[..], b"\n\n"].concat().into())
                            .await,
                    );
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            drop(sender.send_trailers(trailers).await);
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(body)
            .unwrap()
    })
    .await
}

#[tokio::test]
async fn e77_streams_are_not_held_and_trailers_are_kept() {
    let site = slow().await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut client = sandbox.http2().await;
    let (mut sender, stream) = pieces();
    let mut request = post(&sandbox, stream);
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let key = sandbox.placeholder.parse().unwrap();
    // With a credential, so that the answer is scrubbed as it streams.
    request.headers_mut().insert("x-key", key);
    let response = within(client.send_request(request)).await.unwrap();
    let mut answer = response.into_body();
    for text in ["one", "the-real-valve", "three"] {
        within(sender.send_data(text.into())).await.unwrap();
        let frame = within(answer.frame()).await.unwrap().unwrap();
        let expected = format!("data: {text}\n\n");
        assert_eq!(frame.into_data().unwrap(), expected);
    }
    drop(sender);
    let trailers = within(answer.frame())
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(site.heads()[0].contains("trailers"));
}

#[tokio::test]
async fn e77_http1_streams_and_waits_for_continue() {
    let site = slow().await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut stream = sandbox.http1().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        sandbox.target
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = within(read_head(&mut stream)).await;
    if seen.starts_with("HTTP/1.1 100") {
        seen = within(read_head(&mut stream)).await;
    }
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    for text in ["first", "other"] {
        stream
            .write_all(format!("5\r\n{text}\r\n").as_bytes())
            .await
            .unwrap();
        let expected = format!("D\r\ndata: {text}\n\n\r\n");
        let mut chunk = vec![0; expected.len()];
        within(stream.read_exact(&mut chunk)).await.unwrap();
        assert_eq!(String::from_utf8(chunk).unwrap(), expected);
    }
}

#[tokio::test]
async fn e70_a_value_that_an_answer_repeats_in_pieces_is_scrubbed() {
    let site = Site::start(&["http/1.1"], Flaw::None, |request| async move {
        let value = request.headers().get("x-key").unwrap().clone();
        let bytes = Bytes::copy_from_slice(value.as_bytes());
        let (one, two) = (bytes.slice(..5), bytes.slice(5..));
        let frames = [Bytes::from_static(b"<"), one, two, Bytes::from_static(b">")];
        let frames = frames.map(|data| Ok::<_, Infallible>(Frame::data(data)));
        let body = StreamBody::new(futures::stream::iter(frames));
        Response::builder()
            .header("x-echo", value)
            .body(BodyExt::boxed(body))
            .unwrap()
    })
    .await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut stream = sandbox.http1().await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
        sandbox.target, sandbox.placeholder
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    drop(within(stream.read_to_string(&mut answer)).await);
    assert!(
        !answer.contains(VALUE) && !answer.contains("the-r"),
        "{answer}"
    );
    assert!(answer.contains(&"*".repeat(VALUE.len())), "{answer}");
}

/// An origin without TLS that answers with what it was sent, once it has all of it.
async fn plain_origin() -> Site {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let heads = std::sync::Arc::clone(&site.heads);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let heads = std::sync::Arc::clone(&heads);
            let service = hyper::service::service_fn(move |request: Request<_>| {
                let heads = std::sync::Arc::clone(&heads);
                async move {
                    let body: hyper::body::Incoming = request.into_body();
                    let whole = body.collect().await?.to_bytes();
                    let text = String::from_utf8_lossy(&whole).into_owned();
                    heads.lock().unwrap().push(text);
                    Ok::<_, hyper::Error>(Response::new(full(whole)))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    Site { address, ..site }
}

/// Sends a body without TLS, in these chunks, and returns the whole answer.
async fn upload(sandbox: &Sandbox, chunks: &[&[u8]]) -> String {
    let mut stream = crate::support::client(&sandbox.proxy);
    let head = format!(
        "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        sandbox.target
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for chunk in chunks {
        let head = format!("{:x}\r\n", chunk.len());
        drop(
            stream
                .write_all(&[head.as_bytes(), chunk, b"\r\n"].concat())
                .await,
        );
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(stream.write_all(b"0\r\n\r\n").await);
    let mut answer = String::new();
    drop(within(stream.read_to_string(&mut answer)).await);
    answer
}

#[tokio::test]
async fn e65_e66_e72_a_body_without_tls_holds_no_placeholder() {
    let site = plain_origin().await;
    let sandbox = Sandbox::new(&site, &[Place::Body(1000)]).await;
    let mut events = sandbox.proxy.subscribe();
    let placeholder = |name| sandbox.credentials.placeholder(name).unwrap().to_string();
    let base64 = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    // The host's own, and one that no host here may have; plain, and encoded.
    for (name, text) in [
        ("ours", placeholder("ours")),
        ("other", placeholder("other")),
        ("ours", base64(&format!("user:{}", placeholder("ours")))),
    ] {
        let (one, two) = text.as_bytes().split_at(text.len() / 2);
        let answer = upload(&sandbox, &[b"key=", one, two, b"&more"]).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("credential-needs-tls"), "{answer}");
        let alert = next(&mut events, Kind::Alert).await;
        assert_eq!(alert.credential.as_deref(), Some(name));
    }
    assert!(site.heads().is_empty(), "no such body became whole");
    // Others pass, and nothing is put in.
    let answer = upload(&sandbox, &[b"half a placehol", b"der: sbxplaceholder"]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(site.heads(), ["half a placeholder: sbxplaceholder"]);
}

#[tokio::test]
async fn e72_where_bodies_are_only_reported_nothing_is_put_in_without_tls() {
    let site = plain_origin().await;
    let sandbox = Sandbox::new(&site, &[Place::Body(1000)]).await;
    let sandbox = Sandbox::with(&site, sandbox.credentials.report_bodies_only());
    let mut events = sandbox.proxy.subscribe();
    let answer = upload(&sandbox, &[sandbox.placeholder.as_bytes()]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(site.heads(), [sandbox.placeholder.as_str()]);
    let alert = next(&mut events, Kind::Alert).await;
    assert_eq!(alert.credential.as_deref(), Some("ours"));
}
