//! The states of a sandbox, the moves between them, and what each holds.
//!
//! ```text
//!            create                      stop, guest powered off, owner died
//!  (nothing) ──────▶ Creating ──▶ Running ───────────────▶ Stopped ──── remove ──▶ (nothing)
//!                       │            ▲ │ pause               ▲  │
//!                       │     resume │ ▼                     │  │
//!                       │           Paused ─────────────────▶│  │
//!                       │ failed     │               failed │  │ start
//!                       ▼            │                      │  ▼
//!                   (nothing)        └───────────────────── Starting
//! ```
//!
//! | state | on disk | processes | after a crash in it |
//! |---|---|---|---|
//! | `Creating` | folder, lock held, record from the second step on | perhaps the machine | the watchdog ends the machine; whoever looks next removes the rest: nobody was told that it exists |
//! | `Starting` | as in `Running` | perhaps the machine | as in `Running` |
//! | `Running` | folder, record, disk, lock held | owner, watchdog, machine | the watchdog ends the machine; attached: and removes the rest; detached: it is `Stopped` |
//! | `Paused` | as in `Running` | owner, watchdog, machine | as in `Running` |
//! | `Stopped` | folder, record, disk | none (attached: the owner, lock held) | attached: whoever looks next removes it; detached: nothing is lost |
//!
//! One process owns a sandbox: the one that holds its lock, which the kernel takes back when that process
//! dies. All others speak to the owner, so that what two of them ask for is done one after the other.

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// Its image, disk and machine are being made.
    Creating,
    /// It was stopped, and its machine is being made anew.
    Starting,
    /// Its machine runs.
    Running,
    /// Its machine stands still, with all it has in memory.
    Paused,
    /// It has no machine; its disk is kept.
    Stopped,
}

/// What can happen to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    /// Its machine answers.
    Booted,
    /// Its machine is gone, whoever wanted that.
    Ended,
    /// Its machine is to be started again.
    Start,
    /// Its machine stands still.
    Pause,
    /// Its machine goes on.
    Resume,
}

impl State {
    /// Returns the state after a move, or `None` where the move is not possible.
    pub(crate) fn after(self, what: Move) -> Option<Self> {
        match (self, what) {
            (Self::Creating | Self::Starting, Move::Booted) => Some(Self::Running),
            (Self::Creating | Self::Starting | Self::Running | Self::Paused, Move::Ended) => {
                Some(Self::Stopped)
            }
            (Self::Stopped, Move::Start) => Some(Self::Starting),
            (Self::Running, Move::Pause) => Some(Self::Paused),
            (Self::Paused, Move::Resume) => Some(Self::Running),
            _ => None,
        }
    }

    /// Returns the state as a lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// How long a sandbox lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifetime {
    /// As long as the process that made it: nothing of it stays behind.
    Attached,
    /// Until it is removed, in the care of a supervisor process of its own.
    Detached,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_move_is_decided() {
        use Move::*;
        use State::*;
        let table = [
            (Creating, Booted, Some(Running)),
            (Creating, Ended, Some(Stopped)),
            (Creating, Start, None),
            (Starting, Booted, Some(Running)),
            (Starting, Ended, Some(Stopped)),
            (Starting, Start, None),
            (Running, Booted, None),
            (Running, Ended, Some(Stopped)),
            (Running, Start, None),
            (Paused, Booted, None),
            (Paused, Ended, Some(Stopped)),
            (Paused, Start, None),
            (Stopped, Booted, None),
            (Stopped, Ended, None),
            (Stopped, Start, Some(Starting)),
        ];
        for (state, what, after) in table {
            assert_eq!(state.after(what), after, "{state:?} after {what:?}");
        }
        for state in [Creating, Starting, Running, Paused, Stopped] {
            let paused = (state == Running).then_some(Paused);
            assert_eq!(state.after(Pause), paused, "{state:?}");
            let resumed = (state == Paused).then_some(Running);
            assert_eq!(state.after(Resume), resumed, "{state:?}");
        }
    }
}
