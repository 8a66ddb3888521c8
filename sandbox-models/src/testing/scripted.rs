//! A back end that answers from a script and records what it was asked.
//!
//! It holds no clock and no randomness: the same calls in the same order give the same answers. It is
//! a test double and says so; it counts words where a model counts tokens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::{StreamExt, stream};

use crate::{
    Capabilities, ChatRequest, Completion, Delta, DeltaStream, Error, ErrorKind, FinishReason,
    ModelBackend, ModelBackendExt, ModelInfo, ModelName, Result, Usage,
};

/// A [`ModelBackend`] for tests. Clones share the script and the record.
#[derive(Debug, Clone)]
pub struct Scripted {
    models: Vec<ModelName>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: VecDeque<Reply>,
    then: Option<Reply>,
    requests: Vec<ChatRequest>,
}

impl Scripted {
    /// A back end with one model and nothing to say yet.
    pub fn new(model: ModelName) -> Self {
        Self {
            models: vec![model],
            shared: Arc::default(),
        }
    }

    /// Adds a model.
    #[must_use]
    pub fn with_model(mut self, model: ModelName) -> Self {
        self.models.push(model);
        self
    }

    /// Adds an answer to the script; each is given once, in order, to whichever model is asked.
    #[must_use]
    pub fn with_reply(self, reply: Reply) -> Self {
        self.shared().next.push_back(reply);
        self
    }

    /// Sets the answer to everything after the script's end, which is otherwise `Exhausted`.
    #[must_use]
    pub fn with_last_reply(self, reply: Reply) -> Self {
        self.shared().then = Some(reply);
        self
    }

    /// Returns the requests that got an answer from the script, oldest first.
    pub fn requests(&self) -> Vec<ChatRequest> {
        self.shared().requests.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Nothing in here can be half-done, so a test that panicked elsewhere changes nothing.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: ChatRequest) -> Result<(Reply, Usage)> {
        request.check()?;
        if !self.models.contains(&request.model) {
            let reason = format!("there is no model {}", request.model);
            return Err(Error::new(ErrorKind::NotFound, "chat", reason));
        }
        let mut shared = self.shared();
        let Some(reply) = shared.next.pop_front().or_else(|| shared.then.clone()) else {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "chat",
                "the script has ended",
            ));
        };
        let asked = request
            .messages
            .iter()
            .map(|message| words(&message.content))
            .sum();
        let usage = Usage::new(asked, reply.pieces.iter().map(|piece| words(piece)).sum());
        shared.requests.push(request);
        Ok((reply, usage))
    }
}

#[async_trait]
impl ModelBackend for Scripted {
    fn capabilities(&self) -> Capabilities {
        // Not repeatable: the next request gets the script's next answer.
        Capabilities::none()
            .with_checks_names(true)
            .with_reports_usage(true)
            .with_stops_on_drop(true)
    }

    async fn models(&self) -> Result<Vec<ModelInfo>> {
        let info = |name: &ModelName| ModelInfo::new(name.to_string()).with_name(name.clone());
        Ok(self.models.iter().map(info).collect())
    }

    async fn chat(&self, request: ChatRequest) -> Result<Completion> {
        self.chat_collected(request).await
    }

    async fn chat_stream(&self, request: ChatRequest) -> Result<DeltaStream> {
        let (reply, usage) = self.answer(request)?;
        let text = stream::iter(reply.pieces).map(|piece| Ok(Delta::Text(piece)));
        Ok(match reply.end {
            End::Finish(reason) => {
                let end = [Ok(Delta::Finish(reason)), Ok(Delta::Usage(usage))];
                text.chain(stream::iter(end)).boxed()
            }
            End::Fail(kind) => {
                let error = Error::new(kind, "chat", "the script says so");
                text.chain(stream::iter([Err(error)])).boxed()
            }
            End::Stall => text.chain(stream::pending()).boxed(),
        })
    }
}

/// One answer of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pieces: Vec<String>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Finish(FinishReason),
    Fail(ErrorKind),
    Stall,
}

impl Reply {
    /// A whole answer, which comes word by word.
    pub fn text(text: &str) -> Self {
        let pieces = text.split_inclusive(' ').map(str::to_owned).collect();
        Self {
            pieces,
            end: End::Finish(FinishReason::Stop),
        }
    }

    /// A failure with nothing before it. It comes as the first item of the stream.
    pub fn failure(kind: ErrorKind) -> Self {
        Self {
            pieces: Vec::new(),
            end: End::Fail(kind),
        }
    }

    /// Sets why the answer ends.
    #[must_use]
    pub fn then_finish(mut self, reason: FinishReason) -> Self {
        self.end = End::Finish(reason);
        self
    }

    /// Lets the answer fail after its text.
    #[must_use]
    pub fn then_fail(mut self, kind: ErrorKind) -> Self {
        self.end = End::Fail(kind);
        self
    }

    /// Lets the answer stay open after its text, until its reader gives up.
    #[must_use]
    pub fn then_stall(mut self) -> Self {
        self.end = End::Stall;
        self
    }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}
