//! Bodies of requests that come too slowly, as those of clients that want to hold connections (E60).

use std::{
    error::Error as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::limits::Limits;

/// What such a request is answered.
pub(super) const TOO_SLOW: &str = "the request's body came too slowly";

/// Whether a request failed because its body came too slowly.
pub(super) fn is_cause(error: &hyper::Error) -> bool {
    let cause = error.source();
    cause
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// How long somebody is waited for; pure.
#[derive(Debug)]
struct Patience {
    /// The bytes that have to come within the time.
    bytes: u64,
    time: Duration,
    came: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl Patience {
    fn new(bytes: u64, time: Duration) -> Self {
        Self {
            bytes,
            time,
            came: 0,
            waited: Duration::ZERO,
            since: None,
        }
    }

    /// There is nothing yet; returns when it will be too late, `None` if never.
    fn wait(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        let left = self.time.saturating_sub(self.waited);
        (self.bytes > 0).then(|| since.checked_add(left))?
    }

    /// Something has come.
    fn came(&mut self, bytes: u64, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.came = self.came.saturating_add(bytes);
        if self.came >= self.bytes {
            self.came = 0;
            self.waited = Duration::ZERO;
        }
    }
}

/// A client's body, which fails if it takes too long to come.
pub(super) struct Timed {
    body: Incoming,
    patience: Patience,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub(super) fn new(body: Incoming, limits: &Limits) -> Self {
        Self {
            body,
            patience: Patience::new(limits.body_bytes, limits.body_timeout),
            timer: None,
        }
    }

    /// Waits until it is too late.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(late) = self.patience.wait(Instant::now()) else {
            return Poll::Pending;
        };
        let late = late.into();
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(late)));
        if timer.deadline() != late {
            timer.as_mut().reset(late);
        }
        timer.as_mut().poll(cx)
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            ready!(this.poll_late(cx));
            let late = io::Error::new(io::ErrorKind::TimedOut, TOO_SLOW);
            return Poll::Ready(Some(Err(late)));
        };
        if let Some(Ok(frame)) = &frame {
            let count = frame.data_ref().map_or(0, Bytes::len);
            this.patience.came(count as u64, Instant::now());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn e60_bytes_one_by_one_do_not_gain_time() {
        let mut patience = Patience::new(100, SECOND * 10);
        let start = Instant::now();
        for second in 0..9 {
            assert_eq!(
                patience.wait(start + SECOND * second),
                Some(start + SECOND * 10)
            );
            patience.came(1, start + SECOND * (second + 1));
        }
        let now = start + SECOND * 9;
        assert_eq!(patience.wait(now), Some(now + SECOND));
        patience.came(91, now);
        assert_eq!(patience.wait(now), Some(now + SECOND * 10), "all anew");
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let mut patience = Patience::new(100, SECOND * 10);
        let start = Instant::now();
        patience.wait(start);
        patience.came(1, start + SECOND);
        // The origin takes nothing for an hour.
        let later = start + SECOND * 3600;
        assert_eq!(patience.wait(later), Some(later + SECOND * 9));
        assert_eq!(Patience::new(0, SECOND).wait(start), None);
    }
}
