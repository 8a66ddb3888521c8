//! Local models for sandboxes: one seam, [`ModelBackend`], and what stands behind it.
//!
//! ```text
//!  caller ── ChatRequest ──▶ ModelBackend ─┬─ engine::endpoint ── HTTP ──▶ a server that you run
//!         ◀── Delta, Delta ──              └─ testing::Scripted            (Docker Model Runner,
//!                                             (feature `testing`)           llama.cpp, Ollama, vLLM)
//! ```
//!
//! A caller names a model as Docker's users do ([`ModelName`]), sends a [`ChatRequest`], and reads
//! the answer as it is made ([`ModelBackend::chat_stream`]) or whole ([`ModelBackend::chat`]).
//!
//! # What it is not
//!
//! - Not a cloud client: the [`Endpoint`](engine::endpoint::Endpoint) speaks HTTP to a server that
//!   you run, not HTTPS to one that you rent. An `https` URL is refused as `Unsupported`.
//! - Not yet a model runner: there is no store, no engine of its own and no server in it. Chat is
//!   the only verb; there are no tool calls, embeddings or plain completions.
//! - Not a wall: which sandbox may ask which model, and how much, is for the caller to decide. It
//!   decides with [`ModelName`]'s equality, which ignores how a name was spelled.
//! - It never reads the environment: no proxy variable, no key that happens to lie around.
//!
//! # Example
//!
//! ```
//! use sandbox_models::testing::{Reply, Scripted};
//! use sandbox_models::{ChatRequest, Message, ModelBackend, ModelBackendExt, ModelName};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> sandbox_models::Result<()> {
//! let model: ModelName = "ai/smollm2".parse()?;
//! assert_eq!(model.to_string(), "docker.io/ai/smollm2:latest");
//!
//! // In a program: `Endpoint::new(EndpointConfig::new("http://127.0.0.1:12434/engines/v1"))?`.
//! let backend = Scripted::new(model.clone()).with_reply(Reply::text("Four."));
//! let request = ChatRequest::new(model)
//!     .with_message(Message::system("Answer in one word."))
//!     .with_message(Message::user("Two and two?"))
//!     .with_temperature(0.0);
//!
//! let answer = backend.chat_collected(request).await?;
//! assert_eq!(answer.text, "Four.");
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | gives | default |
//! |---|---|---|
//! | `endpoint` | [`engine::endpoint`]: models that another server runs | yes |
//! | `testing` | `testing`: a scripted back end, and the contract that every back end passes | no |
//!
//! # Limits of protection
//!
//! A server is believed about what it says, not about how much: bodies, events and waits are bounded
//! ([`EndpointConfig`](engine::endpoint::EndpointConfig)), and what it says in an error is cut and
//! cleaned of control characters. What a model *writes* is passed on as it is; who prints it to a
//! terminal or runs it has to treat it as untrusted.

mod backend;
mod chat;
mod collect;
pub mod engine;
mod error;
mod name;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "endpoint")]
mod api;

pub use backend::{Capabilities, ModelBackend, ModelBackendExt, ModelInfo};
pub use chat::{ChatRequest, Completion, Delta, DeltaStream, FinishReason, Message, Role, Usage};
pub use collect::Collector;
pub use error::{Error, Result, ServerError};
pub use name::ModelName;
pub use sandbox_base::ErrorKind;
