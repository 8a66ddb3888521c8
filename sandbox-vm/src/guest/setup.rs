//! Root, mounts, name and limits, as the host asks for them once per machine.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::mount::{MountFlags, mount, mount_move};
use tokio::net::TcpListener;

use super::agent::{Role, Shared};
use super::arrival;
use super::group;
use super::identity;
use super::network::{self, Making};
use super::services::{Captured, HostStreams};
use crate::channel::protocol::{
    Capture, Failure, FailureKind, Limits, Mount, Prepared, Reply, Root, Setup,
};

/// What every command starts from.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) limits: Limits,
}

/// Where programs look for who answers their name lookups.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Prepares the machine.
pub(crate) async fn apply(agent: &Arc<Shared>, wanted: Setup) -> Reply<Prepared> {
    let mut making = None;
    if agent.role == Role::FirstProcess {
        // On a thread, while the root is put together.
        making = wanted
            .capture
            .as_ref()
            .map(|capture| Making::begin(&capture.link));
        prepare_place(&wanted)?;
    }
    for forward in &wanted.forward {
        let handler = agent.services.listener(&forward.service).ok_or_else(|| {
            let message = format!("this agent cannot lead to {:?}", forward.service);
            Failure::new(FailureKind::Unsupported, message)
        })?;
        let listener = TcpListener::bind(("127.0.0.1", forward.port))
            .await
            .map_err(|error| Failure::io(format!("port {}", forward.port), &error))?;
        let streams = HostStreams::new(agent.session.clone(), forward.service.clone());
        tokio::spawn(handler(listener, streams));
    }
    let mut prepared = Prepared::default();
    if let Some(capture) = &wanted.capture {
        let captured = match making {
            Some(Ok(making)) => begin_capture(agent, capture, making).await,
            Some(Err(error)) => Err(error),
            None => Err(io::Error::other(
                "a plain process has no network of its own",
            )),
        };
        // Programs that know of the proxy do not need it.
        prepared.uncaptured = captured.err().map(|error| error.to_string());
    }
    agent.replace_settings(Settings {
        env: wanted.env,
        limits: wanted.limits,
    });
    Ok(prepared)
}

/// Takes what leaves the machine from here on, and becomes who answers name lookups.
async fn begin_capture(agent: &Arc<Shared>, wanted: &Capture, making: Making) -> io::Result<()> {
    let handler = agent.services.capture(&wanted.service).ok_or_else(|| {
        let message = format!("this agent cannot lead to {:?}", wanted.service);
        io::Error::new(io::ErrorKind::Unsupported, message)
    })?;
    let captured = Captured {
        network: making.made().await?,
        ports: wanted.ports.clone(),
        host: HostStreams::new(agent.session.clone(), wanted.service.clone()),
    };
    let serving = handler(captured).await?;
    tokio::spawn(serving);
    name_resolver(&format!("nameserver {}\n", wanted.link.gateway))
}

/// Writes who answers name lookups where programs look. What is there may be a link to somewhere that only
/// its own system makes, so it is replaced, not written through. Over a root that cannot be written a folder
/// is laid that holds this one file more.
fn name_resolver(text: &str) -> io::Result<()> {
    let fresh = "/etc/.resolv.conf.new";
    // A root that has none, or cannot be written, says so in a moment.
    drop(fs::create_dir_all("/etc"));
    match fs::write(fresh, text).and_then(|()| fs::rename(fresh, RESOLV_CONF)) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        done => return done,
    }
    let folder = "/run/sandbox/etc";
    fs::create_dir_all(folder)?;
    fs::write(format!("{folder}/resolv.conf"), text)?;
    let options = c"lowerdir=/run/sandbox/etc:/etc";
    Ok(mount(
        "overlay",
        "/etc",
        "overlay",
        MountFlags::RDONLY | MountFlags::NODEV,
        Some(options),
    )?)
}

fn prepare_place(wanted: &Setup) -> Reply<()> {
    if let Some(root) = &wanted.root {
        enter_root(root)?;
    }
    mount_usual_places()?;
    for mount in &wanted.mounts {
        mount_wanted(mount)?;
    }
    if !wanted.hostname.is_empty() {
        identity::name(&wanted.hostname).map_err(|error| Failure::io("host name", &error))?;
    }
    network::loopback_up().map_err(|error| Failure::io("loopback interface", &error))?;
    group::prepare(&wanted.limits).map_err(|error| Failure::io("control groups", &error))?;
    // The agent must outlive whatever its commands do to memory.
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(|error| Failure::io("oom_score_adj", &error))
}

