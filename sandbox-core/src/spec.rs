//! What a sandbox is made of, as it is written down.
//!
//! Everything here can be read back by another process, possibly of another version: a detached sandbox
//! is started again from it. Secrets never enter it.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sandbox_base::{Error, ErrorKind};
use sandbox_net::policy::RuleSet;
use sandbox_sync::{Lists, Mode};
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
#[serde(from = "Written")]
#[non_exhaustive]
pub struct Workspace {
    /// The folder outside.
    pub host: PathBuf,
    /// The folder inside; the same path unless said otherwise.
    pub guest: PathBuf,
    /// Which way changes flow.
    pub mode: Mode,
    /// Patterns of paths that stay on their own side, beside git's locks.
    pub ignore: Vec<String>,
    /// Patterns of paths that never enter the guest, beside those that look like secrets.
    pub mask: Vec<String>,
    /// Patterns of paths that come out of the guest and never enter it.
    pub output: Vec<String>,
    /// Whether what its `.gitignore` files name stays on its own side, too.
    pub gitignore: bool,
    /// The one file of the two folders that it is about; all others stay on their own side. Found by
    /// [`Workspace::resolved`].
    pub only: Option<String>,
}

/// A workspace as some version wrote it down.
#[derive(Deserialize)]
struct Written {
    host: PathBuf,
    guest: PathBuf,
    mode: Option<Mode>,
    /// How earlier versions said it: one that is forgotten would let changes out.
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    mask: Vec<String>,
    #[serde(default)]
    output: Vec<String>,
    #[serde(default)]
    gitignore: bool,
    #[serde(default)]
    only: Option<String>,
}

impl From<Written> for Workspace {
    fn from(written: Written) -> Self {
        let earlier = match written.read_only {
            true => Mode::ReadOnly,
            false => Mode::TwoWaySafe,
        };
        Self {
            host: written.host,
            guest: written.guest,
            mode: written.mode.unwrap_or(earlier),
            ignore: written.ignore,
            mask: written.mask,
            output: written.output,
            gitignore: written.gitignore,
            only: written.only,
        }
    }
}

/// Tells whether a path inside is absolute, below the root, and says where it leads.
pub(crate) fn is_place(path: &Path) -> bool {
    path.has_root()
        && path.parent().is_some()
        && !path.components().any(|part| part == Component::ParentDir)
}

/// Refuses workspaces of which one lies in another, inside.
pub(crate) fn check_apart(workspaces: &[Workspace]) -> Result<(), Error> {
    let place = |workspace: &Workspace| match &workspace.only {
        Some(name) => workspace.guest.join(name),
        None => workspace.guest.clone(),
    };
    for (index, workspace) in workspaces.iter().enumerate() {
        let one = place(workspace);
        let nested = |other: &Workspace| {
            let other = place(other);
            one.starts_with(&other) || other.starts_with(&one)
        };
        if workspaces[..index].iter().any(nested) {
            return Err(
                Error::new(ErrorKind::Invalid, "use a workspace").with_detail(format!(
                    "{} lies in another workspace, or one in it",
                    one.display()
                )),
            );
        }
    }
    Ok(())
}

impl Workspace {
    /// Looks for it on the host, and returns it as a sandbox has it: with absolute paths, and for a file with the folders
    /// that hold it and its name. Blocks. What was resolved before stays as it is.
    ///
    /// # Errors
    ///
    /// `NotFound` and `PermissionDenied` for what it names; `Invalid` for the root of the file system, a path inside that is
    /// none, a pattern that is none, and a file that would have another name inside, or looks like a secret.
    pub fn resolved(&self) -> Result<Self, Error> {
        let operation = || format!("use the workspace {}", self.host.display());
        let invalid =
            |detail: String| Error::new(ErrorKind::Invalid, operation()).with_detail(detail);
        let failed = |error| Error::io(operation(), error);
        let mut resolved = self.clone();
        resolved.host = self.host.canonicalize().map_err(failed)?;
        if self.guest == self.host {
            resolved.guest.clone_from(&resolved.host);
        }
        if resolved.host.is_file() {
            std::fs::File::open(&resolved.host).map_err(failed)?;
            resolved = resolved.of_one_file().map_err(invalid)?;
        } else {
            std::fs::read_dir(&resolved.host).map_err(failed)?;
        }
        if resolved.host.parent().is_none() {
            return Err(invalid(
                "the root of the file system is no workspace".into(),
            ));
        }
        let patterns = resolved.lists().and_then(|lists| lists.check());
        patterns.map_err(|error| invalid(error.to_string()))?;
        if is_place(&resolved.guest) {
            return Ok(resolved);
        }
        let path = resolved.guest.display();
        Err(invalid(format!(
            "{path} is no absolute path below the root"
        )))
    }

