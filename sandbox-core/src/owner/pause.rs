//! Sandboxes that stand still: all they have stays in memory, and nothing of it runs.

use std::sync::Arc;

use sandbox_base::Error;

use super::{Owner, Running, removed, to_its_end};
use crate::lifecycle::{Move, State};
use crate::state::Owned;

impl Owner {
    /// Brings the workspaces into agreement and has the machine stand still. Idempotent; goes on when the future
    /// is dropped.
    pub(crate) async fn pause(self: &Arc<Self>) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            let owned = guard.as_mut().ok_or_else(removed)?;
            if owned.record.state == State::Paused {
                return Ok(());
            }
            let running = owner.running()?;
            let next = owned.record.state.after(Move::Pause);
            let next = next.unwrap_or(State::Paused);
            if let Err(error) = running.workspaces.flush().await {
                tracing::warn!(%error, "a sandbox is paused whose workspaces do not agree");
            }
            // Who waits for the guest would take its silence for its end.
            let resting = running.workspaces.rest().await?;
            if let Err(error) = running.machine.pause().await {
                running.workspaces.go_on(&resting).await;
                return Err(error);
            }
            owner.running.send_modify(|running| {
                if let Some(running) = running {
                    running.paused = Some(Arc::new(resting));
                }
            });
            owner.enter(owned, next)
        })
        .await
    }

    /// Has a paused machine go on, which is told what time it is. Idempotent; goes on when the future is dropped.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            let owned = guard.as_mut().ok_or_else(removed)?;
            owner.go_on(owned).await
        })
        .await
    }

    /// Has the machine go on if it is paused.
    pub(super) async fn go_on(&self, owned: &mut Owned) -> Result<(), Error> {
        let running = self.running.borrow().clone();
        let Some(Running {
            agent,
            machine,
            workspaces,
            paused: Some(resting),
            ..
        }) = running
        else {
            return self.running().map(drop);
        };
        machine.resume().await?;
        // Before anything new is asked of it.
        let woken = agent.wake().await;
        workspaces.go_on(&resting).await;
        self.running.send_modify(|running| {
            if let Some(running) = running {
                running.paused = None;
            }
        });
        match owned.record.state.after(Move::Resume) {
            Some(next) => self.enter(owned, next).and(woken),
            None => woken,
        }
    }
}
