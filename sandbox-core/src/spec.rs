//! What a sandbox is made of, as it is written down.
//!
//! Everything here can be read back by another process, possibly of another version: a detached sandbox
//! is started again from it. Secrets never enter it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_net::policy::RuleSet;
use sandbox_vm::image::Image;
use serde::{Deserialize, Serialize};

use crate::layers::Above;
use crate::network::Inspection;
use crate::upstream::UpstreamProxy;

/// What a sandbox may use, at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Limits {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The writable layer of its root, in MiB. Takes room on the host only as it is used.
    pub disk_mib: u32,
    /// Processes and threads of all commands together.
    pub processes: Option<u32>,
    /// Open files of each process.
    pub open_files: Option<u32>,
    /// How long the machine may run; it is stopped then.
    pub run_time: Option<Duration>,
}

impl Default for Limits {
    /// Two processors, 1 GiB of memory, 8 GiB of disk, 4,096 processes, 65,536 open files, no end.
    fn default() -> Self {
        Self {
            cpus: 2,
            memory_mib: 1024,
            disk_mib: 8 * 1024,
            processes: Some(4096),
            open_files: Some(65_536),
            run_time: None,
        }
    }
}

impl Limits {
    /// Replaces the number of virtual processors (1 to 64).
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Replaces the memory, in MiB (128 at least).
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Replaces the size of the root's writable layer, in MiB.
    #[must_use]
    pub fn disk_mib(mut self, mib: u32) -> Self {
        self.disk_mib = mib;
        self
    }

    /// Replaces the number of processes and threads; `None` leaves it to the kernel.
    #[must_use]
    pub fn processes(mut self, processes: impl Into<Option<u32>>) -> Self {
        self.processes = processes.into();
        self
    }

    /// Replaces the number of open files of each process; `None` leaves it to the kernel.
    #[must_use]
    pub fn open_files(mut self, files: impl Into<Option<u32>>) -> Self {
        self.open_files = files.into();
        self
    }

    /// Stops the machine after it has run for so long.
    #[must_use]
    pub fn run_time(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.run_time = time.into();
        self
    }
}

/// A folder of the host that appears inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Workspace {
    /// The folder outside.
    pub host: PathBuf,
    /// The folder inside; the same path unless said otherwise.
    pub guest: PathBuf,
    /// Whether changes made inside come back.
    pub read_only: bool,
}

impl Workspace {
    /// Keeps a folder the same outside and inside, at the same path.
    pub fn sync(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            guest: path.clone(),
            host: path,
            read_only: false,
        }
    }

    /// Brings a folder in; what is changed inside stays inside.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self {
            read_only: true,
            ..Self::sync(path)
        }
    }

    /// Puts it at another absolute path inside.
    #[must_use]
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.guest = path.into();
        self
    }
}

/// A file system in memory, inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tmpfs {
    /// Where, as an absolute path.
    pub target: PathBuf,
    /// Its size in MiB.
    pub size_mib: u32,
}

impl Tmpfs {
    /// A file system of so many MiB.
    pub fn new(target: impl Into<PathBuf>, size_mib: u32) -> Self {
        Self {
            target: target.into(),
            size_mib,
        }
    }
}

/// A disk image of the host, mounted inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExtraDisk {
    /// The raw image. A writable one must not be used by anything else meanwhile.
    pub image: PathBuf,
    /// Where, as an absolute path.
    pub target: PathBuf,
    /// Its file system type, one that the guest's kernel has: `ext4` and `erofs` for certain.
    pub fs_type: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

impl ExtraDisk {
    /// An ext4 image that the guest can write to ([`sandbox_vm::disk::create`] makes an empty one).
    pub fn ext4(image: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            target: target.into(),
            fs_type: "ext4".into(),
            read_only: false,
        }
    }

    /// Replaces the file system type.
    #[must_use]
    pub fn fs_type(mut self, fs_type: impl Into<String>) -> Self {
        self.fs_type = fs_type.into();
        self
    }

    /// Lets the guest only read it; several sandboxes can share it then.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// Everything that a sandbox is started from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) image: ImageSource,
    pub(crate) workspaces: Vec<Workspace>,
    pub(crate) network: RuleSet,
    #[serde(default)]
    pub(crate) above: Above,
    #[serde(default)]
    pub(crate) inspection: Inspection,
    #[serde(default)]
    pub(crate) upstream: Option<UpstreamProxy>,
    pub(crate) limits: Limits,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: Option<String>,
    pub(crate) read_only_root: bool,
    pub(crate) tmpfs: Vec<Tmpfs>,
    pub(crate) disks: Vec<ExtraDisk>,
    pub(crate) boot_patience: Duration,
}

#[cfg(test)]
impl Spec {
    /// One that asks for nothing.
    pub(crate) fn bare() -> Self {
        Self {
            image: ImageSource::Default,
            workspaces: Vec::new(),
            network: RuleSet::deny(),
            above: Above::default(),
            inspection: Inspection::default(),
            upstream: None,
            limits: Limits::default(),
            env: Vec::new(),
            user: None,
            read_only_root: false,
            tmpfs: Vec::new(),
            disks: Vec::new(),
            boot_patience: Duration::from_secs(1),
        }
    }
}

/// An image as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ImageSource {
    Default,
    Directory(PathBuf),
    Tar(PathBuf),
    OciLayout(PathBuf, Option<String>),
}

impl ImageSource {
    /// Writes an image down, with absolute paths; `None` for a kind that this version cannot write.
    pub(crate) fn of(image: &Image) -> Option<Self> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        match image {
            Image::Default => Some(Self::Default),
            Image::Directory(path) => Some(Self::Directory(absolute(path))),
            Image::Tar(path) => Some(Self::Tar(absolute(path))),
            Image::OciLayout {
                path, reference, ..
            } => Some(Self::OciLayout(absolute(path), reference.clone())),
            _ => None,
        }
    }

    pub(crate) fn image(&self) -> Image {
        match self {
            Self::Default => Image::Default,
            Self::Directory(path) => Image::directory(path),
            Self::Tar(path) => Image::tar(path),
            Self::OciLayout(path, None) => Image::oci_layout(path),
            Self::OciLayout(path, Some(name)) => Image::oci_layout_reference(path, name),
        }
    }
}
