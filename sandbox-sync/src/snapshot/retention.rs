//! Which snapshots are kept: pure.
//!
//! Only automatic ones ever go by themselves; what a person named stays until a person removes it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::name::Name;

/// Which automatic snapshots are kept. One that any of the rules keeps stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// So many of the newest.
    pub last: usize,
    /// The newest of each of so many hours that have one.
    pub hours: usize,
    /// The newest of each of so many days (of 24 hours, from 1970 on) that have one.
    pub days: usize,
}

impl Default for Retention {
    /// Returns the newest twenty, and one for each of 24 hours and seven days.
    fn default() -> Self {
        Self {
            last: 20,
            hours: 24,
            days: 7,
        }
    }
}

impl Retention {
    /// Sets how many of the newest are kept.
    #[must_use]
    pub fn with_last(mut self, last: usize) -> Self {
        self.last = last;
        self
    }

    /// Sets for how many hours the newest is kept.
    #[must_use]
    pub fn with_hours(mut self, hours: usize) -> Self {
        self.hours = hours;
        self
    }

    /// Sets for how many days the newest is kept.
    #[must_use]
    pub fn with_days(mut self, days: usize) -> Self {
        self.days = days;
        self
    }

    /// Returns which of the automatic snapshots go, by name and time of each.
    pub(crate) fn gone(&self, automatic: &[(Name, SystemTime)]) -> BTreeSet<Name> {
        let mut newest: Vec<_> = automatic.iter().collect();
        // Of two of the same time the names decide, so that the answer is always the same.
        newest.sort_by(|(one, at), (other, then)| (then, other).cmp(&(at, one)));
        let mut kept: BTreeSet<&Name> = newest
            .iter()
            .take(self.last)
            .map(|(name, _)| name)
            .collect();
        for (periods, length) in [(self.hours, 3_600), (self.days, 86_400)] {
            let mut seen = BTreeSet::new();
            for (name, at) in &newest {
                let since = at
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO);
                let period = since.as_secs() / length;
                if seen.len() < periods && seen.insert(period) {
                    kept.insert(name);
                }
            }
        }
        let goes = newest.iter().filter(|(name, _)| !kept.contains(name));
        goes.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(minutes: &[u64]) -> Vec<(Name, SystemTime)> {
        let one = |(number, minutes): (usize, &u64)| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(minutes * 60);
            (Name::new(format!("n{number}")).unwrap(), at)
        };
        minutes.iter().enumerate().map(one).collect()
    }

    fn none() -> Retention {
        Retention::default().with_last(0).with_hours(0).with_days(0)
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let all = taken(&[0, 30, 61, 62, 1_500]);
        let names =
            |gone: BTreeSet<Name>| -> Vec<String> { gone.into_iter().map(Into::into).collect() };
        assert_eq!(names(none().with_hours(2).gone(&all)), ["n0", "n1", "n2"]);
        assert_eq!(names(none().with_days(9).gone(&all)), ["n0", "n1", "n2"]);
        assert_eq!(names(none().with_last(4).gone(&all)), ["n0"]);
        assert_eq!(none().gone(&all).len(), 5);
    }

    proptest! {
        #[test]
        fn what_stays_stays_when_asked_again(minutes in prop::collection::vec(0u64..5_000, 0..40), last in 0usize..9,
            hours in 0usize..9, days in 0usize..4) {
            let rule = none().with_last(last).with_hours(hours).with_days(days);
            let all = taken(&minutes);
            let gone = rule.gone(&all);
            prop_assert!(all.len() - gone.len() >= last.min(all.len()));
            prop_assert!(all.len() - gone.len() <= last + hours + days);
            let left: Vec<_> = all.into_iter().filter(|(name, _)| !gone.contains(name)).collect();
            prop_assert!(rule.gone(&left).is_empty());
        }
    }
}
