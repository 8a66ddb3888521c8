//! One HTTP connection to an origin.
//!
//! In HTTP/1 its answers pass a [gate](super::super::gate), so that what could be read in two ways ends it. hyper
//! writes requests anew and reads answers; a task of its own moves the bytes, and ends when the connection is
//! dropped.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sandbox_base::BoxStream;
use tokio::task::{AbortHandle, JoinHandle};

use super::{
    super::{
        gate::{Answering, Asked, Gated},
        limits::Limits,
        meter::{Meter, Metered},
        slow::{self, Timed},
    },
    AbsoluteForm, Link, Protocol,
};

/// A request's body.
pub(in crate::proxy) enum Upload {
    /// As it comes from the client.
    Client(Incoming),
    /// As it comes from the client, unless that takes too long.
    Timed(Timed),
    /// Made by the proxy, maybe of what comes from the client.
    Made(UnsyncBoxBody<Bytes, io::Error>),
}

impl Upload {
    /// A body of no bytes.
    pub(in crate::proxy) fn empty() -> Self {
        Self::Made(Empty::new().map_err(|never| match never {}).boxed_unsync())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Client(body) => Pin::new(body).poll_frame(cx).map_err(io::Error::other),
            Self::Timed(body) => Pin::new(body).poll_frame(cx),
            Self::Made(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(body) => body.is_end_stream(),
            Self::Timed(body) => body.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(body) => body.size_hint(),
            Self::Timed(body) => body.size_hint(),
            Self::Made(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

/// The bounds of a connection to an origin.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Settings {
    head_bytes: usize,
    headers: usize,
}

impl Settings {
    pub(in crate::proxy) fn new(limits: &Limits) -> Self {
        Self {
            // hyper panics below 8,192.
            head_bytes: limits.head_bytes.max(8192),
            headers: limits.headers,
        }
    }
}

/// A connection that takes requests.
#[derive(Debug)]
pub(in crate::proxy) struct Origin {
    sender: Sender,
    driver: Arc<Driver>,
    answering: Arc<Answering>,
    meter: Arc<Meter>,
    absolute: Option<AbsoluteForm>,
}

/// A request that got no answer.
#[derive(Debug)]
pub(in crate::proxy) struct Unsent {
    pub(in crate::proxy) what: &'static str,
    /// The request, if none of it was sent.
    pub(in crate::proxy) request: Option<Box<Request<Upload>>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Upload>),
    Http2(http2::SendRequest<Upload>),
}

/// The task that moves bytes; it ends with its last holder.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Origin {
    /// Begins HTTP on a connection.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub(in crate::proxy) async fn begin(link: Link, settings: &Settings) -> hyper::Result<Self> {
        let meter = Arc::new(Meter::default());
        let answering = Arc::new(Answering::default());
        let absolute = link.absolute;
        let metered = Metered::new(link.stream, Arc::clone(&meter));
        let (sender, driver) = match link.protocol {
            Protocol::Http1 => {
                let gated = Gated::answers(metered, settings.head_bytes, Arc::clone(&answering));
                begin_http1(gated, settings).await?
            }
            Protocol::Http2 => begin_http2(metered, settings).await?,
        };
        Ok(Self {
            sender,
            driver: Arc::new(Driver(driver.abort_handle())),
            answering,
            meter,
            absolute,
        })
    }

    /// Sends a request and returns the answer's head, with the body still to come.
    ///
    /// # Errors
    ///
    /// When the connection broke, or the answer is not one; [`wrong`](Self::wrong) may say what is wrong with it.
    pub(in crate::proxy) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, Unsent> {
        self.answering.ask(asked(&request));
        let sent = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut failed| Unsent {
            what: match failed.error() {
                error if slow::is_cause(error) => slow::TOO_SLOW,
                error if error.is_parse() => "the host's answer is not HTTP",
                _ => "the host ended the connection without an answer",
            },
            request: failed.take_message().map(Box::new),
        })
    }

    /// Returns what is spoken on it.
    pub(in crate::proxy) fn protocol(&self) -> Protocol {
        match self.sender {
            Sender::Http1(_) => Protocol::Http1,
            Sender::Http2(_) => Protocol::Http2,
        }
    }

    /// Returns how requests are written for an upstream proxy that forwards them; `None` for an origin.
    pub(in crate::proxy) fn absolute(&self) -> Option<&AbsoluteForm> {
        self.absolute.as_ref()
    }

    /// Whether several requests can be under way at a time.
    pub(in crate::proxy) fn is_shared(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Whether another request can be sent now, and nothing irregular was seen.
    pub(in crate::proxy) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready() && self.answering.is_whole(),
            Sender::Http2(sender) => sender.is_ready(),
        }
    }

    /// Whether nothing can be sent any more.
    pub(in crate::proxy) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed() || self.answering.wrong().is_some(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Returns another handle if several requests can be under way at a time.
    pub(in crate::proxy) fn share(&self) -> Option<Self> {
        let Sender::Http2(sender) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(sender.clone()),
            driver: Arc::clone(&self.driver),
            answering: Arc::clone(&self.answering),
            meter: Arc::clone(&self.meter),
            absolute: self.absolute.clone(),
        })
    }

    /// Returns what is wrong with what the origin sent.
    pub(in crate::proxy) fn wrong(&self) -> Option<&'static str> {
        self.answering.wrong()
    }

    /// Returns the bytes that have passed since the connection began.
    pub(in crate::proxy) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

type Begun = Pin<Box<dyn Future<Output = hyper::Result<(Sender, JoinHandle<()>)>> + Send>>;

/// Boxed, so that what hyper is made of stays out of the types of those who wait.
fn begin_http1(stream: Gated<Metered<BoxStream>>, settings: &Settings) -> Begun {
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(settings.head_bytes)
        .max_headers(settings.headers);
    Box::pin(async move {
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(drive(connection.with_upgrades()));
        Ok((Sender::Http1(sender), driver))
    })
}

fn begin_http2(stream: Metered<BoxStream>, settings: &Settings) -> Begun {
    let builder = http2_client(settings);
    Box::pin(async move {
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        Ok((Sender::Http2(sender), tokio::spawn(drive(connection))))
    })
}

fn asked<B>(request: &Request<B>) -> Asked {
    match *request.method() {
        _ if request.headers().contains_key(header::UPGRADE) => Asked::Upgrade,
        Method::HEAD => Asked::Head,
        _ => Asked::Body,
    }
}

/// Bounds that an origin cannot raise: windows as large as one read, small header tables, few resets.
fn http2_client(settings: &Settings) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(u32::try_from(settings.head_bytes).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(16)
        .max_send_buf_size(64 * 1024);
    builder
}

async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(error, "the connection to an origin broke");
    }
}
