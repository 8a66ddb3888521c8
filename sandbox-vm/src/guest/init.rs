//! The first moments of a machine: file systems, kernel modules, the port.
//!
//! The initial ramdisk holds this binary as `/init` and the kernel's modules under `/modules`, in the
//! order that `/modules/order` lists. Everything after that is told by the host over the port
//! ([`Setup`](crate::channel::protocol::Setup)), so that a machine saved here can become any sandbox.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use super::agent::{Agent, Role};
use super::port::Port;
use super::services::Services;

/// The name of the virtio-serial port that leads to the host.
pub const PORT_NAME: &str = "sandbox.agent";

/// How long the port may take to appear after the modules are loaded.
const PORT_PATIENCE: Duration = Duration::from_secs(20);

/// Runs as the first process of a machine; does not return in the ordinary course of things.
///
/// # Errors
///
/// When a file system, a module or the port cannot be had: the text goes to the console, and the
/// machine must be powered off by the caller, because a first process that returns is a kernel panic.
pub async fn run(services: Services) -> io::Result<()> {
    super::process::keep_freed_memory();
    mount_pseudo_file_systems()?;
    load_modules(Path::new("/modules"))?;
    let port = Port::open(&find_port().await?)?;
    let agent = Agent::new(Role::FirstProcess, services)?;
    loop {
        wait_for_host(&port).await?;
        agent.serve(Box::new(port.session()?)).await;
    }
}

/// Powers the machine off at once, without flushing anything.
pub fn power_off() -> io::Error {
    // The hypervisor is told to exit on a reset, which works on every machine type.
    match rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        Ok(()) => io::Error::other("the machine went on after a reset"),
        Err(error) => error.into(),
    }
}

fn mount_pseudo_file_systems() -> io::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, flags) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID),
        ("proc", "/proc", safe | MountFlags::NODEV),
        ("sysfs", "/sys", safe | MountFlags::NODEV),
    ] {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, flags, None) {
            // The kernel may have mounted /dev by itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(about(target, error.into())),
        }
    }
    Ok(())
}

fn load_modules(folder: &Path) -> io::Result<()> {
    let order = match fs::read_to_string(folder.join("order")) {
        Ok(order) => order,
        // A kernel with everything built in needs none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(about("/modules/order", error)),
    };
    for name in order.lines().filter(|line| !line.is_empty()) {
        load_module(&folder.join(name)).map_err(|error| about(name, error))?;
    }
    Ok(())
}

fn load_module(path: &Path) -> io::Result<()> {
    /// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
    const COMPRESSED: i32 = 4;
    let file = fs::File::open(path)?;
    let compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if compressed { COMPRESSED } else { 0 };
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        // A device that this machine lacks.
        Err(rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn find_port() -> io::Result<PathBuf> {
    let search = async {
        loop {
            if let Some(name) = port_named(PORT_NAME) {
                return Path::new("/dev").join(name);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PORT_PATIENCE, search)
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no port named {PORT_NAME} appeared"),
            )
        })
}

fn port_named(wanted: &str) -> Option<std::ffi::OsString> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim_end() == wanted).then(|| port.file_name())
    })
}

async fn wait_for_host(port: &Port) -> io::Result<()> {
    while !port.host_present()? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn about(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
