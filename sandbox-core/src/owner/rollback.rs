//! Snapshots of a running sandbox, and the way back to one.
//!
//! Taking one: synchronizing rests between two cycles, so that what the workspaces agreed on belongs to the disk;
//! the folders outside are put into their own store; the machine is saved; synchronizing goes on. Commands run on.
//!
//! Going back: a machine is started from the snapshot beside the present one, which rests meanwhile and goes on if that
//! fails. Only then does the present one end, and the other takes over its place, its disk and its workspaces.
//!
//! ```text
//!  present   ── runs ── runs ───────────┤ ended
//!  the other            started, checked ├─ its disk is the sandbox's ── egress, workspaces ── runs
//!                       fails: removed
//! ```

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sandbox_base::{Error, ErrorKind};
use sandbox_vm::hypervisor::HypervisorExt;
use sandbox_vm::image::RootImage;
use sandbox_vm::{Agent, Machine};
use serde::{Deserialize, Serialize};

use super::{Owner, Running, removed, to_its_end};
use crate::history;
use crate::lifecycle::{Move, State};
use crate::saved::{self, SandboxSnapshot, Saved, workspaces_name};
use crate::snapshots::Snapshots;
use crate::spec::Spec;
use crate::state::{Owned, blocking};

/// What becomes of the workspaces' folders outside when a sandbox goes back to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outside {
    /// They stay what they are. What was done there since the snapshot comes into the sandbox again, by the
    /// workspaces' own rules.
    #[default]
    Keep,
    /// They go back to what they were, too, after a snapshot of what they are.
    Restore,
}

impl Owner {
    /// Takes a snapshot of the running sandbox. Goes on when the future is dropped.
    pub(crate) async fn save(self: &Arc<Self>, name: &str) -> Result<SandboxSnapshot, Error> {
        let (owner, name) = (self.clone(), name.to_owned());
        to_its_end(async move {
            let guard = owner.owned.lock().await;
            let owned = guard.as_ref().ok_or_else(removed)?;
            refuse_shared_disks(&owned.record.spec, "take a snapshot")?;
            let running = owner.running()?;
            let making = Saved::of(&owned.folder).begin(&name)?;
            at_rest(&running, save_at_rest(owned, &running, making, &name)).await
        })
        .await
    }

    /// Goes back to a snapshot. Goes on when the future is dropped.
    pub(crate) async fn roll_back(
        self: &Arc<Self>,
        name: &str,
        outside: Outside,
    ) -> Result<(), Error> {
        let (owner, name) = (self.clone(), name.to_owned());
        to_its_end(async move {
            let mut guard = owner.owned.lock().await;
            let owned = guard.as_mut().ok_or_else(removed)?;
            let present = owner.running()?;
            let folder = Saved::of(&owned.folder).find(&name)?;
            if outside == Outside::Restore {
                find_outside(owned, &name).await?;
            }
            let resting = present.workspaces.rest().await?;
            let disk = owned.folder.join("disk.next");
            let started = owner.start_beside(owned, &folder, &disk).await;
            let (image, machine, agent) = match started {
                Ok(started) => started,
                Err(error) => {
                    present.workspaces.go_on(&resting).await;
                    return Err(error);
                }
            };
            let replaced = owner.replace(owned, &present, (&folder, &disk));
            let taken_over = async {
                replaced.await?;
                // Before anything of it goes in. Where it fails the sandbox has gone back all the same.
                let restored = match outside {
                    Outside::Restore => restore_outside(owned, &name).await,
                    Outside::Keep => Ok(()),
                };
                let running = owner.furnish(owned, &image, machine.clone(), agent).await?;
                Ok((running, restored))
            };
            match taken_over.await {
                Ok((running, restored)) => {
                    owner.watch_machine(&running, owned.record.spec.limits.run_time);
                    owner.running.send_replace(Some(running));
                    restored
                }
                Err(error) => {
                    if let Err(left) = machine.kill().await {
                        tracing::warn!(error = %left, "a failed way back left something behind");
                    }
                    let next = owned.record.state.after(Move::Ended);
                    owner.enter(owned, next.unwrap_or(State::Stopped))?;
                    Err(error)
                }
            }
        })
        .await
    }