    /// Turns the paths of a file into those of the folders that hold it.
    fn of_one_file(&self) -> Result<Self, String> {
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let only = name(&self.host).ok_or("its name is no text")?;
        if name(&self.guest).as_ref() != Some(&only) {
            return Err(format!("a file has the same name inside: {only}"));
        }
        let folder = |path: &Path| path.parent().unwrap_or(path).to_owned();
        let resolved = Self {
            host: folder(&self.host),
            guest: folder(&self.guest),
            only: Some(only.clone()),
            ..self.clone()
        };
        let path = sandbox_sync::RelPath::new(only).map_err(|error| error.to_string())?;
        let lists = resolved.lists().map_err(|error| error.to_string())?;
        match lists.masks(&path) {
            Ok(false) => Ok(resolved),
            Ok(true) => Err(
                "what is called so is kept from sandboxes (the list of secrets, or --mask)".into(),
            ),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Keeps a folder, or one file, the same outside and inside, at the same path.
    pub fn sync(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            guest: path.clone(),
            host: path,
            mode: Mode::TwoWaySafe,
            ignore: Vec::new(),
            mask: Vec::new(),
            output: Vec::new(),
            gitignore: false,
            only: None,
        }
    }

    /// Brings a folder in; what is changed inside stays inside.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self::sync(path).mode(Mode::ReadOnly)
    }

    /// Brings a folder in; what is changed inside waits until it is applied
    /// ([`Sandbox::changes`](crate::Sandbox::changes)).
    pub fn review(path: impl Into<PathBuf>) -> Self {
        Self::sync(path).mode(Mode::Review)
    }

    /// Sets which way changes flow.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Leaves paths alone on either side, by a pattern as in [`sync::Lists`](crate::sync::Lists).
    #[must_use]
    pub fn ignore(mut self, pattern: impl Into<String>) -> Self {
        self.ignore.push(pattern.into());
        self
    }

    /// Leaves alone what the `.gitignore` files of the folder name, as they are when the machine starts; see
    /// [`sync::Lists::with_gitignore_of`](crate::sync::Lists::with_gitignore_of).
    #[must_use]
    pub fn gitignore(mut self) -> Self {
        self.gitignore = true;
        self
    }

    /// Leaves alone what tools make anew on each machine, as `node_modules` and `target`; see
    /// [`sync::Lists::with_ignore_generated`](crate::sync::Lists::with_ignore_generated).
    #[must_use]
    pub fn ignore_generated(mut self) -> Self {
        self.ignore.extend(Lists::generated());
        self
    }

    /// Keeps paths out of the guest, and the guest's paths of that name out of the host.
    #[must_use]
    pub fn mask(mut self, pattern: impl Into<String>) -> Self {
        self.mask.push(pattern.into());
        self
    }

    /// Lets paths come out of the guest, in a read-only workspace too, and nothing of the host's in.
    #[must_use]
    pub fn output(mut self, pattern: impl Into<String>) -> Self {
        self.output.push(pattern.into());
        self
    }

    /// Returns the lists that its session goes by, with what the folder says of itself now.
    pub(crate) fn lists(&self) -> Result<Lists, sandbox_sync::Error> {
        let mut lists = Lists::default();
        if let Some(only) = &self.only {
            lists = lists.with_only(only.as_str());
        } else if self.gitignore {
            lists = lists.with_gitignore_of(&self.host)?;
        }
        lists.ignore.extend_from_slice(&self.ignore);
        lists.mask.extend_from_slice(&self.mask);
        lists.output.extend_from_slice(&self.output);
        Ok(lists)
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
    /// Whether a snapshot of the workspaces is taken before each command.
    #[serde(default)]
    pub(crate) snapshots: bool,
    /// Boots, and is not restored from a template.
    #[serde(default)]
    pub(crate) cold: bool,
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
            snapshots: false,
            cold: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_keeps_its_mode_when_it_is_written_down() {
        let workspace = Workspace::review("/w").mask("*.secret").output("/out");
        let written = serde_json::to_string(&workspace).unwrap();
        assert!(written.contains("\"review\""), "{written}");
        assert_eq!(
            serde_json::from_str::<Workspace>(&written).unwrap(),
            workspace
        );
    }

    #[test]
    fn a_read_only_workspace_of_an_earlier_version_stays_read_only() {
        let written = r#"{"host":"/w","guest":"/w","read_only":true}"#;
        let read: Workspace = serde_json::from_str(written).unwrap();
        assert_eq!(read, Workspace::read_only("/w"));
    }
}
