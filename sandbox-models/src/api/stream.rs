//! A streamed chat answer: bytes in, deltas out, in the order that the seam promises.
//!
//! ```text
//!            chunk with text               chunk with finish_reason
//!   open ───────────────────▶ open ──────────────────────────────▶ finished ──[DONE] or end──▶ done
//!     │ end of bytes, [DONE]                                           │ text
//!     ▼                                                                ▼
//!   Disconnected, Protocol                                          Protocol
//! ```
//!
//! The usage may come in any chunk, in most servers in one of its own after the end; the last one
//! that came is handed out when the answer is done. A server that forgets `[DONE]` after it gave a
//! `finish_reason` is forgiven; one that gives no `finish_reason` is not, since then nobody knows
//! whether the answer is whole.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::Value;

use super::openai::Answer;
use super::{failure, sse};
use crate::{Delta, Error, ErrorKind, Result, Usage};

const OPERATION: &str = "read the streamed answer";

/// Decodes one streamed answer.
#[derive(Debug)]
pub(crate) struct ChatDecoder {
    events: sse::Decoder,
    state: State,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    usage: Option<Usage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Finished,
    Done,
}

impl From<sse::TooLong> for Error {
    fn from(error: sse::TooLong) -> Self {
        Self::new(ErrorKind::Exhausted, OPERATION, error.to_string())
    }
}

impl ChatDecoder {
    /// Starts at the beginning of an answer; no event may exceed `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            phase: Phase::Open,
            usage: None,
        };
        Self {
            events: sse::Decoder::new(limit),
            state,
        }
    }

    /// Takes the next bytes and appends what they complete to `ready`.
    ///
    /// What came before an error is in `ready` as well. Bytes after `[DONE]` are ignored.
    pub(crate) fn feed(&mut self, bytes: &[u8], ready: &mut VecDeque<Delta>) -> Result<()> {
        let state = &mut self.state;
        if state.phase == Phase::Done {
            return Ok(());
        }
        self.events.feed(bytes, |event| state.take(&event, ready))
    }

    /// Takes the end of the bytes, unless [`is_done`](Self::is_done) already.
    pub(crate) fn end(&mut self, ready: &mut VecDeque<Delta>) -> Result<()> {
        match self.state.phase {
            Phase::Open => {
                let reason = "the stream ended before the answer did";
                Err(Error::new(ErrorKind::Disconnected, OPERATION, reason))
            }
            Phase::Finished | Phase::Done => {
                self.state.close(ready);
                Ok(())
            }
        }
    }

    /// Tells whether the answer is whole and nothing more can come.
    pub(crate) fn is_done(&self) -> bool {
        self.state.phase == Phase::Done
    }
}

impl State {
    fn take(&mut self, event: &str, ready: &mut VecDeque<Delta>) -> Result<()> {
        if self.phase == Phase::Done {
            return Ok(());
        }
        if event == "[DONE]" {
            if self.phase == Phase::Open {
                return Err(broken("the server was done without a finish_reason"));
            }
            self.close(ready);
            return Ok(());
        }
        let value: Value = serde_json::from_str(event)
            .map_err(|error| broken("an event is not JSON").with_source(error))?;
        if let Some(error) = failure::from_event(&value, OPERATION) {
            return Err(error);
        }
        let answer = Answer::deserialize(value)
            .map_err(|error| broken("an event is no chat chunk").with_source(error))?;
        let (deltas, usage) = answer.into_deltas();
        self.usage = usage.or(self.usage);
        for delta in deltas {
            match (self.phase, &delta) {
                (Phase::Open, Delta::Finish(_)) => self.phase = Phase::Finished,
                (Phase::Open, _) => {}
                // Some servers repeat the reason in the chunk that carries the usage.
                (_, Delta::Finish(_)) => continue,
                _ => return Err(broken("text came after the finish_reason")),
            }
            ready.push_back(delta);
        }
        Ok(())
    }

    fn close(&mut self, ready: &mut VecDeque<Delta>) {
        self.phase = Phase::Done;
        ready.extend(self.usage.take().map(Delta::Usage));
    }
}

