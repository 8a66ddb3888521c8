//! What every channel between host and guest is made of: bytes, both ways.

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions, whatever carries it.
///
/// Network and synchronization code takes this and nothing more, so that it knows nothing of machines.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> ByteStream for T {}

/// An owned [`ByteStream`] of any type.
pub type BoxStream = Box<dyn ByteStream>;
