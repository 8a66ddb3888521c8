//! A bare QEMU: the same kernel, devices and command line as a sandbox's machine, from the same function,
//! with the least possible first process (`src/bin/floor-init.rs`) in its initial ramdisk.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sandbox_core::vm::hypervisor::MachineSpec;
use sandbox_core::vm::kernel::{Kernel, Wanted, initrd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use crate::Result;
use crate::place::Place;

/// How long a floor may take to its first byte before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command line of a floor, made once.
#[derive(Debug)]
pub struct Floor {
    argv: Vec<String>,
    spec: MachineSpec,
}

/// A floor that runs. Killed when dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Running {
    /// QEMU itself.
    pub process: Child,
    /// The other end of the guest's virtio-serial port.
    pub port: UnixStream,
    /// From the start of the process to the first byte from its guest.
    pub first_byte: Duration,
    _control: UnixStream,
}

impl Floor {
    /// A floor that loads the modules that a sandbox loads: all devices have their drivers.
    ///
    /// # Errors
    ///
    /// Those of obtaining kernel and image.
    pub async fn new(place: &Place) -> Result<Self> {
        let spec = place.machine("floor").await?;
        let argv = place.floor_backend().command_line(&spec).await?;
        Ok(Self { argv, spec })
    }

    /// A floor that loads nothing but what the port needs: less than any sandbox could do with.
    ///
    /// # Errors
    ///
    /// Those of obtaining kernel and image.
    pub async fn with_port_only(place: &Place) -> Result<Self> {
        let spec = place.machine("port").await?;
        let mut argv = place.floor_backend().command_line(&spec).await?;
        let kernel = Kernel::from_distribution(&place.dirs.cache, Default::default()).await?;
        let wanted = [
            Wanted::required("virtio_console"),
            Wanted::optional("virtio_mmio"),
        ];
        let ramdisk = initrd::build(
            &std::fs::read(&place.floor_init)?,
            &kernel.modules(&wanted)?,
        );
        let path = spec.folder.join("initrd");
        std::fs::write(&path, ramdisk)?;
        let at = argv.iter().position(|word| word == "-initrd");
        let at = at.ok_or("the command line has no initial ramdisk")?;
        argv[at + 1] = path.display().to_string();
        Ok(Self { argv, spec })
    }

    /// Starts it and waits for its first line.
    ///
    /// # Errors
    ///
    /// When QEMU ends, or its guest stays silent.
    pub async fn start(&self) -> Result<Running> {
        let agent = listen(&self.spec.folder.join("agent.sock"))?;
        let control = listen(&self.spec.folder.join("qmp.sock"))?;
        let start = Instant::now();
        let process = Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let first = async {
            let (control, _) = control.accept().await?;
            let (mut port, _) = agent.accept().await?;
            port.read_u8().await?;
            let first_byte = start.elapsed();
            while port.read_u8().await? != b'\n' {}
            std::io::Result::Ok((control, port, first_byte))
        };
        let (control, port, first_byte) = tokio::time::timeout(PATIENCE, first).await??;
        Ok(Running {
            process,
            port,
            first_byte,
            _control: control,
        })
    }
}

impl Running {
    /// Has a child write `bytes` zeros through a pipe and `cat` to the port; returns how long they took.
    ///
    /// # Errors
    ///
    /// When QEMU ends.
    pub async fn output(&mut self, bytes: u64) -> Result<Duration> {
        let start = Instant::now();
        let line = format!("out {bytes}\n");
        self.port.write_all(line.as_bytes()).await?;
        drain(&mut self.port, bytes).await?;
        Ok(start.elapsed())
    }

    /// Sends `bytes` zeros through the port, `cat` and a pipe to a child; returns how long they took.
    ///
    /// # Errors
    ///
    /// When QEMU ends.
    pub async fn input(&mut self, bytes: u64) -> Result<Duration> {
        let start = Instant::now();
        let line = format!("in {bytes}\n");
        self.port.write_all(line.as_bytes()).await?;
        fill(&mut self.port, bytes).await?;
        while self.port.read_u8().await? != b'\n' {}
        Ok(start.elapsed())
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub async fn end(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}

/// Reads exactly so many bytes and forgets them.
///
/// # Errors
///
/// When fewer come.
pub async fn drain(from: &mut (impl tokio::io::AsyncRead + Unpin), bytes: u64) -> Result<()> {
    let mut block = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        match from.read(&mut block).await? {
            0 => return Err(format!("{left} bytes of {bytes} are missing").into()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    Ok(())
}

/// Writes so many zeros.
///
/// # Errors
///
/// When the other side goes.
pub async fn fill(to: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: u64) -> Result<()> {
    let block = vec![0; 128 * 1024];
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left)
            .unwrap_or(block.len())
            .min(block.len());
        to.write_all(&block[..count]).await?;
        left -= count as u64;
    }
    Ok(())
}

fn listen(path: &Path) -> Result<UnixListener> {
    drop(std::fs::remove_file(path));
    Ok(UnixListener::bind(path)?)
}
