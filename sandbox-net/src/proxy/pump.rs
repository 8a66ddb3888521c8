//! Bytes both ways between two streams, with large reads and nothing held while nothing passes.
//!
//! `tokio::io::copy_bidirectional` keeps a buffer per direction for as long as a tunnel is open, and with large ones
//! ten thousand idle tunnels would hold gigabytes. Here a read goes to the stack of the thread that polls, and only
//! what the other side does not take at once is kept.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use sandbox_base::ByteStream;
use tokio::io::ReadBuf;

/// How much is read at a time.
const READ: usize = 64 * 1024;
/// How often one direction reads before others get their turn.
const TURNS: usize = 16;

/// Copies both ways until both directions have ended. The end of one is passed on, and the other goes on.
///
/// # Errors
///
/// What either side answers when it breaks; the other direction is given up with it.
pub(super) async fn pump<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: ByteStream + ?Sized,
    B: ByteStream + ?Sized,
{
    let mut forth = Direction::default();
    let mut back = Direction::default();
    poll_fn(|cx| {
        let forth = forth.poll(cx, a, b)?;
        let back = back.poll(cx, b, a)?;
        match (forth, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

#[derive(Debug, Default)]
struct Direction {
    /// What was read and not yet taken, from `at` on.
    rest: Vec<u8>,
    at: usize,
    unflushed: bool,
    ended: bool,
    done: bool,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: ByteStream + ?Sized,
        W: ByteStream + ?Sized,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let mut space = [const { MaybeUninit::uninit() }; READ];
        for _ in 0..TURNS {
            ready!(self.write_rest(cx, to))?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::uninit(&mut space);
            if Pin::new(&mut *from)
                .poll_read(cx, &mut buffer)?
                .is_pending()
            {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            self.ended = buffer.filled().is_empty();
            self.unflushed = true;
            self.write(cx, to, buffer.filled())?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is taken at once, and keeps the rest.
    fn write<W: ByteStream + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => bytes = &bytes[count..],
                Poll::Pending => {
                    self.rest = bytes.to_vec();
                    self.at = 0;
                    break;
                }
            }
        }
        Ok(())
    }

    fn write_rest<W: ByteStream + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.at < self.rest.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.at += count,
            }
        }
        if !self.rest.is_empty() {
            self.rest = Vec::new();
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}
