//! One request over one connection of its own.
//!
//! There is no pool and no background task: whoever waits for the answer also drives the connection,
//! and whoever drops the answer closes the socket, at once and without a runtime's help. That is what
//! tells a server to stop computing. It costs a handshake per request, which on the machine itself is
//! microseconds beside the seconds that an answer takes.
//!
//! Redirects are not followed: the key and the conversation go where the embedder said.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::config::{EndpointConfig, Target};
use crate::{Error, ErrorKind, Result};

/// The largest head of an answer. Servers send a few hundred bytes; hyper's own limit is 400 KiB.
const MAX_HEAD: usize = 64 * 1024;

type Connection = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The body of an answer, with the connection that it comes from. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Body {
    incoming: Incoming,
    connection: Driver,
    operation: &'static str,
}

/// Connects, sends `request` and returns the answer's head. Bounds the connecting, not the waiting.
pub(super) async fn send(
    target: &Target,
    config: &EndpointConfig,
    request: Request<Full<Bytes>>,
    operation: &'static str,
) -> Result<Reply> {
    let connecting = TcpStream::connect((target.host.as_str(), target.port));
    let socket = within(config.connect_timeout, "connect", operation, async {
        connecting.await.map_err(|error| {
            let reason = format!("no connection to {}:{}", target.host, target.port);
            Error::new(ErrorKind::from(&error), operation, reason).with_source(error)
        })
    })
    .await?;
    // Only a matter of latency: a socket that does not take the option still works.
    socket.set_nodelay(true).ok();

    let failed = |error| failure(error, operation);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(socket))
        .await
        .map_err(failed)?;
    let mut driver = Driver(Some(Box::pin(connection)));
    let mut answer = pin!(sender.send_request(request));
    let answer = poll_fn(|cx| {
        driver.poll(cx);
        answer.as_mut().poll(cx)
    });
    let (head, incoming) = answer.await.map_err(failed)?.into_parts();
    let body = Body {
        incoming,
        connection: driver,
        operation,
    };
    Ok(Reply {
        status: head.status,
        headers: head.headers,
        body,
    })
}

/// Bounds a wait; `what` is what did not happen in time.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    operation: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let reason = format!("the server did not {what} within {limit:?}");
        Err(Error::new(ErrorKind::TimedOut, operation, reason))
    })
}

impl Reply {
    /// Tells whether the answer says to be of this media type, whatever its parameters.
    pub(super) fn is(&self, media_type: &str) -> bool {
        let said = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let essence = said
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default();
        essence.trim().eq_ignore_ascii_case(media_type)
    }
}

impl Body {
    /// Waits for the next bytes; `None` is the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Reads everything, up to `limit` bytes.
    pub(super) async fn whole(mut self, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk?;
            if bytes.len().saturating_add(chunk.len()) > limit {
                let reason = format!("the answer is longer than the limit of {limit} bytes");
                return Err(Error::new(ErrorKind::Exhausted, self.operation, reason));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Reads what is worth reading of an error: its beginning, as far as it comes without fault.
    pub(super) async fn beginning(mut self, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < limit
            && let Some(Ok(chunk)) = self.chunk().await
        {
            bytes.extend_from_slice(&chunk[..chunk.len().min(limit - bytes.len())]);
        }
        bytes
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        self.connection.poll(cx);
        loop {
            match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(failure(error, self.operation)))),
                Some(Ok(frame)) => {
                    // Trailers say nothing that we need.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

/// The connection, as long as there is something to drive.
#[derive(Debug)]
struct Driver(Option<Pin<Box<Connection>>>);

impl Driver {
    /// Lets the connection read and write. Its errors reach whoever waits for the answer or the body.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && connection.as_mut().poll(cx).is_ready()
        {
            self.0 = None;
        }
    }
}

/// Says what a caller can do about a failure of the connection.
fn failure(error: hyper::Error, operation: &'static str) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&error);
    let mut io = None;
    while let Some(inner) = cause {
        io = io.or(inner.downcast_ref::<std::io::Error>());
        cause = inner.source();
    }
    let (kind, reason) = if error.is_parse() {
        // A client cannot tell a head that is too long from one that is nonsense.
        (
            ErrorKind::Protocol,
            "the head of the answer is not HTTP, or longer than 64 KiB",
        )
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        (
            ErrorKind::Disconnected,
            "the server closed the connection before it had answered",
        )
    } else if let Some(io) = io {
        (ErrorKind::from(io), "the connection failed")
    } else {
        (ErrorKind::Protocol, "the exchange failed")
    };
    Error::new(kind, operation, reason).with_source(error)
}
