//! One connection from the sandbox: its requests, and the tunnel that it may become.
//!
//! The same code serves what comes to the proxy's port, what was captured, and what was found inside a tunnel
//! that was decrypted: a [`Front`] says how requests name their target. HTTP/1 passes a [gate](super::gate)
//! first; HTTP/2 has one framing only, and bounds of its own here.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sandbox_base::ByteStream;

#[cfg(feature = "inspect")]
use super::inspected;
use super::{
    Shared,
    client::Client,
    exchange,
    gate::{Gated, Stopped},
    inside::Inside,
    lease::{Cut, silence},
    limits::Limits,
    meter::{Meter, Metered},
    raw::Raw,
    reply::{self, Body},
    request::{self, Ask, Refusal},
    slow::Timed,
    tunnel::{self, Tunnel},
    upstream::{Protocol, Upload},
};
use crate::{event::Kind, policy::Target};

/// How requests on a connection name their target.
#[derive(Clone)]
pub(super) enum Front {
    /// As to a proxy: CONNECT and absolute URIs.
    Forward,
    /// As to an origin: all go to the one target of a decrypted tunnel.
    Inside(Arc<Inside>),
    /// As to an origin: all go to where the connection was going before it was captured.
    Captured(Arc<Target>),
}

/// What a connection becomes once hyper has let go of it.
#[derive(Debug)]
pub(super) enum Successor {
    /// CONNECT was answered.
    Tunnel(Box<Tunnel>),
    /// An upgrade was agreed on.
    Raw(Box<Raw>),
}

/// Serves one connection to its end, tunnel included. Dropping the future closes everything it opened.
pub(super) async fn serve(shared: Arc<Shared>, id: u64, stream: impl ByteStream + 'static) {
    let client = Client::new(shared, id);
    serve_http1(&client, Front::Forward, stream).await;
}

/// Serves plain HTTP on a connection that was captured on its way to a target.
pub(super) async fn serve_captured(
    client: &Client,
    target: Target,
    stream: impl ByteStream + 'static,
) {
    serve_http1(client, Front::Captured(Arc::new(target)), stream).await;
}

/// Serves a stream that was decrypted, to its end.
#[cfg_attr(
    not(any(feature = "inspect", test)),
    expect(dead_code, reason = "nothing decrypts tunnels")
)]
pub(super) async fn serve_inside(
    client: &Client,
    inside: Arc<Inside>,
    stream: (impl ByteStream + 'static, Protocol),
) {
    let front = Front::Inside(inside);
    match stream {
        (stream, Protocol::Http1) => Box::pin(serve_http1(client, front, stream)).await,
        (stream, Protocol::Http2) => serve_http2(client, front, stream).await,
    }
}

async fn serve_http1<S: ByteStream + 'static>(client: &Client, front: Front, stream: S) {
    let stopped = Stopped::default();
    let meter = Arc::new(Meter::default());
    let metered = Metered::new(stream, Arc::clone(&meter));
    let limits = &client.shared.limits;
    let gated = Gated::requests(metered, head_bytes(limits), Arc::clone(&stopped));
    let answering = Answering {
        client: client.clone(),
        front,
        stopped,
    };
    let service = service_fn(move |request| {
        let answering = answering.clone();
        async move { Ok::<_, Infallible>(answering.answer(request).await) }
    });
    let mut serving = pin!(
        http1_server(limits)
            .serve_connection(TokioIo::new(gated), service)
            .with_upgrades()
    );
    let gracefully = async {
        tokio::select! {
            served = &mut serving => return served,
            () = client.closing() => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    };
    tokio::select! {
        served = gracefully => served.unwrap_or_else(|error| report_broken(client, &error)),
        () = ended(client, &meter) => return,
    }
    let Some((upgrade, successor)) = client.take_successor() else {
        return;
    };
    // hyper gives back what it was given; an error means that the client was gone before it had its answer.
    let Some(parts) = upgrade
        .await
        .ok()
        .and_then(|upgraded| upgraded.downcast::<TokioIo<Gated<Metered<S>>>>().ok())
    else {
        return;
    };
    let (mut stream, passed) = parts.io.into_inner().into_parts();
    let early = [&parts.read_buf[..], &passed].concat();
    match successor {
        Successor::Tunnel(tunnel) => run_tunnel(client, *tunnel, (stream, early)).await,
        Successor::Raw(raw) => raw.run(client, &mut stream, early).await,
    }
}

/// Carries a tunnel to its end, opened where it is to be opened. Some of the client's bytes may have come already.
pub(super) async fn run_tunnel<S: ByteStream + 'static>(
    client: &Client,
    tunnel: Tunnel,
    (mut stream, early): (S, Vec<u8>),
) {
    #[cfg(feature = "inspect")]
    if let Some(inspector) = client.inspector(&tunnel.lease) {
        let opened = (tunnel, inspector);
        return inspected::run(client.clone(), opened, (Box::new(stream), early)).await;
    }
    tunnel.run(client, &mut stream, early).await;
}

