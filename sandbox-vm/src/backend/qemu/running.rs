//! Machines that are saved while they run, and machines that go on from there.
//!
//! ```text
//!  the guest runs    │ copy the memory's file, and the machine's own pages over it
//!  its channel rests │
//!  it stands still   │ the own pages again, where they have changed; the devices; the disks
//!  it runs           │ digests, flush, rename
//! ```
//!
//! What must not be left half-done (the guest standing still, its channel at rest) runs to its end in a task of
//! its own, whoever drops the future that waits for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_base::ErrorKind;
use serde_json::json;
use tokio::sync::Mutex;

use super::Qemu;
use super::machine::QemuMachine;
use super::memory::{GuestMemory, Writing};
use super::qmp::Qmp;
use super::saved::{Session, blocking, new_file, runs_alike};
use super::{clock, state};
use crate::channel::Hold;
use crate::hypervisor::{Acceleration, Disk, MachineSpec};
use crate::snapshot::{self, Making, Opened, Taken};
use crate::template::{Saved, TemplateKey};
use crate::{Agent, Error, disk};

const OPERATION: &str = "save a machine while it runs";

/// How long QEMU may take for one command while the guest stands still. It takes milliseconds.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);

/// What a machine was restored from, which is a part of whatever is saved of it.
#[derive(Debug)]
pub(super) struct Ancestry {
    key: TemplateKey,
    tsc_khz: Option<u64>,
    /// The file that its memory is a private mapping of. It stays readable when it is removed.
    memory: File,
    /// The beginning of its state ([`state::beginning`]).
    beginning: Vec<u8>,
    /// Its disks, by their places, whatever they are called by now; `None` for those that cannot be written to.
    disks: Vec<Option<File>>,
}

impl Ancestry {
    /// Remembers what a machine is restored from.
    pub(super) fn of(
        (key, tsc_khz): (&TemplateKey, Option<u64>),
        (memory, state): (&Path, &File),
        disks: &[Disk],
    ) -> io::Result<Self> {
        let mut bytes = state::read(state)?;
        bytes.truncate(state::beginning(&bytes)?);
        let writable = |disk: &Disk| {
            let file = (!disk.read_only).then(|| File::open(&disk.path));
            file.transpose()
        };
        Ok(Self {
            key: key.clone(),
            tsc_khz,
            memory: File::open(memory)?,
            beginning: bytes,
            disks: disks.iter().map(writable).collect::<io::Result<_>>()?,
        })
    }
}

/// What is copied while the guest stands still.
struct Standing {
    memory: GuestMemory,
    /// The pages that were the machine's own at the first look.
    own: Vec<bool>,
    copy: File,
    /// Where the copies of the writable disks are to be, by their places.
    disks: Vec<PathBuf>,
}

impl QemuMachine {
    /// Saves the machine in the new folder `target`.
    pub(super) async fn save_running(&self, agent: &Agent, target: &Path) -> Result<Taken, Error> {
        let ancestry = self.ancestry().cloned().map_err(|reason| {
            Error::new(ErrorKind::Unsupported, OPERATION).with_detail(reason.to_owned())
        })?;
        let pid = self.pid().ok_or(ErrorKind::Disconnected);
        let pid = pid.map_err(|kind| Error::new(kind, OPERATION))?;
        let making = Making::begin(target)?;
        let devices = making.state().with_extension("devices");
        let devices_file = write_only(&devices)?;
        let (standing, making) = {
            let ancestry = ancestry.clone();
            blocking(OPERATION, move || {
                Ok((first_look(pid, &ancestry, &making)?, making))
            })
            .await?
        };
        let own_memory = standing.own.iter().filter(|own| **own).count() as u64 * 4096;
        let hold = agent.hold().await?;
        let qmp = self.control();
        let base = ancestry.clone();
        let stopped = tokio::spawn(stand_still(qmp, hold, (standing, base), devices_file));
        let stopped = stopped
            .await
            .map_err(|error| Error::new(ErrorKind::Io, OPERATION).with_source(error))?;
        let (stopped, changed_memory) = stopped?;
        let finished = blocking(OPERATION, move || {
            let failed = |error| Error::io(OPERATION, error);
            let devices_bytes =
                state::read(File::open(&devices).map_err(failed)?).map_err(failed)?;
            let state = state::with_devices(&ancestry.beginning, &devices_bytes).map_err(failed)?;
            let file = new_file(&making.state())?;
            file.write_all_at(&state, 0).map_err(failed)?;
            fs::remove_file(&devices).map_err(failed)?;
            making.finish(ancestry.key.clone(), ancestry.tsc_khz)
        })
        .await?;
        // Here and not there: who has gone away meanwhile finds nothing.
        finished.publish()?;
        Ok(Taken {
            stopped,
            own_memory,
            changed_memory,
        })
    }
}

