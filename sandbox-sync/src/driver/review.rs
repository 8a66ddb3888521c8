//! The orders of a review.

use tokio::sync::oneshot;

use super::Driver;
use crate::cycle::Failure;
use crate::error::Error;
use crate::review::Changes;
use crate::session::{ReviewOrder, halted};

impl Driver {
    /// Does what is asked and answers; `false` ends the session. The asker may have gone away.
    pub(super) async fn review(&mut self, order: ReviewOrder) -> bool {
        match order {
            ReviewOrder::Changes(answer) => {
                let listed = self.list().await;
                self.answer(answer, listed)
            }
            ReviewOrder::Apply(chosen, answer) => {
                let applied = match self.look().await {
                    Ok(()) => self.engine.apply_chosen(&chosen).await,
                    Err(failure) => Err(failure),
                };
                self.answer(answer, applied)
            }
            ReviewOrder::Discard(chosen, answer) => {
                let discarded = match self.look().await {
                    Ok(()) => self.engine.discard_chosen(&chosen).await,
                    Err(failure) => Err(failure),
                };
                self.answer(answer, discarded)
            }
            ReviewOrder::Undo(answer) => {
                let undone = match self.look().await {
                    Ok(()) => self.engine.undo_last().await,
                    Err(failure) => Err(failure),
                };
                self.answer(answer, undone)
            }
        }
    }

    /// Lists after a whole cycle, so that each side is as new as it can be.
    async fn list(&mut self) -> Result<Changes, Failure> {
        match self.is_paused() {
            true => self.look().await?,
            false => drop(self.cycle(None, true).await?),
        }
        self.engine.changes().await
    }

    /// Looks at both sides without changing either.
    async fn look(&mut self) -> Result<(), Failure> {
        match self.engine.scan(true).await? {
            Some(halt) => Err(Failure::mild(halted(&halt))),
            None => Ok(()),
        }
    }

    fn answer<T>(
        &self,
        answer: oneshot::Sender<Result<T, Error>>,
        result: Result<T, Failure>,
    ) -> bool {
        let goes_on = match &result {
            Err(failure) if failure.fatal => self.fail(&failure.error),
            _ => true,
        };
        drop(answer.send(result.map_err(|failure| failure.error)));
        goes_on
    }
}