async fn serve_http2(client: &Client, front: Front, stream: impl ByteStream + 'static) {
    let meter = Arc::new(Meter::default());
    let metered = Metered::new(stream, Arc::clone(&meter));
    let answering = Answering {
        client: client.clone(),
        front,
        stopped: Stopped::default(),
    };
    let service = service_fn(move |request| {
        let answering = answering.clone();
        // Boxed, because each runs in a task of its own.
        let answer: Pin<Box<dyn Future<Output = Response<Body>> + Send>> =
            Box::pin(answering.answer(request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let server = http2_server(&client.shared.limits);
    let mut serving = pin!(server.serve_connection(TokioIo::new(metered), service));
    let gracefully = async {
        tokio::select! {
            served = &mut serving => return served,
            () = client.closing() => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    };
    tokio::select! {
        served = gracefully => served.unwrap_or_else(|error| report_broken(client, &error)),
        () = ended(client, &meter) => {}
    }
}

/// Waits until the connection has to end although both sides would go on.
pub(super) async fn ended(client: &Client, meter: &Meter) {
    tokio::select! {
        () = client.revoked() => {}
        // A client that reads nothing would keep its place for ever.
        () = silence(meter, client.shared.limits.idle_timeout) => client.cut(Cut::Idle),
    }
}

/// What answers the requests of a connection.
#[derive(Clone)]
struct Answering {
    client: Client,
    front: Front,
    stopped: Stopped,
}

impl Answering {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let mut response = self.answer_one(request).await;
        if upgrades && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // What the client sent behind such a request has passed the gate unseen.
            close(&mut response);
        }
        response
    }

    async fn answer_one(&self, request: Request<Incoming>) -> Response<Body> {
        // Whatever is wrong with its bytes has to end the connection.
        if self.stopped.get().is_none() && self.client.take_turn().is_err() {
            let mut response = reply::too_many();
            if request.method() == http::Method::CONNECT {
                close(&mut response);
            }
            return response;
        }
        let (head, body) = request.into_parts();
        let asked = match (self.stopped.get(), &self.front) {
            (Some(what), _) => Err(Refusal::Malformed(what)),
            (None, Front::Forward) => request::read(&head),
            (None, Front::Inside(inside)) => inside.read(&head),
            (None, Front::Captured(target)) => request::read_captured(&head, target),
        };
        match asked {
            Ok(Ask::Tunnel(target)) => {
                let upgrade = hyper::upgrade::on(Request::from_parts(head, body));
                let mut response = tunnel::open(&self.client, target, upgrade).await;
                if response.status() != StatusCode::OK {
                    // What the client sent behind its request was meant for the tunnel and is no HTTP.
                    close(&mut response);
                }
                response
            }
            Ok(Ask::Http(target)) => {
                let upload = match head.version {
                    http::Version::HTTP_2 => Upload::Client(body),
                    _ => Upload::Timed(Timed::new(body, &self.client.shared.limits)),
                };
                let request = Request::from_parts(head, upload);
                match &self.front {
                    Front::Forward | Front::Captured(_) => {
                        exchange::plain(&self.client, target, request).await
                    }
                    Front::Inside(inside) => inside.forward(&self.client, request).await,
                }
            }
            Err(refusal) => {
                self.client.emit(Kind::Refused, |event| {
                    let event = event.with_request(head.method.as_str(), None);
                    event.with_reason(refusal.reason(), &refusal.to_string())
                });
                reply::refused(&refusal, head.version)
            }
        }
    }
}

fn close(response: &mut Response<Body>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

fn report_broken(client: &Client, error: &hyper::Error) {
    let reason = match error {
        error if error.is_timeout() => "head-timeout",
        error if error.is_parse() => "malformed",
        // The client went away, which is its right.
        _ => return,
    };
    client.emit(Kind::Refused, |event| {
        event.with_reason(reason, &error.to_string())
    });
}

/// The bound on a head. hyper panics below 8,192, and cannot read a head at all in much less.
fn head_bytes(limits: &Limits) -> usize {
    limits.head_bytes.max(8192)
}

fn http1_server(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(head_bytes(limits))
        .max_header_size(head_bytes(limits))
        .max_headers(limits.headers);
    http
}

/// Bounds of one HTTP/2 connection. A client that resets streams faster than they are served, floods CONTINUATION
/// or packs headers is told ENHANCE_YOUR_CALM by the h2 library, within these.
fn http2_server(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let head = u32::try_from(head_bytes(limits)).unwrap_or(u32::MAX);
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        // As nginx and Apache have it (RFC 9113, 6.5.2 asks for no less than 100).
        .max_concurrent_streams(128)
        .max_header_list_size(head)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(64)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_frame_size(16 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(limits.head_timeout);
    http
}

/// Whether an upgrade is the one kind that is carried.
pub(super) fn is_websocket(value: Option<&HeaderValue>) -> bool {
    value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The way back to a client's stream, with what is to become of it.
pub(super) type Becoming = (OnUpgrade, Successor);
