//! Fork, exec and reap.
//!
//! The agent is the first process, so every orphan becomes its child: it must wait for any child, not
//! for those it knows. `waitpid(-1)` and the standard library's own waiting would steal from each other;
//! they do not, because everything here runs on one thread and [`Reaper::spawn`] does not yield between
//! fork and registration. A child's status therefore always finds its receiver.
//!
//! Between fork and exec only system calls are made, on data prepared before the fork.

// JUSTIFICATION: `pre_exec` is the one way to give a child its session, terminal, groups and limits; the C
// library's allocator is told of the agent's habits by `mallopt` alone.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use rustix::thread::{Gid, Uid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::users::User;

/// How long a plain process takes at most to kill what it has started.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What a child is to be.
#[derive(Debug)]
pub(crate) struct Spawn {
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) env: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) cwd: Vec<u8>,
    pub(crate) user: User,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    /// Makes its standard input its controlling terminal.
    pub(crate) terminal: bool,
    /// The `cgroup.procs` file of its control group, open for writing.
    pub(crate) group: Option<OwnedFd>,
    pub(crate) open_files: Option<u32>,
}

/// Waits for all children and tells whoever asked.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    waiting: Arc<Mutex<HashMap<i32, oneshot::Sender<WaitStatus>>>>,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    /// Resolves once it has been reaped; its number may belong to another process from then on.
    pub(crate) status: oneshot::Receiver<WaitStatus>,
}

impl Reaper {
    /// Starts reaping on the current runtime, which must be single-threaded. Orphans come to this
    /// process even where it is not the first one.
    pub(crate) fn start() -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut children = signal(SignalKind::child())?;
        let reaper = Self {
            waiting: Arc::default(),
        };
        let worker = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                worker.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a child. Blocks for the time of a fork and an exec; does not yield.
    pub(crate) fn spawn(&self, wanted: Spawn) -> io::Result<Child> {
        let mut command = command(wanted)?;
        let child = command.spawn()?;
        let number = i32::try_from(child.id()).map_err(io::Error::other)?;
        let pid = Pid::from_raw(number).ok_or(io::ErrorKind::InvalidData)?;
        let (sender, status) = oneshot::channel();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, sender);
        Ok(Child { pid, status })
    }

    /// Kills all children until there are none, which takes their descendants along: orphans become
    /// children of this process. For agents that are not the first process of anything.
    pub(crate) async fn end_everything(&self) {
        let deadline = tokio::time::Instant::now() + END_PATIENCE;
        while tokio::time::Instant::now() < deadline {
            let children = children();
            if children.is_empty() {
                return;
            }
            for pid in children {
                // It may have ended meanwhile; nobody else reaps, so its number is still its own.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            self.reap();
        }
    }

    fn reap(&self) {
        // The end, or ECHILD when there is no child at all.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
                // Nobody has to be waiting.
                let _ = sender.send(status);
            }
        }
    }
}

/// Keeps freed memory for the next allocation. Each piece of a stream is a buffer of its own for a moment; by
/// default the C library gives such memory back to the kernel at once and faults it in again for the next
/// piece, page by page, which took most of the time of a stream in an emulated guest.
#[cfg(target_env = "gnu")]
pub(super) fn keep_freed_memory() {
    const KEPT: i32 = 16 << 20;
    for option in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: sets a number in the allocator; a value that it does not like is passed over.
        unsafe { libc::mallopt(option, KEPT) };
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_freed_memory() {}

/// Lists the children of all threads of this process (`man 5 proc`, "children").
fn children() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let numbers = list.split_whitespace().map(str::parse);
            numbers.flatten().collect::<Vec<i32>>()
        })
        .filter_map(Pid::from_raw)
        .collect()
}

fn command(wanted: Spawn) -> io::Result<Command> {
    let (program, arguments) = wanted
        .argv
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    command.env_clear();
    for (name, value) in &wanted.env {
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    let prepared = Prepared::new(&wanted)?;
    command
        .stdin(wanted.stdin)
        .stdout(wanted.stdout)
        .stderr(wanted.stderr);
    let group = wanted.group;
    // SAFETY: `Prepared::enter` makes system calls only, on data that was prepared before the fork;
    // it allocates nothing, takes no lock and cannot panic.
    unsafe { command.pre_exec(move || prepared.enter(group.as_ref())) };
    Ok(command)
}

/// All that a child needs between fork and exec, in the form that system calls take.
struct Prepared {
    cwd: CString,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    change_user: bool,
    terminal: bool,
    open_files: Option<u64>,
}

impl Prepared {
    fn new(wanted: &Spawn) -> io::Result<Self> {
        let user = &wanted.user;
        // An unprivileged agent (in tests) can only run commands as itself.
        let change_user = rustix::process::geteuid().is_root();
        if !change_user && rustix::process::getuid().as_raw() != user.uid {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self {
            cwd: CString::new(wanted.cwd.as_slice())?,
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
            change_user,
            terminal: wanted.terminal,
            open_files: wanted.open_files.map(u64::from),
        })
    }

    /// Runs in the child, after fork and before exec.
    fn enter(&self, group: Option<&OwnedFd>) -> io::Result<()> {
        if let Some(group) = group {
            rustix::io::write(group, b"0")?;
        }
        reset_signals();
        rustix::process::setsid()?;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        make_killable();
        if let Some(limit) = self.open_files {
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            rustix::process::setrlimit(Resource::Nofile, limit)?;
        }
        if self.change_user {
            rustix::thread::set_thread_groups(&self.groups)?;
            rustix::thread::set_thread_gid(self.gid)?;
            rustix::thread::set_thread_uid(self.uid)?;
        }
        rustix::process::chdir(self.cwd.as_c_str())?;
        Ok(())
    }
}

/// What this process was started with, or set for itself, must not be what its commands find: a signal
/// that a shell ignored for a background job would stay ignored, Ctrl-C for one.
fn reset_signals() {
    const STANDARD: std::ops::RangeInclusive<i32> = 1..=31;
    for number in STANDARD {
        // SAFETY: `signal` with the default disposition runs no code of ours and may be called between
        // fork and exec (`man 7 signal-safety`). For the two that cannot be changed it answers an error.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// The agent asks the kernel to spare it when memory runs out; its children must not inherit that.
fn make_killable() {
    use rustix::fs::{Mode, OFlags, open};
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty()) {
        // Without it the child is merely spared longer than it should be.
        let _ = rustix::io::write(&file, b"0");
    }
}

/// Opens a terminal of a size and returns both of its ends.
pub(crate) fn open_terminal(rows: u16, columns: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
        .open(Path::new(OsStr::from_bytes(name.as_bytes())))?;
    resize_terminal(&master, rows, columns)?;
    Ok((master, slave.into()))
}

/// Changes the size of a terminal.
pub(crate) fn resize_terminal(master: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
