//! How many bytes a sandbox may send and get in a second.
//!
//! Bytes are paid for once they have passed: who has passed more than a second's worth ahead of time waits. So
//! reads and writes stay as large as they are, and connections take turns.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use sandbox_base::ByteStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// How far ahead of time bytes may pass.
const AHEAD: Duration = Duration::from_secs(1);

/// The bytes that all connections of a proxy share.
#[derive(Debug)]
pub(super) struct Bandwidth {
    per_second: u64,
    paid: Mutex<Paid>,
}

/// Until when the bytes that have passed would have taken; pure.
#[derive(Debug, Default)]
struct Paid(Option<Instant>);

impl Paid {
    /// Returns when the next byte may pass, `None` if at once.
    fn wait(&self, now: Instant) -> Option<Instant> {
        let at = self.0?.checked_sub(AHEAD)?;
        (at > now).then_some(at)
    }

    fn charge(&mut self, (bytes, per_second): (usize, u64), now: Instant) {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(per_second);
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.0.map_or(now, |paid| paid.max(now));
        self.0 = from.checked_add(took).or(self.0);
    }
}

impl Bandwidth {
    /// `None` if there is no bound.
    pub(super) fn new(per_second: u64) -> Option<Self> {
        let paid = Mutex::default();
        (per_second > 0).then_some(Self { per_second, paid })
    }

    fn wait(&self) -> Option<Instant> {
        let paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.wait(Instant::now())
    }

    fn charge(&self, bytes: usize) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.charge((bytes, self.per_second), Instant::now());
    }
}

/// A stream whose bytes wait until there is room for them.
#[derive(Debug)]
pub(super) struct Throttled<S> {
    stream: S,
    bandwidth: Arc<Bandwidth>,
    reading: Turn,
    writing: Turn,
}

/// The wait of one direction.
#[derive(Debug, Default)]
struct Turn(Option<Pin<Box<Sleep>>>);

impl Turn {
    fn poll(&mut self, cx: &mut Context<'_>, bandwidth: &Bandwidth) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.0 {
                ready!(sleep.as_mut().poll(cx));
                self.0 = None;
            }
            // Somebody else may have come before.
            match bandwidth.wait() {
                Some(at) => self.0 = Some(Box::pin(tokio::time::sleep_until(at.into()))),
                None => return Poll::Ready(()),
            }
        }
    }
}

impl<S> Throttled<S> {
    pub(super) fn new(stream: S, bandwidth: Arc<Bandwidth>) -> Self {
        Self {
            stream,
            bandwidth,
            reading: Turn::default(),
            writing: Turn::default(),
        }
    }
}

impl<S: ByteStream> AsyncRead for Throttled<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.reading.poll(cx, &this.bandwidth));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.bandwidth.charge(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncWrite for Throttled<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writing.poll(cx, &this.bandwidth));
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.bandwidth.charge(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_in_the_long_run_is_the_rate() {
        let mut paid = Paid::default();
        let start = Instant::now();
        let mut now = start;
        let mut passed = 0_u64;
        while now < start + Duration::from_secs(60) {
            match paid.wait(now) {
                Some(at) => now = at,
                None => {
                    paid.charge((64 * 1024, 1_000_000), now);
                    passed += 64 * 1024;
                }
            }
        }
        assert!((60_000_000..=61_200_000).contains(&passed), "{passed}");
    }

    #[test]
    fn time_in_which_nothing_passes_is_not_saved_up() {
        let mut paid = Paid::default();
        let start = Instant::now();
        paid.charge((10, 10), start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(paid.wait(later), None);
        paid.charge((11, 10), later);
        assert!(paid.wait(later).is_some());
        // As long as it would take can be asked for, if not waited for.
        paid.charge((usize::MAX, 1), later);
        assert!(paid.wait(later).is_some());
    }
}
