//! Folders of its own for every run, kernels and images shared.

use std::path::{Path, PathBuf};

use sandbox_core::vm::backend::qemu::{Qemu, QemuConfig};
use sandbox_core::vm::hypervisor::{Disk, MachineSpec};
use sandbox_core::vm::image::ImageStore;
use sandbox_core::{Dirs, Image, Limits, Sandbox, SandboxBuilder, default_dirs, vm};

use tokio::io::AsyncReadExt;

use crate::Result;
use crate::options::Options;

/// Where one run keeps what it makes. Removed when dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Place {
    folder: tempfile::TempDir,
    /// The folders of its sandboxes.
    pub dirs: Dirs,
    /// The floor's first process, which is also the program that commands run.
    pub floor_init: PathBuf,
}

impl Place {
    /// Makes the folders and compiles the floor's first process.
    ///
    /// # Errors
    ///
    /// When there is no compiler, no temporary folder, no home for a cache.
    pub fn new(options: &Options) -> Result<Self> {
        let cache = match &options.cache {
            Some(cache) => cache.clone(),
            None => default_dirs()?.cache,
        };
        // Short, because a socket's path has 108 bytes.
        let folder = tempfile::Builder::new().prefix("sb").tempdir()?;
        let dirs = Dirs::beneath(folder.path()).with_cache(cache);
        let floor_init = folder.path().join("floor-init");
        compile_floor_init(&floor_init)?;
        Ok(Self {
            folder,
            dirs,
            floor_init,
        })
    }

    /// Begins a sandbox as an embedder does who changes nothing.
    pub fn sandbox(&self) -> SandboxBuilder {
        Sandbox::builder().dirs(self.dirs.clone())
    }

    /// Describes the machine that [`Place::sandbox`] makes: same processors, memory and disks.
    ///
    /// # Errors
    ///
    /// Those of making the default image and a disk.
    pub async fn machine(&self, name: &str) -> Result<MachineSpec> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        let limits = Limits::default();
        let image = ImageStore::new(&self.dirs.cache)
            .prepare(&Image::default(), vm::Progress::silent())
            .await?;
        let disk = folder.join("disk.ext4");
        vm::disk::create(&self.dirs.cache, u64::from(limits.disk_mib) << 20, &disk).await?;
        let mut spec = MachineSpec::new(name, folder);
        spec.cpus = limits.cpus;
        spec.memory_mib = limits.memory_mib;
        spec.disks = vec![Disk::read_only(image.path), Disk::writable(disk)];
        Ok(spec)
    }

    /// The backend with another program in the agent's place: it makes the same initial ramdisk, with
    /// the floor's first process in it.
    pub fn floor_backend(&self) -> Qemu {
        Qemu::new(QemuConfig::new(&self.floor_init, &self.dirs.cache))
    }
}

/// Has a sandbox say something, and waits for the first byte of it and for the command's end.
///
/// # Errors
///
/// Those of the command.
pub async fn first_byte(sandbox: &Sandbox) -> Result<()> {
    let mut command = sandbox.command("/bin/echo");
    command.arg("hello").stdout(sandbox_core::Stdio::piped());
    let mut child = command.spawn().await?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    stdout.read_exact(&mut [0; 1]).await?;
    drop(stdout);
    child.wait().await?;
    Ok(())
}

/// One file and the standard library: `rustc` is enough, and takes a second.
fn compile_floor_init(to: &Path) -> Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/floor-init.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = std::process::Command::new(rustc)
        .args(["--edition", "2024", "-C", "target-feature=+crt-static"])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .arg(source)
        .arg("-o")
        .arg(to)
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{source} does not compile: {status}").into())
}
