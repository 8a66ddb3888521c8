//! Writes that leave together: a frame's header with the beginning of its body.
//!
//! The multiplexer writes a header of a few bytes and then the body. Each write to the guest's port is a message
//! of its own to the hypervisor, so a header alone would cost as much as 32 KiB. Copying the whole body behind the
//! header, as a plain buffered writer does, costs a third of a stream's time in an emulated guest. So only the
//! first piece of a body is copied, and the rest is written from where it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much the guest's port takes in one write (`port_fops_write` of Linux' `virtio_console.c`).
pub(super) const PORT_WRITE: usize = 32 * 1024;

/// A byte stream whose small writes wait for the next one, or for a flush.
#[derive(Debug)]
pub(super) struct Gather<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How much of what waits is written.
    written: usize,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            waiting: Vec::with_capacity(PORT_WRITE),
            written: 0,
        }
    }

    /// Writes what waits.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.waiting.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // What is full goes first. Partly written, it takes no more.
        if self.waiting.len() == PORT_WRITE || self.written > 0 {
            ready!(self.poll_send(context))?;
        }
        if self.waiting.is_empty() && bytes.len() >= PORT_WRITE {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        let taken = bytes.len().min(PORT_WRITE - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    /// Takes at most so many bytes at once, and keeps the pieces apart.
    struct Port(usize, Vec<Vec<u8>>);

    impl AsyncWrite for Port {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.0);
            self.1.push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn pieces(limit: usize, writes: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut gather = Gather::new(Port(limit, Vec::new()));
        for bytes in writes {
            gather.write_all(bytes).await.unwrap();
        }
        gather.flush().await.unwrap();
        gather.stream.1
    }

    #[tokio::test]
    async fn a_frame_leaves_in_as_few_writes_as_the_port_allows() {
        let frame = [vec![1; 12], vec![2; 4 * PORT_WRITE - 12]];
        let pieces = pieces(PORT_WRITE, &frame).await;
        let sizes: Vec<_> = pieces.iter().map(Vec::len).collect();
        assert_eq!(sizes, [PORT_WRITE; 4]);
    }

    #[tokio::test]
    async fn small_frames_leave_together_with_the_flush() {
        let frames = [vec![1; 12], vec![2; 5], vec![3; 12], vec![4; 7]];
        assert_eq!(pieces(PORT_WRITE, &frames).await, [frames.concat()]);
    }

    proptest! {
        #[test]
        fn every_byte_leaves_once_and_in_order(
            limit in 1..50_000usize,
            sizes in proptest::collection::vec(0..70_000usize, 0..8),
        ) {
            let writes: Vec<Vec<u8>> = (0u8..).zip(&sizes).map(|(n, size)| vec![n; *size]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let sent = runtime.block_on(pieces(limit, &writes)).concat();
            prop_assert!(sent == writes.concat());
        }
    }
}
