//! QEMU: a virtual machine with a kernel of its own.
//!
//! One process per machine, of the `microvm` type: no firmware, no PCI, a handful of virtio devices over
//! memory-mapped I/O, found through ACPI tables. The processor runs it where KVM boots a guest; software
//! emulates it elsewhere, if the embedder allows that.
//!
//! ```text
//!  Qemu::start ─▶ watchdog ─▶ qemu-system-x86_64
//!     │ listens on two sockets in the machine's folder, to which QEMU connects:
//!     ├── agent.sock   the guest's virtio-serial port     (bytes of a stranger)
//!     └── qmp.sock     QEMU's own control protocol
//! ```
//!
//! QEMU connects to us, and the sockets' names are removed once it has: nobody else can take its place,
//! and nothing has to be polled for.
//!
//! | module | holds |
//! |---|---|
//! | `config` | what an embedder can set |
//! | `arguments` | the command line, as a pure function of the machine |
//! | `machine` | one running machine |
//! | `probe` | whether KVM boots a guest here, found out once per boot of the host |
//! | `saved` | machines that are restored from a template, and the saving of templates |
//! | `qmp` | QEMU's control protocol |
//! | `clock` | the processor's time stamp counter, which the guest's kernel must be told |

mod arguments;
mod clock;
mod config;
mod machine;
mod memory;
mod probe;
mod qmp;
mod running;
mod saved;
mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_base::ErrorKind;
use tokio::sync::OnceCell;

use crate::Error;
use crate::hypervisor::{
    Acceleration, Availability, Capabilities, Disk, Hypervisor, Isolation, Machine, MachineSpec,
};
use crate::kernel::{Kernel, initrd};
use crate::template::{ColdReason, Templates};

pub use config::{AccelerationPolicy, QemuConfig};

use arguments::{Endpoints, Launch, Origin};

/// The backend's name.
const NAME: &str = "qemu";

/// How long a kernel may take from the start to its agent's first word on real hardware, where it
/// takes less than a second.
const KERNEL_PATIENCE: Duration = Duration::from_secs(8);

/// The QEMU backend.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    availability: OnceCell<Availability>,
    boot_files: OnceCell<BootFiles>,
    acceleration: OnceCell<Acceleration>,
    /// Whether saving or restoring has failed. It is not tried on every start then.
    templates_fail: AtomicBool,
}

/// What every machine boots from.
#[derive(Debug, Clone)]
struct BootFiles {
    kernel: PathBuf,
    kernel_digest: String,
    initrd: PathBuf,
    initrd_digest: String,
}

impl Qemu {
    /// Makes the backend. Nothing is looked for before it is used.
    pub fn new(config: QemuConfig) -> Self {
        Self {
            config,
            availability: OnceCell::new(),
            boot_files: OnceCell::new(),
            acceleration: OnceCell::new(),
            templates_fail: AtomicBool::new(false),
        }
    }

    /// Obtains the kernel and writes the initial ramdisk, unless that has been done: what the first
    /// start would do, for tools that want to show progress.
    ///
    /// # Errors
    ///
    /// Those of obtaining a kernel.
    pub async fn prepare(&self) -> Result<(), Error> {
        self.boot_files().await.map(drop)
    }

    /// Returns QEMU's program and arguments for a machine that boots, with its sockets (`agent.sock`, `qmp.sock`, to
    /// which QEMU connects) in the specification's folder: for tools that compare a machine with a bare
    /// QEMU, or explain one. Starts nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Hypervisor::start`] but for what only a start finds out.
    pub async fn command_line(&self, spec: &MachineSpec) -> Result<Vec<String>, Error> {
        check(spec)?;
        let acceleration = self.availability().await?.acceleration;
        let launch = self.launch(acceleration).await?;
        let ends = Endpoints {
            agent: &spec.folder.join(machine::AGENT_SOCKET),
            qmp: &spec.folder.join(machine::QMP_SOCKET),
        };
        Ok(arguments::arguments(&launch, spec, ends))
    }

    async fn availability(&self) -> Result<&Availability, Error> {
        self.availability
            .get_or_try_init(|| probe::probe(&self.config))
            .await
    }

