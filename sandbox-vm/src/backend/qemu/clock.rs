//! The processor's time stamp counter, which the guest's kernel must be told.
//!
//! The stock kernel calibrates the counter against the old interval timer, which this machine type has
//! not, and hangs there for ever under emulation. Told the rate (`tsc_early_khz`) it does not calibrate.
//! Emulation passes the host's own counter through, so the host's rate is the right one.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the counter is measured against the clock: long enough for an error of a few parts in a
/// hundred thousand.
const MEASURE: Duration = Duration::from_millis(20);

/// Returns the rate of the time stamp counter in kHz, measured once per process; `None` on processors
/// without one.
pub(super) fn tsc_khz() -> Option<u64> {
    static RATE: OnceLock<Option<u64>> = OnceLock::new();
    *RATE.get_or_init(measure)
}

fn measure() -> Option<u64> {
    let (first, start) = sample()?;
    std::thread::sleep(MEASURE);
    let (second, end) = sample()?;
    let nanoseconds = u64::try_from(end.duration_since(start).as_nanos()).ok()?;
    let ticks = second.checked_sub(first)?;
    ticks
        .checked_mul(1_000_000)?
        .checked_div(nanoseconds)
        .filter(|khz| *khz > 0)
}

/// Reads counter and clock as close together as one of a few tries gets them.
fn sample() -> Option<(u64, Instant)> {
    (0..8)
        .filter_map(|_| {
            let before = counter()?;
            let now = Instant::now();
            let after = counter()?;
            Some((after.checked_sub(before)?, before, now))
        })
        .min_by_key(|(gap, _, _)| *gap)
        .map(|(gap, before, now)| (before + gap / 2, now))
}

#[cfg(target_arch = "x86_64")]
// JUSTIFICATION: there is no safe function that reads the counter.
#[allow(unsafe_code)]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction; an operating system that forbids it to
    // programs is not among those that this crate builds for.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_a_percent() {
        let (first, second) = (measure().unwrap(), measure().unwrap());
        assert!(
            first.abs_diff(second) < first / 100,
            "{first} and {second} kHz"
        );
    }
}
