//! Bodies on their way: requests' are looked through for placeholders, answers' scrubbed; nothing is held but what
//! a secret goes into.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::{
    credentials::{Found, Refusal, Scanner, Scrubber, Table},
    policy::Target,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body towards the origin.
pub(super) enum Outgoing {
    /// As it comes from the client.
    Streamed(Incoming, Option<Watch>),
    /// Held, with its secrets in it.
    Whole(Full<Bytes>),
}

/// Looks through a body for placeholders that do not belong to its target.
pub(super) struct Watch {
    pub(super) scanner: Scanner,
    pub(super) table: Arc<Table>,
    pub(super) target: Target,
    /// Is told of what was found, once.
    pub(super) report: Box<dyn Fn(&Refusal) + Send + Sync>,
    /// Set when the body was stopped.
    pub(super) stopped: Arc<OnceLock<Refusal>>,
    pub(super) reported: bool,
}

impl Watch {
    /// Takes bytes that are about to go on.
    fn look(&mut self, bytes: &[u8]) -> Result<(), BoxError> {
        let (table, target) = (&self.table, &self.target);
        let mut misdirected = None;
        self.scanner.push(bytes, |found| {
            if let Found::Entry { index, .. } = found {
                misdirected = misdirected.or(table.misdirected(index, target));
            }
        });
        let Some(refusal) = misdirected.map(|name| Refusal::Unbound(name.to_owned())) else {
            return Ok(());
        };
        if !std::mem::replace(&mut self.reported, true) {
            (self.report)(&refusal);
        }
        if self.table.tolerant {
            return Ok(());
        }
        let text = refusal.to_string();
        self.stopped.get_or_init(|| refusal);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text).into())
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Streamed(body, watch) => {
                let frame = ready!(Pin::new(body).poll_frame(cx)?);
                if let (Some(watch), Some(frame)) = (watch, &frame) {
                    if let Some(data) = frame.data_ref() {
                        watch.look(data)?;
                    }
                    for (name, value) in frame.trailers_ref().into_iter().flatten() {
                        watch.look(name.as_str().as_bytes())?;
                        watch.look(value.as_bytes())?;
                    }
                }
                Poll::Ready(frame.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body, _) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outgoing(..)")
    }
}

/// An answer's body towards the client.
#[derive(Debug)]
pub(super) enum Answer {
    /// The proxy's own.
    Own(Full<Bytes>),
    /// As it comes from the origin.
    Streamed(Incoming),
    /// Without the values that it must not repeat.
    Scrubbed(Scrubbed),
}

/// A body that is scrubbed as it streams.
#[derive(Debug)]
pub(super) struct Scrubbed {
    body: Incoming,
    scrubber: Scrubber,
    trailers: Option<HeaderMap>,
}

impl Scrubbed {
    pub(super) fn new(body: Incoming, scrubber: Scrubber) -> Self {
        Self {
            body,
            scrubber,
            trailers: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)?) {
                Some(frame) => match frame.into_data() {
                    Ok(data) => {
                        let data = self.scrubber.push(&data);
                        if !data.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(data.into()))));
                        }
                        continue;
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok().map(|mut trailers| {
                            scrub_headers(&mut trailers, &self.scrubber);
                            trailers
                        });
                    }
                },
                None if self.scrubber.is_empty() => return Poll::Ready(None),
                None => {}
            }
            // The stream has ended but for its trailers.
            let held = self.scrubber.finish();
            if !held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(held.into()))));
            }
        }
    }
}

/// Takes values out of headers. One that becomes something that no header holds is dropped.
pub(super) fn scrub_headers(headers: &mut HeaderMap, scrubber: &Scrubber) {
    for value in headers.values_mut() {
        let mut bytes = value.as_bytes().to_vec();
        if scrubber.replace(&mut bytes) {
            *value = http::HeaderValue::from_bytes(&bytes)
                .unwrap_or_else(|_| http::HeaderValue::from_static(""));
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Scrubbed(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
            Self::Scrubbed(Scrubbed {
                body,
                scrubber,
                trailers,
            }) => body.is_end_stream() && scrubber.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
            // No length changes; but what is held back is not in the origin's hint any more.
            Self::Scrubbed(Scrubbed { body, scrubber, .. }) if scrubber.is_empty() => {
                body.size_hint()
            }
            Self::Scrubbed(_) => SizeHint::default(),
        }
    }
}
