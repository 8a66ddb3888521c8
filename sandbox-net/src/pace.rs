//! How often a sandbox may have something done; pure. Time is an argument.

use std::time::{Duration, Instant};

/// So many at once, and then one in each step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    burst: u32,
    step: Duration,
}

impl Rate {
    /// The rate at which names may be asked for inside: 500 at once, then 50 in a second. The synthetic addresses
    /// there last for longer at this pace than they are kept for ([`crate::guest::names`]), and a package manager
    /// asks for dozens, once.
    pub(crate) const INSIDE: Self = Self {
        burst: 500,
        step: Duration::from_millis(20),
    };

    /// So many in a second, and those of this many seconds at once; `None`, which is no bound, if that is 0.
    pub(crate) fn per_second(count: u32, seconds: u32) -> Option<Self> {
        let step = Duration::from_secs(1).checked_div(count)?;
        let burst = count.saturating_mul(seconds);
        Some(Self { burst, step })
    }
}

/// How often an excess is told of.
const WORD: Duration = Duration::from_secs(1);

/// A bucket that fills with time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Everything passes without one.
    rate: Option<Rate>,
    /// When it will be full; `None` until it was first used.
    full_at: Option<Instant>,
    told: Option<Instant>,
}

/// Whether one more may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paced {
    Pass,
    Excess {
        /// Whether it is time to tell of it.
        tell: bool,
    },
}

impl Pace {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        Self {
            rate,
            full_at: None,
            told: None,
        }
    }

    /// Takes one that will be there within some time, and returns how long that is.
    pub(crate) fn take_within(&mut self, patience: Duration, now: Instant) -> Option<Duration> {
        let Some(Rate { burst, step }) = self.rate else {
            return Some(Duration::ZERO);
        };
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + step;
        let wait = full_at.duration_since(now).saturating_sub(step * burst);
        (wait <= patience).then(|| {
            self.full_at = Some(full_at);
            wait
        })
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Paced {
        if self.take_within(Duration::ZERO, now).is_some() {
            return Paced::Pass;
        }
        let tell = self
            .told
            .is_none_or(|told| now.duration_since(told) >= WORD);
        if tell {
            self.told = Some(now);
        }
        Paced::Excess { tell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e51_a_burst_passes_and_then_one_in_each_step() {
        let Rate { burst, step } = Rate::INSIDE;
        let mut pace = Pace::new(Some(Rate::INSIDE));
        let start = Instant::now();
        for _ in 0..burst {
            assert_eq!(pace.take(start), Paced::Pass);
        }
        assert_eq!(pace.take(start), Paced::Excess { tell: true });
        assert_eq!(pace.take(start), Paced::Excess { tell: false });
        assert_eq!(pace.take(start + step), Paced::Pass);
        assert_eq!(
            pace.take(start + step),
            Paced::Excess { tell: false },
            "only one"
        );
        assert_eq!(pace.take(start + step * 2), Paced::Pass);
        let later = start + step * 2 * burst;
        let passed = (0..burst * 2).filter(|_| pace.take(later) == Paced::Pass);
        assert_eq!(passed.count(), burst as usize, "it does not overflow");
    }

    #[test]
    fn what_will_be_there_in_time_can_be_taken_now() {
        let mut pace = Pace::new(Rate::per_second(10, 1));
        let now = Instant::now();
        let patience = Duration::from_millis(250);
        let waits: Vec<_> = std::iter::from_fn(|| pace.take_within(patience, now)).collect();
        let millis: Vec<_> = waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 200]);
        let later = now + Duration::from_secs(10);
        assert_eq!(pace.take_within(patience, later), Some(Duration::ZERO));
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut pace = Pace::new(Rate::per_second(0, 10));
        let now = Instant::now();
        assert!((0..100_000).all(|_| pace.take(now) == Paced::Pass));
        assert!(Rate::per_second(u32::MAX, u32::MAX).is_some());
    }
}
