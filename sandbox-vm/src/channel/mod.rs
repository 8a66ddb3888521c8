//! One byte stream between host and guest, made into many.
//!
//! ```text
//!  host: Agent ── Channel ── yamux ══ one byte stream ══ yamux ── Channel ── agent :guest
//!          │ open()                   (virtio-serial,                 │ incoming
//!          └─ one stream per           vsock, Unix socket)            └─ one task per stream
//!             request
//! ```
//!
//! Multiplexing is [yamux](https://github.com/hashicorp/yamux/blob/master/spec.md): a window per stream,
//! so a reader that stops reading holds 256 KiB and its own stream, nothing else. What is said inside the
//! streams is in [`protocol`].
//!
//! A peer can open at most [`MAX_STREAMS`] streams at once, and so make this side hold at most that many
//! windows; more are refused. What breaks the framing ends the connection.

mod gather;
#[cfg(any(target_os = "linux", test))]
mod life;
mod mux;
pub mod protocol;
mod wire;

#[cfg(target_os = "linux")]
pub(crate) use life::sign_of_life;
#[cfg(all(feature = "guest", target_os = "linux"))]
pub(crate) use mux::SPLIT_SEND;
pub use mux::{Channel, Incoming, MAX_STREAMS, Side, Stream};
pub use wire::Hold;
#[cfg(target_os = "linux")]
pub(crate) use wire::take_over;