/// Joins the read-only image and the writable layer, and makes the result the root.
fn enter_root(root: &Root) -> Reply<()> {
    let (lower, upper, joined) = ("/lower", "/upper", "/root-joined");
    mount_at(
        &root.lower,
        lower,
        &root.lower_type,
        MountFlags::RDONLY,
        None,
    )?;
    let new_root = match &root.upper {
        None => lower,
        Some((device, fs_type)) => {
            mount_at(device, upper, fs_type, MountFlags::NOATIME, None)?;
            for folder in ["/upper/files", "/upper/work"] {
                fs::create_dir_all(folder).map_err(|error| Failure::io(folder, &error))?;
            }
            let options = c"lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";
            mount_at(
                "overlay",
                joined,
                "overlay",
                MountFlags::NOATIME,
                Some(options),
            )?;
            joined
        }
    };
    for place in ["/dev", "/proc", "/sys"] {
        let target = format!("{new_root}{place}");
        // A read-only root must have these already.
        drop(fs::create_dir_all(&target));
        mount_move(place, target.as_str()).map_err(|error| Failure::io(place, &error.into()))?;
    }
    switch_to(new_root).map_err(|error| Failure::io("switch of root", &error))
}

fn switch_to(new_root: &str) -> io::Result<()> {
    rustix::process::chdir(new_root)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

fn mount_usual_places() -> Reply<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    let strict = safe | MountFlags::NOEXEC;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        strict & !MountFlags::NODEV,
        Some(c"ptmxmode=0666,mode=0620,gid=5"),
    )?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", safe, Some(c"mode=1777"))?;
    mount_at("tmpfs", "/run", "tmpfs", safe, Some(c"mode=0755"))?;
    mount_control_groups(strict)
}

/// Every command is moved into a group of its own. By default the kernel favours forks over moves, and a
/// move waits for a grace period, which takes longer than the command's own start; `favordynmods` (Linux
/// 6.0 and later) has it the other way round.
fn mount_control_groups(flags: MountFlags) -> Reply<()> {
    let mount = |options| mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, options);
    mount(Some(c"favordynmods")).or_else(|_| mount(None))
}

fn mount_wanted(wanted: &Mount) -> Reply<()> {
    match wanted {
        Mount::Tmpfs { target, size } => {
            let options = std::ffi::CString::new(format!("size={size},mode=1777"))
                .map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount_at("tmpfs", target, "tmpfs", flags, Some(&options))
        }
        Mount::Disk {
            target,
            device,
            fs_type,
            read_only,
        } => {
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            flags.set(MountFlags::RDONLY, *read_only);
            mount_at(device, target, fs_type, flags, None)
        }
    }
}

/// Finds a disk by its serial number, which the backend sets to `disk0`, `disk1` and so on: the kernel's
/// own names depend on the order in which it happens to find them. What the kernel has read of it is
/// forgotten: a restored machine saw another disk. Anything else names itself.
fn device(name: &str) -> Reply<String> {
    if !name.starts_with("disk") {
        return Ok(name.to_owned());
    }
    let disks = fs::read_dir("/sys/block").map_err(|error| Failure::io("/sys/block", &error))?;
    let found = disks.flatten().find(|disk| {
        fs::read_to_string(disk.path().join("serial")).is_ok_and(|serial| serial.trim() == name)
    });
    match found {
        Some(disk) => {
            let device = format!("/dev/{}", disk.file_name().to_string_lossy());
            arrival::forget(&device).map_err(|error| Failure::io(&device, &error))?;
            Ok(device)
        }
        None => Err(Failure::new(
            FailureKind::NotFound,
            format!("the machine has no {name}"),
        )),
    }
}

fn mount_at(
    source: &str,
    target: &str,
    fs_type: &str,
    flags: MountFlags,
    options: Option<&std::ffi::CStr>,
) -> Reply<()> {
    let source = device(source)?;
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).map_err(|error| Failure::io(target, &error))?;
    }
    mount(source.as_str(), target, fs_type, flags, options)
        .map_err(|error| Failure::io(format!("mount of {source} at {target}"), &error.into()))
}
