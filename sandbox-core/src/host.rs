//! What this host can do.

use std::path::PathBuf;
use std::sync::Arc;

use sandbox_base::{Dirs, Error};
use sandbox_vm::hypervisor::{Availability, Isolation};
use sandbox_vm::{Hypervisor, Progress};
use serde::Serialize;

/// The backends of this build and what became of looking for each.
#[derive(Debug)]
#[non_exhaustive]
pub struct Host {
    /// Strongest wall first.
    pub backends: Vec<Backend>,
}

/// One backend and whether it can be used here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Backend {
    /// Its name.
    pub name: &'static str,
    /// The class of its wall.
    pub isolation: Isolation,
    /// How it would run, or why it cannot be used.
    pub availability: Result<Availability, Error>,
    hypervisor: Arc<dyn Hypervisor>,
}

/// [`Backend`] as JSON gives it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    isolation: Isolation,
    available: bool,
    #[serde(flatten)]
    availability: Option<&'a Availability>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Host {
    /// Looks for every backend of this build, in the places that the environment names.
    ///
    /// Takes a moment on the first call after a boot of the host, because a virtual machine is tried.
    ///
    /// # Errors
    ///
    /// `NotFound` when the environment names no home folder. That no backend can be used is no error.
    pub async fn detect() -> Result<Self, Error> {
        Ok(Self::detect_in(&default_dirs()?).await)
    }

    /// Looks for every backend of this build, keeping what it finds out beneath `dirs`.
    pub async fn detect_in(dirs: &Dirs) -> Self {
        let mut backends = Vec::new();
        // Without the helper nothing can be started; its absence is told by the first start.
        let helper = crate::helper::path(&dirs.cache).unwrap_or_default();
        for hypervisor in hypervisors(dirs, helper, Progress::silent()) {
            backends.push(Backend {
                name: hypervisor.name(),
                isolation: hypervisor.capabilities().isolation,
                availability: hypervisor.probe().await,
                hypervisor,
            });
        }
        backends.sort_by_key(|backend| std::cmp::Reverse(backend.isolation));
        Self { backends }
    }

    /// Returns the strongest backend that can be used.
    pub fn strongest(&self) -> Option<Arc<dyn Hypervisor>> {
        let usable = self
            .backends
            .iter()
            .find(|backend| backend.availability.is_ok());
        usable.map(|backend| backend.hypervisor.clone())
    }

    /// Returns everything as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let rows = self.backends.iter().map(|backend| {
            let availability = backend.availability.as_ref();
            Row {
                name: backend.name,
                isolation: backend.isolation,
                available: availability.is_ok(),
                availability: availability.ok(),
                reason: availability.err().map(ToString::to_string),
            }
        });
        serde_json::json!({ "backends": rows.collect::<Vec<_>>() })
    }
}

/// Returns the places that the environment names.
///
/// # Errors
///
/// `NotFound` when it names no home folder.
pub fn default_dirs() -> Result<Dirs, Error> {
    Dirs::from_environment(|name| std::env::var_os(name)).ok_or_else(|| {
        Error::new(
            sandbox_base::ErrorKind::NotFound,
            "find a place for sandboxes",
        )
        .with_detail("HOME is not set; name the folders instead")
    })
}

/// Returns the default backend of this build.
pub(crate) fn default_hypervisor(
    dirs: &Dirs,
    helper: PathBuf,
    progress: Progress,
) -> Result<Arc<dyn Hypervisor>, Error> {
    hypervisors(dirs, helper, progress)
        .into_iter()
        .next()
        .ok_or_else(|| {
            Error::new(sandbox_base::ErrorKind::Unsupported, "choose a backend")
                .with_detail("this build has no backend for this system")
        })
}

#[cfg(target_os = "linux")]
fn hypervisors(dirs: &Dirs, helper: PathBuf, progress: Progress) -> Vec<Arc<dyn Hypervisor>> {
    use sandbox_vm::backend::qemu::{Qemu, QemuConfig};
    let config = QemuConfig::new(helper, &dirs.cache).with_progress(progress);
    vec![Arc::new(Qemu::new(config))]
}

#[cfg(not(target_os = "linux"))]
fn hypervisors(_dirs: &Dirs, _helper: PathBuf, _progress: Progress) -> Vec<Arc<dyn Hypervisor>> {
    Vec::new()
}
