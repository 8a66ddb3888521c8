//! How often names may be looked up for a sandbox. Every name that is looked up goes to somebody's server, and can
//! carry data there (E51); one that was looked up a moment ago carries nothing new, and is not counted.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    pace::{Pace, Rate},
    policy::HostName,
};

/// How long a lookup may wait for its turn: as long as it may take itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a name is known.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How many names are known, some 300 bytes each. Should there be more, all are new once more.
const MOST: usize = 4096;
/// Lookups of how many seconds may come at once.
const BURST: u32 = 10;

/// Who says when a name may be looked up.
#[derive(Debug)]
pub(crate) struct Lookups(Mutex<Names>);

/// It would take too long until it may be.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Lookups {
    pub(crate) fn new(per_second: u32) -> Self {
        Self(Mutex::new(Names::new(per_second)))
    }

    /// Waits until a name may be looked up. Dropping the future does not give its turn to another.
    ///
    /// # Errors
    ///
    /// At once if that would take too long.
    pub(crate) async fn turn(&self, name: &HostName) -> Result<(), TooMany> {
        let wait = {
            let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            names.turn(name, Instant::now()).ok_or(TooMany)?
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

/// The pure part.
#[derive(Debug)]
struct Names {
    pace: Pace,
    known: HashMap<HostName, Instant>,
}

impl Names {
    fn new(per_second: u32) -> Self {
        Self {
            pace: Pace::new(Rate::per_second(per_second, BURST)),
            known: HashMap::new(),
        }
    }

    /// Returns how long a name has to wait.
    fn turn(&mut self, name: &HostName, now: Instant) -> Option<Duration> {
        let known = self.known.get(name);
        if known.is_some_and(|since| now.saturating_duration_since(*since) < KNOWN_FOR) {
            return Some(Duration::ZERO);
        }
        let wait = self.pace.take_within(PATIENCE, now)?;
        if self.known.len() >= MOST {
            self.known.clear();
        }
        // From the lookup on, not from the wait for it.
        self.known.insert(name.clone(), now + wait);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> HostName {
        format!("n{number}.test").parse().unwrap()
    }

    #[test]
    fn e51_new_names_wait_and_then_are_too_many() {
        let mut names = Names::new(2);
        let now = Instant::now();
        let waits: Vec<_> = (0..).map_while(|n| names.turn(&name(n), now)).collect();
        // Those of ten seconds at once, and those of the five that they may wait.
        assert_eq!(waits.len(), 30);
        assert_eq!(waits[19], Duration::ZERO);
        assert_eq!(waits[29], PATIENCE);
        assert_eq!(names.turn(&name(99), now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(
            names.turn(&name(99), later),
            Some(PATIENCE - Duration::from_millis(500))
        );
    }

    #[test]
    fn a_name_that_is_known_never_waits() {
        let mut names = Names::new(1);
        let now = Instant::now();
        while names.turn(&name(names.known.len()), now).is_some() {}
        assert_eq!(names.turn(&name(0), now), Some(Duration::ZERO));
        let later = now + KNOWN_FOR;
        assert_eq!(
            names.turn(&name(0), later),
            Some(Duration::ZERO),
            "the pace allows it"
        );
        for n in 100..200 {
            names.turn(&name(n), later);
        }
        assert_eq!(names.turn(&name(1), later), None, "it was forgotten");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut names = Names::new(0);
        let now = Instant::now();
        for n in 0..MOST * 2 + 1 {
            assert_eq!(names.turn(&name(n), now), Some(Duration::ZERO));
            assert!(names.known.len() <= MOST);
        }
    }
}
