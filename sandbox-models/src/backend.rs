//! The seam: what a model back end does for those who use it, and the data that it reports.
//!
//! The trait is as small as chat allows. Whatever follows from it lives in [`ModelBackendExt`]; what
//! differs between back ends is data ([`Capabilities`]), not a method that answers "unsupported".

use std::fmt::Debug;
use std::future::Future;

use async_trait::async_trait;
use futures::StreamExt;

use crate::{ChatRequest, Collector, Completion, DeltaStream, Message, ModelName, Result};

/// Something that answers for models.
///
/// All methods may be called at once from many tasks; each request stands alone. Implementations
/// pass `testing::contract` (feature `testing`).
#[async_trait]
pub trait ModelBackend: Debug + Send + Sync + 'static {
    /// Returns what holds for every request to this back end. Never changes, costs nothing.
    fn capabilities(&self) -> Capabilities;

    /// Lists the models that can be asked at this moment, in no particular order.
    ///
    /// Idempotent. Dropping the future stops the question.
    ///
    /// # Errors
    ///
    /// `Disconnected` or `TimedOut` if the back end is not there, `PermissionDenied` if it does not
    /// know the caller, `Protocol` if its answer makes no sense.
    async fn models(&self) -> Result<Vec<ModelInfo>>;

    /// Continues the conversation and returns the answer when it is whole.
    ///
    /// Not idempotent: each call is a new answer. Dropping the future gives the answer up; whether
    /// that also ends the computation, [`Capabilities::stops_on_drop`] tells.
    ///
    /// # Errors
    ///
    /// - `Invalid`: the request itself ([`ChatRequest::check`]), or a conversation longer than the
    ///   model's context.
    /// - `NotFound`: no such model ([`Capabilities::checks_names`]).
    /// - `PermissionDenied`: the back end does not know the caller.
    /// - `Exhausted`: too much to do, or an answer beyond a limit of ours.
    /// - `TimedOut`, `Disconnected`, `Protocol`: the back end stalls, is gone, or talks nonsense.
    async fn chat(&self, request: ChatRequest) -> Result<Completion>;

    /// Continues the conversation and returns the answer as it is made.
    ///
    /// The stream is text and reasoning, then one [`Delta::Finish`](crate::Delta::Finish), then at
    /// most one [`Delta::Usage`](crate::Delta::Usage), then its end, which it repeats if polled on.
    /// Or it fails: then an error is its last item. A stream that ends without `Finish` does not
    /// happen, so that a cut answer is never taken for a whole one. Nothing is read ahead of the
    /// reader but what one network read holds. Dropping it is the same as for [`chat`](Self::chat).
    ///
    /// # Errors
    ///
    /// As [`chat`](Self::chat); what is known before the first piece comes from the call, the rest
    /// from the stream.
    async fn chat_stream(&self, request: ChatRequest) -> Result<DeltaStream>;
}

/// What follows from [`ModelBackend`], for every back end.
pub trait ModelBackendExt: ModelBackend {
    /// Asks for a stream and puts it together, bounded as [`Collector`] is.
    ///
    /// The answer is the same as [`ModelBackend::chat`]'s, but a server that dies or stalls half way
    /// is noticed when it does. Dropping the future gives the answer up.
    ///
    /// # Errors
    ///
    /// As [`ModelBackend::chat_stream`] and [`Collector::push`].
    fn chat_collected(
        &self,
        request: ChatRequest,
    ) -> impl Future<Output = Result<Completion>> + Send {
        async move {
            let mut stream = self.chat_stream(request).await?;
            let mut answer = Collector::new();
            while let Some(delta) = stream.next().await {
                answer.push(delta?)?;
            }
            answer.finish()
        }
    }

    /// Asks one question and returns the text of the answer.
    ///
    /// # Errors
    ///
    /// As [`ModelBackend::chat`].
    fn ask(
        &self,
        model: &ModelName,
        question: impl Into<String> + Send,
    ) -> impl Future<Output = Result<String>> + Send {
        let request = ChatRequest::new(model.clone()).with_message(Message::user(question));
        async move { Ok(self.chat(request).await?.text) }
    }

    /// Tells whether a model of this name is listed, however it is spelled.
    ///
    /// # Errors
    ///
    /// As [`ModelBackend::models`].
    fn offers(&self, model: &ModelName) -> impl Future<Output = Result<bool>> + Send {
        async move {
            let models = self.models().await?;
            Ok(models.iter().any(|info| info.name.as_ref() == Some(model)))
        }
    }
}

impl<T: ModelBackend + ?Sized> ModelBackendExt for T {}

/// What holds for *every* request to a back end. `false` means that nobody vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// A model that is not there is `NotFound`, never answered for by another one.
    pub checks_names: bool,
    /// At temperature 0, the same request gives the same text.
    pub repeatable: bool,
    /// Every answer carries its [`Usage`](crate::Usage), so that a budget of tokens can be kept.
    pub reports_usage: bool,
    /// Dropping a request ends the computation for it, not only the transfer of its answer.
    pub stops_on_drop: bool,
}

impl Capabilities {
    /// Vouches for nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets [`checks_names`](Self::checks_names).
    #[must_use]
    pub fn with_checks_names(mut self, yes: bool) -> Self {
        self.checks_names = yes;
        self
    }

    /// Sets [`repeatable`](Self::repeatable).
    #[must_use]
    pub fn with_repeatable(mut self, yes: bool) -> Self {
        self.repeatable = yes;
        self
    }

    /// Sets [`reports_usage`](Self::reports_usage).
    #[must_use]
    pub fn with_reports_usage(mut self, yes: bool) -> Self {
        self.reports_usage = yes;
        self
    }

    /// Sets [`stops_on_drop`](Self::stops_on_drop).
    #[must_use]
    pub fn with_stops_on_drop(mut self, yes: bool) -> Self {
        self.stops_on_drop = yes;
        self
    }
}

/// A model that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// What the back end itself calls it; any text.
    pub id: String,
    /// What it is asked by. `None` where the id is no name and nobody gave it one.
    pub name: Option<ModelName>,
}

impl ModelInfo {
    /// A model that the back end calls `id`, without a name.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            name: None,
        }
    }

    /// Sets the name that it is asked by.
    #[must_use]
    pub fn with_name(mut self, name: ModelName) -> Self {
        self.name = Some(name);
        self
    }
}
