//! The vocabulary of a conversation: what is asked, and the pieces in which the answer comes.
//!
//! The types are those of the seam, not of any wire format; `api` translates. They are data without
//! behaviour, except that [`ChatRequest::check`] says what no back end may accept.

use futures::stream::BoxStream;
use sandbox_base::ErrorKind;

use crate::{Error, ModelName, Result};

/// An answer in pieces, in order. See [`ModelBackend::chat_stream`](crate::ModelBackend::chat_stream)
/// for what the stream guarantees.
pub type DeltaStream = BoxStream<'static, Result<Delta>>;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The one who sets the rules.
    System,
    /// The one who asks.
    User,
    /// The model, in what it said before.
    Assistant,
}

/// One turn of the conversation so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message with any role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }

    /// A rule for the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A question to the model.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said before.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// A conversation to be continued by one model. What is `None` is left to the back end.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChatRequest {
    /// Who is asked.
    pub model: ModelName,
    /// The conversation so far, oldest first; at least one message.
    pub messages: Vec<Message>,
    /// Tokens after which the answer is cut, at least 1.
    pub max_tokens: Option<u32>,
    /// How freely the model chooses, 0 to 2; at 0 it takes the likeliest token.
    pub temperature: Option<f32>,
    /// The share of the likeliest tokens to choose from, above 0 and up to 1.
    pub top_p: Option<f32>,
    /// The seed of the choice; 32 bits, because that is what every engine takes.
    pub seed: Option<u32>,
    /// Texts before which the answer ends; none is empty.
    pub stop: Vec<String>,
}

impl ChatRequest {
    /// Starts a conversation with `model`, without a message yet.
    pub fn new(model: ModelName) -> Self {
        Self {
            model,
            messages: Vec::new(),
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            stop: Vec::new(),
        }
    }

    /// Adds a message at the end.
    #[must_use]
    pub fn with_message(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// Sets [`max_tokens`](Self::max_tokens).
    #[must_use]
    pub fn with_max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Sets [`temperature`](Self::temperature).
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Sets [`top_p`](Self::top_p).
    #[must_use]
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = Some(top_p);
        self
    }

    /// Sets [`seed`](Self::seed).
    #[must_use]
    pub fn with_seed(mut self, seed: u32) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Adds a text to [`stop`](Self::stop).
    #[must_use]
    pub fn with_stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Checks what the fields' documentation demands. Back ends call it before anything else, so
    /// that a bad request is the same error everywhere and costs nothing.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the first field that is wrong.
    pub fn check(&self) -> Result<()> {
        let invalid = |reason| Err(Error::new(ErrorKind::Invalid, "chat", reason));
        if self.messages.is_empty() {
            return invalid("the request has no messages");
        }
        if self.max_tokens == Some(0) {
            return invalid("max_tokens is 0; it is at least 1");
        }
        // Written so that not-a-number fails as well.
        if self.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            return invalid("temperature is not from 0 to 2");
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return invalid("top_p is not above 0 and up to 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return invalid("a stop text is empty");
        }
        Ok(())
    }
}

/// One piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delta {
    /// More of the answer's text; never empty.
    Text(String),
    /// More of what the model thinks aloud before it answers; never empty.
    Reasoning(String),
    /// The answer is complete, for this reason. Comes once.
    Finish(FinishReason),
    /// What the answer cost. Comes at most once, after [`Delta::Finish`].
    Usage(Usage),
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model was done, or a stop text came.
    Stop,
    /// The answer was cut: `max_tokens`, or the context is full.
    Length,
    /// A filter of the server held text back.
    ContentFilter,
    /// Something else, in the server's word.
    Other(String),
}

/// What an answer cost, in tokens, as the back end counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the conversation that was sent.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

impl Usage {
    /// Counts for both directions.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
        }
    }

    /// Returns the sum, which stays at the largest number instead of overflowing.
    pub fn total(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// The answer's text; empty if the model said nothing.
    pub text: String,
    /// What the model thought aloud; mostly empty.
    pub reasoning: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it cost, where the back end tells.
    pub usage: Option<Usage>,
}

impl Completion {
    /// An answer of `text` that ended for the reason `finish`.
    pub fn new(text: impl Into<String>, finish: FinishReason) -> Self {
        Self {
            text: text.into(),
            reasoning: String::new(),
            finish,
            usage: None,
        }
    }

    /// Sets [`reasoning`](Self::reasoning).
    #[must_use]
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning = reasoning.into();
        self
    }

    /// Sets [`usage`](Self::usage).
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ChatRequest {
        let model = "ai/smollm2".parse().expect("a valid name");
        ChatRequest::new(model).with_message(Message::user("hello"))
    }

    #[test]
    fn bounds_are_inclusive_where_the_documentation_says_so() {
        let widest = request()
            .with_temperature(2.0)
            .with_top_p(1.0)
            .with_max_tokens(1);
        assert!(widest.check().is_ok());
        assert!(request().with_temperature(0.0).check().is_ok());
    }

    #[test]
    fn what_no_model_can_answer_is_invalid() {
        let mut silent = request();
        silent.messages.clear();
        let bad = [
            silent,
            request().with_max_tokens(0),
            request().with_temperature(f32::NAN),
            request().with_temperature(-0.1),
            request().with_top_p(0.0),
            request().with_top_p(f32::INFINITY),
            request().with_stop(""),
        ];
        for request in bad {
            let error = request.check().expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Invalid, "{request:?}");
        }
    }

    #[test]
    fn a_total_of_absurd_counts_does_not_overflow() {
        assert_eq!(Usage::new(u64::MAX, 1).total(), u64::MAX);
    }
}
