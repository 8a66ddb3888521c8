//! The OpenAI API as data: bytes in, values out. No sockets, no clock.
//!
//! | module | holds |
//! |---|---|
//! | `openai` | the shapes of requests and answers, and their translation from and to the seam's |
//! | `failure` | the shapes of errors, and what kind each one is |
//! | `sse` | server-sent events: bytes to events |
//! | `stream` | a streamed chat answer: bytes to deltas, in the order that the seam promises |
//!
//! Fields that we do not know are ignored, as the API's own clients do: servers add to it freely.

pub(crate) mod failure;
pub(crate) mod openai;
pub(crate) mod sse;
pub(crate) mod stream;
