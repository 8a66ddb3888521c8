//! Machines that are restored from a template, and the saving of templates.
//!
//! ```text
//!  restore ─▶ find ──────────────▶ start, load, sign of life ─▶ a machine
//!              │ none                        │ fails
//!              ▼                             ▼
//!             build ─ boots one of its own  drop the template
//! ```
//!
//! Whatever goes wrong here is a reason to boot, never an error of the start itself, and a reason not to try it
//! again with this backend's value.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sandbox_base::ErrorKind;

use super::arguments::{DEVICES, Launch, MACHINE, Origin, kernel_line, processor};
use super::machine::{self, QemuMachine};
use super::running::Ancestry;
use super::{Qemu, clock};
use crate::Error;
use crate::hypervisor::{Acceleration, Disk, MachineSpec};
use crate::template::{
    Building, ColdReason, DiskShape, Limits, Saved, TemplateKey, TemplateStore, host_processor,
};

const TEMPLATES: &str = "look after templates";

/// Part of every key: raise it when the same machine must be saved anew.
const FORMAT: u32 = 1;

/// How long a restored guest may take to its first sign of life; it takes some hundredths of a second.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a guest that was saved while it ran may take to begin with another host.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(30);

/// How long a guest may take to boot for a template. Who waits for another process to build one waits as long.
const BUILD_PATIENCE: Duration = Duration::from_secs(60);

/// How long a guest that is to be saved may take to come to rest.
const REST_PATIENCE: Duration = Duration::from_secs(3);

/// By how much the rate of the time stamp counter may differ from when a template was saved: one part in this
/// many. Two measurements on one host differ by less than one part in ten thousand.
const RATE_TOLERANCE: u64 = 500;

/// What the guest in saved files waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Session {
    /// The first word of its first host.
    First,
    /// Another host: it was saved in the middle of a session.
    Another,
}

impl Qemu {
    /// Restores a machine, from a template that is made when there is none; or says why not.
    pub(super) async fn restore(
        &self,
        spec: &MachineSpec,
        acceleration: Acceleration,
    ) -> Result<QemuMachine, ColdReason> {
        if self.templates_fail.load(Ordering::Relaxed) {
            return Err(ColdReason::FailedBefore);
        }
        let restored = self.try_restore(spec, acceleration).await;
        let failed = matches!(
            restored,
            Err(ColdReason::NotSaved(_) | ColdReason::NotRestored(_))
        );
        self.templates_fail.fetch_or(failed, Ordering::Relaxed);
        restored
    }

    async fn try_restore(
        &self,
        spec: &MachineSpec,
        acceleration: Acceleration,
    ) -> Result<QemuMachine, ColdReason> {
        let not_saved = |error: Error| ColdReason::NotSaved(why(&error));
        let key = self.key(spec, acceleration).await.map_err(not_saved)?;
        let store = TemplateStore::new(&self.config.cache);
        let saved = self.find_or_build(&store, &key, spec, acceleration).await?;
        match self
            .start_from((&saved, &key), (spec, acceleration), Session::First)
            .await
        {
            Ok(machine) => Ok(machine.restored_from(key.digest())),
            Err(error) => {
                if let Err(error) = store.drop_entry(&key.digest()) {
                    tracing::warn!(%error, "a template that cannot be restored stays");
                }
                Err(ColdReason::NotRestored(why(&error)))
            }
        }
    }