    async fn launch(&self, acceleration: Acceleration) -> Result<Launch<'_>, Error> {
        let boot = self.boot_files().await?;
        Ok(Launch {
            program: &self.config.program,
            kernel: &boot.kernel,
            initrd: &boot.initrd,
            acceleration,
            tsc_khz: clock::tsc_khz(),
            origin: Origin::Cold,
        })
    }

    /// Makes sure that the kernel boots the way the probe promised, before the first machine relies on
    /// it; falls back to emulation only where the policy allows it.
    async fn confirm(&self, spec: &MachineSpec) -> Result<Acceleration, Error> {
        // All three take a moment on the way to the first machine, and none needs another.
        let rate = tokio::task::spawn_blocking(clock::tsc_khz);
        let (availability, _) = tokio::try_join!(self.availability(), self.boot_files())?;
        // It is asked again where it is needed, and answers at once then.
        drop(rate.await);
        if availability.acceleration != Acceleration::Hardware || self.kernel_boots(spec).await? {
            return Ok(availability.acceleration);
        }
        let reason = probe::kernel_did_not_boot(&self.config, &availability.version);
        tracing::warn!(%reason, "no hardware acceleration");
        match self.config.acceleration {
            AccelerationPolicy::RequireHardware => {
                Err(Error::new(ErrorKind::Unsupported, "use KVM").with_detail(reason))
            }
            _ => Ok(Acceleration::Emulated),
        }
    }

    /// Boots the kernel with its agent under KVM, in a folder beside the machine's.
    async fn kernel_boots(&self, spec: &MachineSpec) -> Result<bool, Error> {
        let launch = self.launch(Acceleration::Hardware).await?;
        let trial = MachineSpec::new("trial", spec.folder.with_extension("trial"));
        let Ok(machine) = machine::start(&self.config, &launch, &trial).await else {
            return Ok(false);
        };
        let greet = async { crate::Agent::connect(machine.connect().await?).await };
        let greeted = tokio::time::timeout(KERNEL_PATIENCE, greet).await;
        machine.kill().await?;
        Ok(matches!(greeted, Ok(Ok(_))))
    }

    async fn boot_files(&self) -> Result<&BootFiles, Error> {
        self.boot_files
            .get_or_try_init(|| make_boot_files(&self.config))
            .await
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            templates: true,
            pause: true,
            ..Capabilities::new(Isolation::VirtualMachine)
        }
    }

    async fn probe(&self) -> Result<Availability, Error> {
        self.availability().await.cloned()
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, Error> {
        check(spec)?;
        let acceleration = *self
            .acceleration
            .get_or_try_init(|| self.confirm(spec))
            .await?;
        if acceleration == Acceleration::Emulated {
            warn_once_of_emulation();
        }
        if let Some(folder) = &spec.snapshot {
            let machine = self.resume(spec, folder, acceleration).await?;
            return Ok(Arc::new(machine));
        }
        let reason = match (self.config.templates, spec.templates) {
            (Templates::Use, Templates::Use) => match self.restore(spec, acceleration).await {
                Ok(machine) => return Ok(Arc::new(machine)),
                Err(reason) => reason,
            },
            _ => ColdReason::Off,
        };
        if reason != ColdReason::Off {
            tracing::warn!(%reason, "a machine boots instead of being restored");
        }
        let launch = self.launch(acceleration).await?;
        let machine = machine::start(&self.config, &launch, spec).await?;
        Ok(Arc::new(machine.booted_because(reason)))
    }
}

/// Refuses what could not boot before anything is started for it.
fn check(spec: &MachineSpec) -> Result<(), Error> {
    let invalid =
        |detail: String| Error::new(ErrorKind::Invalid, "start a machine").with_detail(detail);
    if spec.cpus == 0 || spec.cpus > 64 {
        return Err(invalid(format!(
            "{} processors; 1 to 64 are possible",
            spec.cpus
        )));
    }
    if spec.memory_mib < 128 {
        let detail = format!(
            "{} MiB of memory; the kernel needs at least 128",
            spec.memory_mib
        );
        return Err(invalid(detail));
    }
    // Those that come with a snapshot are not there yet.
    let is_there = |disk: &&Disk| disk.read_only || spec.snapshot.is_none();
    spec.disks.iter().filter(is_there).try_for_each(check_disk)
}

/// Opens a disk as QEMU will: its own message would name neither the reason's kind nor what to do.
fn check_disk(disk: &Disk) -> Result<(), Error> {
    let operation = || format!("use the disk {}", disk.path.display());
    let failed = |error| Error::io(operation(), error);
    let kind = std::fs::metadata(&disk.path).map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(Error::new(ErrorKind::Invalid, operation())
            .with_detail("it is neither a file nor a block device"));
    }
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(!disk.read_only);
    options.open(&disk.path).map(drop).map_err(failed)
}

fn warn_once_of_emulation() {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            "machines are emulated in software: slower, and not a security boundary by QEMU's own word"
        );
    });
}

async fn make_boot_files(config: &QemuConfig) -> Result<BootFiles, Error> {
    let kernel = match &config.kernel {
        Some(kernel) => kernel.clone(),
        None => Kernel::from_distribution(&config.cache, config.progress.clone()).await?,
    };
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        let modules = kernel.modules(&crate::kernel::virtio_guest())?;
        let agent = std::fs::read(&config.helper)
            .map_err(|error| Error::io("read the helper binary", error))?;
        let (path, digest) = store_initrd(&config.cache, &initrd::build(&agent, &modules))?;
        let image =
            std::fs::read(&kernel.image).map_err(|error| Error::io("read the kernel", error))?;
        Ok(BootFiles {
            kernel: kernel.image,
            kernel_digest: blake3::hash(&image).to_hex().to_string(),
            initrd: path,
            initrd_digest: digest,
        })
    })
    .await
    .map_err(|error| Error::new(ErrorKind::Io, "prepare the kernel").with_source(error))?
}

/// Keeps an initial ramdisk in the cache under its own digest, which is returned too.
fn store_initrd(cache: &Path, initrd: &[u8]) -> Result<(PathBuf, String), Error> {
    let folder = cache.join("initrd");
    let digest = blake3::hash(initrd).to_hex().to_string();
    let path = folder.join(format!("{digest}.cpio"));
    let failed = |error| Error::io("store the initial ramdisk", error);
    if !path.exists() {
        std::fs::create_dir_all(&folder).map_err(failed)?;
        sandbox_base::durable::write(&path, initrd).map_err(failed)?;
    }
    Ok((path, digest))
}
