//! A streamed answer as it is read: chunks from the network, through the decoder, to the reader.
//!
//! Nothing is read before the reader asks, so a slow reader slows the server down and holds one
//! chunk. The socket is closed when the answer is done, has failed, or is dropped.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::http::{Body, within};
use super::{CHAT, Inner};
use crate::api::stream::ChatDecoder;
use crate::{Delta, DeltaStream, Error, Result};

/// Reads `body` as a streamed answer.
pub(super) fn deltas(endpoint: Arc<Inner>, body: Body) -> DeltaStream {
    let decoder = ChatDecoder::new(endpoint.config.max_event);
    let reader = Reader {
        endpoint,
        body: Some(body),
        begun: false,
        decoder,
        ready: VecDeque::new(),
        failed: None,
    };
    stream::unfold(reader, |mut reader| async move {
        let delta = reader.next().await?;
        Some((delta, reader))
    })
    .fuse()
    .boxed()
}

struct Reader {
    endpoint: Arc<Inner>,
    /// `None` when nothing more is to be read.
    body: Option<Body>,
    /// Whether a first byte came. Many servers send the head at once, and then read the question.
    begun: bool,
    decoder: ChatDecoder,
    ready: VecDeque<Delta>,
    /// The error that follows what is ready.
    failed: Option<Error>,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Delta>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Some(Ok(delta));
            }
            if let Some(error) = self.failed.take() {
                return Some(Err(self.endpoint.redacted(error)));
            }
            let body = self.body.as_mut()?;
            let fed = match next_chunk(&self.endpoint, body, self.begun).await {
                Ok(Some(bytes)) => self.decoder.feed(&bytes, &mut self.ready),
                Ok(None) => self.decoder.end(&mut self.ready),
                Err(error) => Err(error),
            };
            self.begun = true;
            self.failed = fed.err();
            if self.failed.is_some() || self.decoder.is_done() {
                self.body = None;
            }
        }
    }
}

/// Waits for the next bytes, as long as this point of an answer allows.
async fn next_chunk(endpoint: &Inner, body: &mut Body, begun: bool) -> Result<Option<Bytes>> {
    let (limit, what) = match begun {
        false => (endpoint.config.answer_timeout, "begin the stream"),
        true => (endpoint.config.idle_timeout, "go on with the stream"),
    };
    within(limit, what, CHAT, async { body.chunk().await.transpose() }).await
}
