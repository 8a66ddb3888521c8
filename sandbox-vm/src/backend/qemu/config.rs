//! What an embedder can set.

use std::path::PathBuf;
use std::time::Duration;

use crate::Progress;
use crate::kernel::Kernel;
use crate::template::Templates;

/// The configuration of the QEMU backend.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QemuConfig {
    /// The helper binary, which is the guest's agent and the machine's watchdog.
    pub helper: PathBuf,
    /// Where kernels, ramdisks and what the probe found are kept.
    pub cache: PathBuf,
    /// The program: a path, or a name that is looked for in `PATH`.
    pub program: PathBuf,
    /// The kernel; the distribution's own when `None`.
    pub kernel: Option<Kernel>,
    /// Whether software may emulate the processor where KVM boots no guest.
    pub acceleration: AccelerationPolicy,
    /// How long QEMU may take from its start to its two connections; 20 seconds by default. The guest's
    /// own boot has a patience of its own.
    pub start_patience: Duration,
    /// Whether machines may be restored from templates, which are kept in the cache, where a machine's own
    /// specification does not say no either; off by default.
    pub templates: Templates,
    /// Told about what takes long.
    pub progress: Progress,
}

/// Whether software may emulate the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AccelerationPolicy {
    /// KVM where it boots a guest, emulation elsewhere, which is said once and reported.
    #[default]
    PreferHardware,
    /// KVM or nothing.
    RequireHardware,
    /// Emulation, also where KVM would work.
    Emulate,
}

impl QemuConfig {
    /// A configuration with the distribution's QEMU and kernel.
    pub fn new(helper: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Self {
            helper: helper.into(),
            cache: cache.into(),
            program: format!("qemu-system-{}", std::env::consts::ARCH).into(),
            kernel: None,
            acceleration: AccelerationPolicy::default(),
            start_patience: Duration::from_secs(20),
            templates: Templates::default(),
            progress: Progress::silent(),
        }
    }

    /// Replaces the program.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Replaces the kernel.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Says whether software may emulate the processor.
    #[must_use]
    pub fn with_acceleration(mut self, policy: AccelerationPolicy) -> Self {
        self.acceleration = policy;
        self
    }

    /// Replaces the time that QEMU may take to connect.
    #[must_use]
    pub fn with_start_patience(mut self, patience: Duration) -> Self {
        self.start_patience = patience;
        self
    }

    /// Says whether machines may be restored from templates.
    #[must_use]
    pub fn with_templates(mut self, templates: Templates) -> Self {
        self.templates = templates;
        self
    }

    /// Is told about what takes long.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}
