//! Bodies on their way: requests' are looked through for placeholders, answers' scrubbed; nothing is held but what
//! may be the beginning of a secret.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    credentials::{Found, Refusal, Scanner, Scrubber, Table},
    policy::Target,
    proxy::upstream::Upload,
};

/// A request's body that is looked through for placeholders which do not belong to its target; without TLS none does.
pub(super) struct Watched {
    pub(super) body: Upload,
    pub(super) scanner: Scanner,
    pub(super) table: Arc<Table>,
    /// `None` without TLS.
    pub(super) target: Option<Target>,
    /// Is told of what was found, once.
    pub(super) report: Box<dyn Fn(&Refusal) + Send + Sync>,
    /// Set when the body was stopped.
    pub(super) stopped: Arc<OnceLock<Refusal>>,
    pub(super) reported: bool,
}

impl Watched {
    /// Takes bytes that are about to go on.
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (table, target) = (&self.table, self.target.as_ref());
        let mut misdirected = None;
        self.scanner.push(bytes, |found| {
            if let Found::Entry { index, .. } = found {
                misdirected = misdirected
                    .take()
                    .or_else(|| table.misdirected(index, target));
            }
        });
        let Some(refusal) = misdirected else {
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
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)?);
        if let Some(frame) = &frame {
            if let Some(data) = frame.data_ref() {
                self.look(data)?;
            }
            for (name, value) in frame.trailers_ref().into_iter().flatten() {
                self.look(name.as_str().as_bytes())?;
                self.look(value.as_bytes())?;
            }
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What takes values out of an answer's body as it streams.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Scrubbing {
    scrubber: Scrubber,
    trailers: Option<HeaderMap>,
}

impl Scrubbing {
    pub(super) fn new(scrubber: Scrubber) -> Self {
        Self {
            scrubber,
            trailers: None,
        }
    }

    /// Tells whether nothing is held back.
    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.scrubber.is_empty() && self.trailers.is_none()
    }

    /// Polls a body for its next scrubbed frame.
    pub(in crate::proxy) fn poll_frame<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let mut data = match ready!(Pin::new(&mut *body).poll_frame(cx)?).map(Frame::into_data)
            {
                Some(Ok(data)) => self.scrubber.push(&data),
                Some(Err(frame)) => {
                    self.trailers = frame.into_trailers().ok();
                    if let Some(trailers) = &mut self.trailers {
                        scrub_headers(trailers, &self.scrubber);
                    }
                    self.scrubber.finish()
                }
                None if self.scrubber.is_empty() => return Poll::Ready(None),
                None => self.scrubber.finish(),
            };
            if body.is_end_stream() {
                // Nobody asks again behind the last byte of a declared length.
                data.extend(self.scrubber.finish());
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data.into()))));
            }
        }
    }
}

/// Takes values out of headers.
pub(super) fn scrub_headers(headers: &mut HeaderMap, scrubber: &Scrubber) {
    for value in headers.values_mut() {
        let mut bytes = value.as_bytes().to_vec();
        if scrubber.replace(&mut bytes) {
            *value = http::HeaderValue::from_bytes(&bytes)
                .unwrap_or_else(|_| http::HeaderValue::from_static(""));
        }
    }
}
