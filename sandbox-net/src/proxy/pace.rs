//! How often a sandbox may have something done; pure. Time is an argument.

use std::time::{Duration, Instant};

/// How many may come at once.
const BURST: u32 = 500;
/// The time in which one more may come: 50 in a second. The synthetic addresses inside last for longer at this
/// pace than they are kept for ([`crate::guest::names`]), and a package manager asks for dozens, once.
const STEP: Duration = Duration::from_millis(20);
/// How often an excess is told of.
const WORD: Duration = Duration::from_secs(1);

/// A bucket that fills with time.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When it will be full; `None` until it was first used.
    full_at: Option<Instant>,
    told: Option<Instant>,
}

/// Whether one more may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paced {
    Pass,
    Excess {
        /// Whether it is time to tell of it.
        tell: bool,
    },
}

impl Pace {
    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> Paced {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + STEP;
        if full_at.duration_since(now) <= STEP * BURST {
            self.full_at = Some(full_at);
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
        let mut pace = Pace::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(pace.take(start), Paced::Pass);
        }
        assert_eq!(pace.take(start), Paced::Excess { tell: true });
        assert_eq!(pace.take(start), Paced::Excess { tell: false });
        assert_eq!(pace.take(start + STEP), Paced::Pass);
        assert_eq!(
            pace.take(start + STEP),
            Paced::Excess { tell: false },
            "only one"
        );
        assert_eq!(pace.take(start + STEP * 2), Paced::Pass);
        let later = start + STEP * 2 * BURST;
        let passed = (0..BURST * 2).filter(|_| pace.take(later) == Paced::Pass);
        assert_eq!(passed.count(), BURST as usize, "it does not overflow");
    }
}
