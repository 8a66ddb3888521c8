//! Pieces of an answer put together again, bounded.
//!
//! The pieces come from a stream that may be wrong: text after the end, an end that never comes, or
//! more text than anybody asked for. None of these becomes a [`Completion`].

use sandbox_base::ErrorKind;

use crate::{Completion, Delta, Error, FinishReason, Result, Usage};

/// Text that one answer may hold unless the caller says otherwise: far more than any context.
const DEFAULT_LIMIT: usize = 16 * 1024 * 1024;

const OPERATION: &str = "put the answer together";

/// Puts the pieces of one answer together.
#[derive(Debug)]
pub struct Collector {
    limit: usize,
    text: String,
    reasoning: String,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector {
    /// Starts with nothing, and a limit of 16 MiB of text and reasoning together.
    pub fn new() -> Self {
        Self {
            limit: DEFAULT_LIMIT,
            text: String::new(),
            reasoning: String::new(),
            finish: None,
            usage: None,
        }
    }

    /// Sets how many bytes of text and reasoning are held at most.
    #[must_use]
    pub fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Adds the next piece.
    ///
    /// # Errors
    ///
    /// `Exhausted` beyond the limit; `Protocol` for text after the end, or a second end.
    pub fn push(&mut self, delta: Delta) -> Result<()> {
        match delta {
            Delta::Usage(usage) => self.usage = Some(usage),
            _ if self.finish.is_some() => {
                let reason = "a piece came after the end";
                return Err(Error::new(ErrorKind::Protocol, OPERATION, reason));
            }
            Delta::Finish(reason) => self.finish = Some(reason),
            Delta::Text(text) => {
                self.admit(text.len())?;
                self.text.push_str(&text);
            }
            Delta::Reasoning(text) => {
                self.admit(text.len())?;
                self.reasoning.push_str(&text);
            }
        }
        Ok(())
    }

    /// Returns the answer.
    ///
    /// # Errors
    ///
    /// `Disconnected` if no [`Delta::Finish`] came: what is there is not the whole answer.
    pub fn finish(self) -> Result<Completion> {
        let Self {
            text,
            reasoning,
            finish,
            usage,
            limit: _,
        } = self;
        let finish = finish.ok_or_else(|| {
            Error::new(
                ErrorKind::Disconnected,
                OPERATION,
                "the pieces ended before the answer did",
            )
        })?;
        Ok(Completion {
            text,
            reasoning,
            finish,
            usage,
        })
    }

    fn admit(&self, more: usize) -> Result<()> {
        let held = self.text.len().saturating_add(self.reasoning.len());
        if held.saturating_add(more) > self.limit {
            let reason = format!("it is longer than the limit of {} bytes", self.limit);
            return Err(Error::new(ErrorKind::Exhausted, OPERATION, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Delta {
        Delta::Text(text.to_owned())
    }

    #[test]
    fn pieces_become_the_answer_in_order() {
        let mut all = Collector::new();
        let pieces = [
            Delta::Reasoning("hm".into()),
            text("a"),
            text("b"),
            Delta::Finish(FinishReason::Stop),
            Delta::Usage(Usage::new(3, 2)),
        ];
        for piece in pieces {
            all.push(piece).expect("in order");
        }
        let expected = Completion::new("ab", FinishReason::Stop)
            .with_reasoning("hm")
            .with_usage(Usage::new(3, 2));
        assert_eq!(all.finish().expect("complete"), expected);
    }

    #[test]
    fn half_an_answer_is_not_an_answer() {
        let mut all = Collector::new();
        all.push(text("The password is")).expect("in order");
        assert_eq!(
            all.finish().expect_err("incomplete").kind(),
            ErrorKind::Disconnected
        );
    }

    #[test]
    fn text_after_the_end_is_refused() {
        let mut all = Collector::new();
        all.push(Delta::Finish(FinishReason::Stop))
            .expect("in order");
        assert_eq!(
            all.push(text("more")).expect_err("late").kind(),
            ErrorKind::Protocol
        );
    }

    #[test]
    fn the_limit_counts_text_and_reasoning_together() {
        let mut all = Collector::new().with_limit(4);
        all.push(Delta::Reasoning("ab".into())).expect("within");
        all.push(text("cd")).expect("exactly at the limit");
        assert_eq!(
            all.push(text("e")).expect_err("beyond").kind(),
            ErrorKind::Exhausted
        );
    }
}