    /// Starts the snapshot's machine, with a disk of its own and in a folder that the present one does not use.
    async fn start_beside(
        &self,
        owned: &Owned,
        folder: &std::path::Path,
        disk: &PathBuf,
    ) -> Result<(RootImage, Arc<dyn Machine>, Agent), Error> {
        // Of an attempt that died.
        drop(fs::remove_file(disk));
        let spec = &owned.record.spec;
        let image = self.image(spec).await?;
        let mut machine = self.machine(owned, &image, disk.clone());
        machine.snapshot = Some(saved::machine(folder));
        let free = |folder: &PathBuf| !folder.exists();
        let folders = ["m", "n"].map(|name| owned.runtime.join(name));
        machine.folder = folders.into_iter().find(free).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "go back to a snapshot")
                .with_detail("two machines of the sandbox are there already")
        })?;
        let (machine, agent) = self.hypervisor.boot(&machine, spec.boot_patience).await?;
        Ok((image, machine, agent))
    }

    /// Ends the present machine, and makes the other one's disk and histories the sandbox's.
    async fn replace(
        &self,
        owned: &Owned,
        present: &Running,
        (folder, disk): (&std::path::Path, &std::path::Path),
    ) -> Result<(), Error> {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.running.send_replace(None);
        present.workspaces.close().await;
        present.machine.kill().await?;
        if !owned.record.spec.read_only_root {
            fs::rename(disk, owned.disk())
                .map_err(|error| Error::io("take a snapshot's disk into use", error))?;
        }
        history::replace(&owned.folder, folder)
    }
}

/// Refuses a disk image of the host that would be written to twice over.
pub(super) fn refuse_shared_disks(spec: &Spec, operation: &str) -> Result<(), Error> {
    match spec.disks.iter().all(|disk| disk.read_only) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unsupported, operation)
            .with_detail("a disk image of the host that the sandbox writes to is in no snapshot")),
    }
}

/// Does the work between two cycles of the workspaces.
pub(super) async fn at_rest<T>(
    running: &Running,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    if let Err(error) = running.workspaces.flush().await {
        tracing::warn!(%error, "a machine is saved whose workspaces do not agree");
    }
    let resting = running.workspaces.rest().await?;
    let done = work.await;
    running.workspaces.go_on(&resting).await;
    done
}

async fn save_at_rest(
    owned: &Owned,
    running: &Running,
    making: saved::Making,
    name: &str,
) -> Result<SandboxSnapshot, Error> {
    let workspaces = workspaces_name(name);
    if !owned.record.spec.workspaces.is_empty() {
        // One that an attempt left which died is not this one's.
        drop(forget_outside(owned, &workspaces).await);
        running.workspaces.snapshot(Some(&workspaces)).await?;
    }
    let saved = async {
        let machine = &running.machine;
        let taken = machine.snapshot(&running.agent, &making.machine()).await?;
        let stopped = u64::try_from(taken.stopped.as_millis()).unwrap_or(u64::MAX);
        let folder = owned.folder.clone();
        blocking(move || making.finish(&folder, stopped)).await
    };
    let saved = saved.await;
    if saved.is_err() && !owned.record.spec.workspaces.is_empty() {
        drop(forget_outside(owned, &workspaces).await);
    }
    saved
}

async fn forget_outside(owned: &Owned, name: &str) -> Result<(), Error> {
    let snapshots = Snapshots::new(owned.dirs(), &owned.record);
    let (workspaces, name) = (owned.record.spec.workspaces.clone(), name.to_owned());
    blocking(move || snapshots.remove(&workspaces, &name)).await
}

/// Looks whether the snapshot has the folders outside as well.
async fn find_outside(owned: &Owned, name: &str) -> Result<(), Error> {
    let snapshots = Snapshots::new(owned.dirs(), &owned.record);
    let workspaces = owned.record.spec.workspaces.clone();
    let wanted = workspaces_name(name);
    let found = blocking(move || match workspaces.is_empty() {
        true => Ok(true),
        false => Ok(snapshots
            .list(&workspaces)?
            .iter()
            .any(|one| one.name == wanted)),
    });
    match found.await? {
        true => Ok(()),
        false => Err(
            Error::new(ErrorKind::NotFound, format!("find the snapshot {name}")).with_detail(
                "that of the folders outside is gone; going back without them is possible",
            ),
        ),
    }
}

async fn restore_outside(owned: &Owned, name: &str) -> Result<(), Error> {
    let snapshots = Snapshots::new(owned.dirs(), &owned.record);
    let (workspaces, name) = (owned.record.spec.workspaces.clone(), workspaces_name(name));
    blocking(move || snapshots.restore(&workspaces, (&name, &[])))
        .await
        .map(drop)
}