/// Copies what the machine was restored from, and what it has changed since.
fn first_look(pid: u32, ancestry: &Ancestry, making: &Making) -> Result<Standing, Error> {
    let failed = |error| Error::io(OPERATION, error);
    let memory = GuestMemory::of(pid, &ancestry.memory)?;
    let copy = new_file(&making.memory())?;
    disk::fill(&ancestry.memory, &copy).map_err(failed)?;
    let own = memory.own().map_err(failed)?;
    memory.copy(&own, &copy, Writing::All).map_err(failed)?;
    Ok(Standing {
        memory,
        own,
        copy,
        disks: (0..ancestry.disks.len())
            .map(|place| making.disk(place))
            .collect(),
    })
}

/// Stops the guest, copies what belongs to this moment, and lets it go on, whatever came of it. Returns for how long it
/// stood still, and how much of its memory had changed.
async fn stand_still(
    qmp: Arc<Mutex<Option<Qmp>>>,
    hold: Hold,
    (standing, ancestry): (Standing, Arc<Ancestry>),
    devices: File,
) -> Result<(Duration, u64), Error> {
    let mut qmp = qmp.lock().await;
    let qmp = qmp
        .as_mut()
        .ok_or_else(|| Error::new(ErrorKind::Disconnected, OPERATION))?;
    let start = Instant::now();
    in_time(qmp.execute("stop", json!({}))).await?;
    let copied = blocking(OPERATION, move || second_look(&standing, &ancestry));
    let (copied, saved) = tokio::join!(copied, in_time(qmp.save_devices(&devices)));
    let gone_on = in_time(qmp.execute("cont", json!({}))).await;
    let stopped = start.elapsed();
    drop(hold);
    gone_on?;
    saved?;
    Ok((stopped, copied?))
}

/// Brings the copy of the memory up to what it is now, and copies the disks.
fn second_look(standing: &Standing, ancestry: &Ancestry) -> Result<u64, Error> {
    let failed = |error| Error::io(OPERATION, error);
    let own = standing.memory.own().map_err(failed)?;
    let changed = standing.memory.copy(&own, &standing.copy, Writing::Changed);
    let changed = changed.map_err(failed)?;
    // A page that was the machine's own and is no more has what the file has.
    let given_up = standing.own.iter().zip(&own).enumerate();
    let given_up = given_up.filter(|(_, (before, now))| **before && !**now);
    let mut page = [0; 4096];
    for (number, _) in given_up {
        let offset = number as u64 * 4096;
        let read = ancestry.memory.read_exact_at(&mut page, offset);
        let written = read.and_then(|()| standing.copy.write_all_at(&page, offset));
        written.map_err(failed)?;
    }
    for (disk, copy) in ancestry.disks.iter().zip(&standing.disks) {
        if let Some(disk) = disk {
            disk::copy_open(disk, copy)?;
        }
    }
    Ok(changed)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(COMMAND_PATIENCE, work).await {
        Ok(done) => done.map_err(|error| Error::io(OPERATION, error)),
        Err(_) => Err(Error::new(ErrorKind::TimedOut, OPERATION)),
    }
}

/// Makes a file for QEMU to write to, in the mode in which QEMU wants it.
fn write_only(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| Error::io(OPERATION, error))
}

impl Qemu {
    /// Starts a machine that goes on from the snapshot in `folder`.
    pub(super) async fn resume(
        &self,
        spec: &MachineSpec,
        folder: &Path,
        acceleration: Acceleration,
    ) -> Result<QemuMachine, Error> {
        const OPERATION: &str = "go on from a snapshot";
        let (opened, made) = {
            let (folder, disks) = (folder.to_owned(), spec.disks.clone());
            blocking(OPERATION, move || {
                let opened = snapshot::open(&folder)?;
                let made = Made::of(&opened, &disks)?;
                Ok((opened, made))
            })
            .await?
        };
        let key = self.key(spec, acceleration).await?;
        let differences = opened.key.differences(&key);
        if !differences.is_empty() || !runs_alike(opened.tsc_khz, clock::tsc_khz()) {
            let mut what = differences.join(", ");
            if what.is_empty() {
                what = "the rate of the processor's clock".to_owned();
            }
            return Err(
                Error::new(ErrorKind::Unsupported, OPERATION).with_detail(format!(
                    "this machine differs from the one that was saved: {what}"
                )),
            );
        }
        let saved = Saved {
            memory: opened.memory(),
            state: File::open(opened.state()).map_err(|error| Error::io(OPERATION, error))?,
            tsc_khz: opened.tsc_khz,
        };
        let machine = self
            .start_from(
                (&saved, &opened.key),
                (spec, acceleration),
                Session::Another,
            )
            .await?;
        made.keep();
        Ok(machine.resumed())
    }
}

/// The disks that were made for a machine, removed again unless it starts.
struct Made(Vec<PathBuf>);

impl Made {
    fn of(opened: &Opened, disks: &[Disk]) -> Result<Self, Error> {
        let mut made = Self(Vec::new());
        for (place, disk) in disks.iter().enumerate() {
            let Some(saved) = opened.disk(place).filter(|_| !disk.read_only) else {
                continue;
            };
            disk::copy(&saved, &disk.path)?;
            made.0.push(disk.path.clone());
        }
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            drop(fs::remove_file(path));
        }
    }
}