    async fn find_or_build(
        &self,
        store: &TemplateStore,
        key: &TemplateKey,
        spec: &MachineSpec,
        acceleration: Acceleration,
    ) -> Result<Saved, ColdReason> {
        let not_saved = |error: Error| ColdReason::NotSaved(why(&error));
        let deadline = Instant::now() + BUILD_PATIENCE;
        loop {
            if let Some(saved) = find(store, key).await.map_err(not_saved)? {
                return Ok(saved);
            }
            if let Some(building) = store.begin(key).map_err(not_saved)? {
                // Another process may have finished it before the lock was taken.
                if let Some(saved) = find(store, key).await.map_err(not_saved)? {
                    return Ok(saved);
                }
                self.build(building, key, spec, acceleration)
                    .await
                    .map_err(not_saved)?;
            } else if Instant::now() > deadline {
                return Err(ColdReason::Busy);
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    pub(super) async fn key(
        &self,
        spec: &MachineSpec,
        acceleration: Acceleration,
    ) -> Result<TemplateKey, Error> {
        let boot = self.boot_files().await?;
        let [accelerator, model] = processor(acceleration);
        let disks = spec.disks.iter().map(shape);
        Ok(TemplateKey {
            format: FORMAT,
            hypervisor: self.availability().await?.version.clone(),
            machine: MACHINE.to_owned(),
            accelerator: accelerator.to_owned(),
            processor: model.to_owned(),
            host_processor: host_processor(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            kernel: boot.kernel_digest.clone(),
            kernel_line: kernel_line(acceleration, None),
            ramdisk: boot.initrd_digest.clone(),
            devices: DEVICES.map(str::to_owned).to_vec(),
            disks: disks.collect::<Result<_, _>>()?,
        })
    }

    /// Boots a machine without a sandbox, waits until its agent waits, and keeps it.
    async fn build(
        &self,
        building: Building,
        key: &TemplateKey,
        spec: &MachineSpec,
        acceleration: Acceleration,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let memory = building.memory();
        let launch = Launch {
            origin: Origin::Saving(&memory, &key.disks),
            ..self.launch(acceleration).await?
        };
        new_file(&memory)?;
        let state = new_file(&building.state())?;
        let mut own = MachineSpec::new("template", spec.folder.with_extension("template"));
        own.cpus = spec.cpus;
        own.memory_mib = spec.memory_mib;
        own.disks = spec.disks.clone();
        let machine = machine::start(&self.config, &launch, &own).await?;
        let saved = async {
            machine.sign_of_life(BUILD_PATIENCE).await?;
            if let Some(pid) = machine.pid() {
                rest(pid).await;
            }
            machine.save(&state).await
        };
        let saved = saved.await;
        // It is gone before its memory is looked at, and cannot write to it any more.
        let killed = machine.end().await;
        saved.and(killed)?;
        let (key, tsc_khz) = (key.clone(), launch.tsc_khz);
        let store = TemplateStore::new(&self.config.cache);
        blocking(TEMPLATES, move || {
            building.finish(&key, tsc_khz)?;
            store.prune(&Limits::default()).map(drop)
        })
        .await?;
        tracing::debug!(took = ?start.elapsed(), "a template is saved");
        Ok(())
    }

    /// Starts a machine that goes on from saved files, and waits until its guest answers.
    pub(super) async fn start_from(
        &self,
        (saved, key): (&Saved, &TemplateKey),
        (spec, acceleration): (&MachineSpec, Acceleration),
        session: Session,
    ) -> Result<QemuMachine, Error> {
        let files = (&*saved.memory, &saved.state);
        let ancestry = Ancestry::of((key, saved.tsc_khz), files, &spec.disks);
        let launch = Launch {
            origin: Origin::Saved(&saved.memory),
            ..self.launch(acceleration).await?
        };
        let machine = machine::start(&self.config, &launch, spec).await?;
        let loaded = async {
            machine.load(&saved.state).await?;
            match session {
                Session::First => machine.sign_of_life(RESTORE_PATIENCE).await,
                Session::Another => machine.take_over(TAKE_OVER_PATIENCE).await,
            }
        };
        match loaded.await {
            Ok(()) => Ok(machine.descended_from(ancestry)),
            Err(error) => {
                // Its folder is used again.
                machine.end().await?;
                Err(error)
            }
        }
    }
}

/// Says an error with all that led to it.
fn why(error: &Error) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    sources.fold(error.to_string(), |text, source| {
        format!("{text}: {source}")
    })
}

async fn find(store: &TemplateStore, key: &TemplateKey) -> Result<Option<Saved>, Error> {
    let (store, key) = (store.clone(), key.clone());
    blocking(TEMPLATES, move || {
        store.find(&key, |saved| runs_alike(saved.tsc_khz, clock::tsc_khz()))
    })
    .await
}

/// Tells whether a clock that was told one rate is right at another.
pub(super) fn runs_alike(saved: Option<u64>, here: Option<u64>) -> bool {
    match (saved, here) {
        (Some(saved), Some(here)) => saved.abs_diff(here) <= here / RATE_TOLERANCE,
        (saved, here) => saved == here,
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, operation).with_source(error))?
}

fn shape(disk: &Disk) -> Result<DiskShape, Error> {
    let size = File::open(&disk.path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let failed = |error| Error::io(format!("measure the disk {}", disk.path.display()), error);
    Ok(DiskShape::new(size.map_err(failed)?, disk.read_only))
}

pub(super) fn new_file(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(path);
    file.map_err(|error| Error::io(format!("make {}", path.display()), error))
}

/// Waits until a process takes next to no time of the processor: what a guest's kernel still has to do when it
/// is saved, it does again in every machine that is restored.
async fn rest(pid: u32) {
    const STEP: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + REST_PATIENCE;
    let mut before = used(pid);
    while Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
        let now = used(pid);
        // One of the kernel's ticks is a hundredth of a second.
        if now.saturating_sub(before) <= 1 {
            return;
        }
        before = now;
    }
}

/// Returns the processor time that a process has used, in ticks (`man 5 proc`).
fn used(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|time| time.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r07_a_rate_that_is_measured_again_fits_and_another_processors_does_not() {
        assert!(runs_alike(Some(2_596_120), Some(2_596_300)));
        assert!(!runs_alike(Some(2_596_120), Some(2_800_000)));
        assert!(!runs_alike(Some(2_596_120), None));
        assert!(runs_alike(None, None));
    }
}
