//! A stream in memory that counts, and that comes to an end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What becomes of a stream once so many bytes were written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Never,
    /// It breaks.
    Breaks(usize),
    /// Nobody reads any more, and nobody says so.
    Stalls(usize),
}

/// A stream that counts what goes over it, both ways.
#[derive(Debug)]
pub(crate) struct Metered {
    stream: DuplexStream,
    moved: Arc<AtomicU64>,
    end: End,
}

impl Metered {
    pub(crate) fn new(stream: DuplexStream, end: End) -> Self {
        let moved = Arc::default();
        Self { stream, moved, end }
    }

    /// Counts to a number that others can read.
    pub(crate) fn counting(mut self, moved: &Arc<AtomicU64>) -> Self {
        self.moved = moved.clone();
        self
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let more = buf.filled().len() - before;
        self.moved.fetch_add(more as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let length = match self.end {
            End::Breaks(0) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            End::Stalls(0) => return Poll::Pending,
            End::Never => buf.len(),
            End::Breaks(left) | End::Stalls(left) => buf.len().min(left),
        };
        let written = Pin::new(&mut self.stream).poll_write(cx, &buf[..length]);
        if let Poll::Ready(Ok(written)) = written {
            self.moved.fetch_add(written as u64, Ordering::Relaxed);
            if let End::Breaks(left) | End::Stalls(left) = &mut self.end {
                *left -= written;
            }
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