fn broken(reason: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, OPERATION, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::FinishReason;

    const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"hé"},"finish_reason":null}]}"#;
    const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    const FAILED: &str = r#"{"error":{"message":"out of memory","code":500}}"#;

    fn write(events: &[&str]) -> Vec<u8> {
        events
            .iter()
            .map(|event| format!("data: {event}\n\n"))
            .collect::<String>()
            .into_bytes()
    }

    /// Feeds the pieces, then the end; gives what came, and the kind of the error if there was one.
    fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Delta>, Option<ErrorKind>) {
        let mut decoder = ChatDecoder::new(1 << 16);
        let mut ready = VecDeque::new();
        for piece in pieces {
            if let Err(error) = decoder.feed(piece, &mut ready) {
                return (ready.into(), Some(error.kind()));
            }
        }
        let error = decoder.end(&mut ready).err().map(|error| error.kind());
        (ready.into(), error)
    }

    fn read(events: &[&str]) -> (Vec<Delta>, Option<ErrorKind>) {
        decode(std::iter::once(write(events).as_slice()))
    }

    fn text() -> Delta {
        Delta::Text("hé".into())
    }

    fn stop() -> Delta {
        Delta::Finish(FinishReason::Stop)
    }

    #[test]
    fn the_usage_comes_last_wherever_the_server_puts_it() {
        let expected = vec![text(), stop(), Delta::Usage(Usage::new(3, 2))];
        assert_eq!(
            read(&[TEXT, STOP, USAGE, "[DONE]"]),
            (expected.clone(), None)
        );
        assert_eq!(read(&[USAGE, TEXT, STOP, "[DONE]"]), (expected, None));
    }

    #[test]
    fn a_missing_done_is_forgiven_and_what_follows_it_is_ignored() {
        let expected = (vec![text(), stop()], None);
        assert_eq!(read(&[TEXT, STOP]), expected);
        assert_eq!(read(&[TEXT, STOP, "[DONE]", TEXT, "junk"]), expected);
    }

    #[test]
    fn an_answer_that_is_not_whole_is_an_error_after_what_came() {
        for (last, kind) in [
            (None, ErrorKind::Disconnected),
            (Some("[DONE]"), ErrorKind::Protocol),
            (Some("junk"), ErrorKind::Protocol),
            (Some("[]"), ErrorKind::Protocol),
            (Some(FAILED), ErrorKind::Io),
        ] {
            let events: Vec<&str> = std::iter::once(TEXT).chain(last).collect();
            assert_eq!(read(&events), (vec![text()], Some(kind)), "{last:?}");
        }
    }

    #[test]
    fn text_after_the_end_breaks_the_protocol_but_a_second_end_does_not() {
        assert_eq!(
            read(&[STOP, TEXT]),
            (vec![stop()], Some(ErrorKind::Protocol))
        );
        assert_eq!(read(&[STOP, STOP, "[DONE]"]), (vec![stop()], None));
    }

    fn cases() -> ProptestConfig {
        let cases = std::env::var("SANDBOX_CASES")
            .ok()
            .and_then(|n| n.parse().ok());
        ProptestConfig::with_cases(cases.unwrap_or(128))
    }

    fn events() -> impl Strategy<Value = Vec<String>> {
        let event = prop_oneof![
            4 => Just(TEXT.to_owned()),
            2 => Just(STOP.to_owned()),
            2 => Just(USAGE.to_owned()),
            1 => Just("[DONE]".to_owned()),
            1 => Just(FAILED.to_owned()),
            1 => "[\\[\\]{}\":a-z0-9,]{0,20}",
        ];
        prop::collection::vec(event, 0..8)
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn any_split_gives_the_same_deltas_in_the_promised_order(
            events in events(),
            size in 1usize..50,
        ) {
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            let bytes = write(&events);
            let (deltas, error) = decode(std::iter::once(bytes.as_slice()));
            prop_assert_eq!(decode(bytes.chunks(size)), (deltas.clone(), error));
            let end = deltas.iter().position(|delta| matches!(delta, Delta::Finish(_)));
            let after = end.map_or(0, |end| deltas.len() - end - 1);
            prop_assert!(error.is_some() || end.is_some());
            prop_assert!(after <= 1);
            if after == 1 {
                prop_assert!(matches!(deltas.last(), Some(Delta::Usage(_))));
            }
        }
    }
}
