//! What host and guest say to each other inside the streams of a channel.
//!
//! Every stream begins with one message that says what the stream is for: [`Open`] on streams that the
//! host opens, [`GuestOpen`] on those that the guest opens. What follows depends on it:
//!
//! | opened with | then |
//! |---|---|
//! | `Hello` | the guest takes entropy and time and answers [`Reply`] of [`Welcome`]; always the first stream |
//! | `Setup` | the guest prepares its root and answers [`Reply`] of `()`; once per machine |
//! | `Exec` | events ([`ExecEvent`]) from the guest, controls ([`ExecControl`]) from the host, until it ends |
//! | `Stdio` | raw bytes of one of a command's standard streams |
//! | `File` | [`Reply`] of [`FileReply`], then raw bytes where the request has some |
//! | `Service` | [`Reply`] of `()`, then whatever the service speaks (synchronization, say) |
//! | `Power` | the guest flushes its disks, answers, and powers off |
//!
//! Messages are framed and bounded as [`sandbox_base::frame`] says; both sides treat the other's
//! messages as input from a stranger. The version is agreed in `Hello`: the guest picks the highest one
//! that both know, and refuses when there is none.

// Both ends of the wire are built from this file, and the version is agreed on it: a change here is a
// change of the protocol, not of an interface that others extend.
#![allow(clippy::exhaustive_structs, clippy::exhaustive_enums)]

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};

/// The versions of the protocol that this build speaks.
pub const VERSIONS: RangeInclusive<u16> = 1..=1;

/// The longest first message of a stream, in bytes. Arguments and environment of a command travel in
/// it; Linux itself allows them 2 MiB by default and 128 KiB for each string.
pub const MAX_OPEN: usize = 2 << 20;

/// The longest message after the first one, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// First message of a stream that the host opens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Open {
    /// Agrees on a version. Nothing else is answered before.
    Hello(Hello),
    /// Prepares root, mounts, name and limits.
    Setup(Box<Setup>),
    /// Starts a command.
    Exec(Box<Exec>),
    /// Carries one standard stream of a command, named before or after its `Exec` arrives.
    Stdio {
        /// The command.
        exec: ExecId,
        /// Which of its streams.
        stream: Stdio,
    },
    /// Reads or writes files.
    File(FileRequest),
    /// Leads to a service that the agent was built with.
    Service(String),
    /// Ends the machine.
    Power,
}

/// First message of a stream that the guest opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GuestOpen {
    /// Leads to a service of the host, by name; raw bytes follow.
    Service(String),
}

/// What the host says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lowest version that the host speaks.
    pub lowest: u16,
    /// The highest version that the host speaks.
    pub highest: u16,
    /// Randomness for this machine alone. The guest's kernel takes it before anything is answered: a
    /// restored machine remembers the same random numbers as all others that were restored from one state.
    pub entropy: Entropy,
    /// Seconds and nanoseconds since 1970, to set the clock to: a restored machine's went on from where it
    /// was saved. The monotonic clock is left alone.
    pub clock: Option<(i64, u32)>,
}

/// Random bytes, as many as the kernel's generator takes for a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy(pub [u8; 32]);

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

/// What the guest answers to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version to speak from here on.
    pub version: u16,
    /// The agent's own version, for people to read.
    pub agent: String,
    /// Whether the agent is the first process of the machine, and so can prepare it.
    pub first_process: bool,
}

/// Prepares the machine: done once, before any command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// How the root is made; `None` where the wall has made it already.
    pub root: Option<Root>,
    /// Further mounts, in this order.
    pub mounts: Vec<Mount>,
    /// The host name; empty leaves it alone.
    pub hostname: String,
    /// Environment of every command, below what the command names itself.
    pub env: Vec<(String, String)>,
    /// Limits on all commands together.
    pub limits: Limits,
    /// TCP port on 127.0.0.1 where the agent takes connections for the service named.
    pub forward: Vec<Forward>,
    /// Where connections go that programs make by themselves; `None` leaves them nowhere to go.
    pub capture: Option<Capture>,
}

/// What the guest answers to [`Setup`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Why connections are not captured, where [`Setup::capture`] asked for it and the kernel or the wall
    /// has no way. Text from the guest.
    pub uncaptured: Option<String>,
}

/// Leads all connections that leave the machine to a service of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The service outside.
    pub service: String,
    /// The network between the programs and the agent.
    pub link: Link,
    /// TCP ports to take from the beginning. Others are refused.
    pub ports: Vec<u16>,
}

/// A network of two: the machine and the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The agent's, which is the gateway and answers name lookups.
    pub gateway: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
}

/// How a machine's root is made from its block devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The read-only image: `disk` and its place in the machine's list, or a device path.
    pub lower: String,
    /// Its file system type.
    pub lower_type: String,
    /// The writable layer, named likewise, and its file system type; `None` leaves the root read-only.
    pub upper: Option<(String, String)>,
}

/// A mount inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// A file system in memory.
    Tmpfs {
        /// Where.
        target: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A disk.
    Disk {
        /// Where.
        target: String,
        /// `disk` and its place in the machine's list, or a device path.
        device: String,
        /// The file system type.
        fs_type: String,
        /// Whether it can be written.
        read_only: bool,
    },
}

/// A port inside the guest whose connections go to a service of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The port on 127.0.0.1 inside.
    pub port: u16,
    /// The service outside.
    pub service: String,
}

/// Limits on all commands of a machine together. `None` is the kernel's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processes and threads.
    pub processes: Option<u32>,
    /// Open files of each process.
    pub open_files: Option<u32>,
}

/// Names a command to its streams. Random, so that one client of a machine cannot guess another's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExecId(pub [u8; 16]);

impl fmt::Debug for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecId({:032x})", u128::from_be_bytes(self.0))
    }
}

/// One of a command's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stdio {
    /// Host to guest.
    In,
    /// Guest to host. With a terminal, all output.
    Out,
    /// Guest to host.
    Err,
}

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Names the command to its streams.
    pub id: ExecId,
    /// The program and its arguments, as bytes: no shell comes between.
    pub argv: Vec<Vec<u8>>,
    /// Variables to add or replace.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Variables to leave out.
    pub env_remove: Vec<Vec<u8>>,
    /// Whether to begin with an empty environment.
    pub env_clear: bool,
    /// The working directory; the user's home, or `/`, when `None`.
    pub cwd: Option<Vec<u8>>,
    /// A user name, or numbers as `uid` or `uid:gid`; the agent's own user when `None`.
    pub user: Option<String>,
    /// The streams that the host wants; the others are `/dev/null`.
    pub stdio: Vec<Stdio>,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// After this many milliseconds all processes of the command are killed.
    pub timeout_ms: Option<u64>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl TerminalSize {
    /// Makes a size of so many lines and columns.
    pub fn new(rows: u16, columns: u16) -> Self {
        Self { rows, columns }
    }
}

impl Default for TerminalSize {
    /// 24 lines of 80 characters.
    fn default() -> Self {
        Self::new(24, 80)
    }
}

/// What the guest tells about a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEvent {
    /// It runs, as this process inside.
    Started(u32),
    /// It could not be started. The last event.
    Failed(Failure),
    /// It ended. The last event; its output may still be on its way.
    Exited(Exit),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal, when it was killed.
    pub signal: Option<i32>,
    /// Why, when something other than the command decided.
    pub cause: ExitCause,
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExitCause {
    /// By itself, or by a signal somebody sent.
    Own,
    /// Its time ran out.
    Timeout,
    /// The kernel killed one of its processes because memory ran out.
    OutOfMemory,
}

/// What the host tells a running command. Closing the stream kills all of its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecControl {
    /// Sends a signal, by number, to its process group.
    Signal(i32),
    /// Kills every process it has started, those that left its group included.
    Kill,
    /// Changes the size of its terminal.
    Resize(TerminalSize),
}

/// What to do with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileRequest {
    /// Reads a regular file; its bytes follow the reply.
    Read {
        /// Absolute path.
        path: Vec<u8>,
    },
    /// Writes a file, old or new, never torn; exactly `size` bytes follow the request, then a second reply.
    Write {
        /// Absolute path; missing parents are made.
        path: Vec<u8>,
        /// How many bytes follow. With fewer the file stays as it was: the host went away.
        size: u64,
        /// Permission bits.
        mode: u32,
        /// The user to own it, as in [`Exec::user`].
        user: Option<String>,
    },
    /// Packs a file or folder as a tar archive; its bytes follow the reply.
    Pack {
        /// Absolute path.
        path: Vec<u8>,
    },
    /// Unpacks a tar archive beneath a folder; its bytes follow the request, then a second reply.
    Unpack {
        /// Absolute path; made when missing.
        path: Vec<u8>,
        /// The user to own what is in it, as in [`Exec::user`].
        user: Option<String>,
    },
}

/// What the guest answers to a [`FileRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReply {
    /// The size in bytes, where it is known.
    pub size: Option<u64>,
}

/// An answer: what was asked for, or why not.
pub type Reply<T> = Result<T, Failure>;

/// Why the guest could not do something. Text from the guest: bounded, and shown escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In terms of what the caller can do.
    pub kind: FailureKind,
    /// What went wrong.
    pub message: String,
}

/// The kinds of failure that the guest can tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// No such file, program or user.
    NotFound,
    /// Not permitted.
    PermissionDenied,
    /// Not a thing that can be asked.
    Invalid,
    /// Out of memory, disk, processes or files.
    Exhausted,
    /// Not possible here.
    Unsupported,
    /// It exists already.
    Conflict,
    /// Anything else.
    Other,
}

impl From<FailureKind> for ErrorKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::NotFound => Self::NotFound,
            FailureKind::PermissionDenied => Self::PermissionDenied,
            FailureKind::Invalid => Self::Invalid,
            FailureKind::Exhausted => Self::Exhausted,
            FailureKind::Unsupported => Self::Unsupported,
            FailureKind::Conflict => Self::Conflict,
            FailureKind::Other => Self::Io,
        }
    }
}

impl Failure {
    /// Makes a failure of a kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        // Far below the bound of a message; a longer one is a path that somebody made long on purpose.
        if message.len() > 4096 {
            let end = (0..=4096)
                .rev()
                .find(|at| message.is_char_boundary(*at))
                .unwrap_or(0);
            message.truncate(end);
        }
        Self { kind, message }
    }

    /// Tells what an operation of the system answered, and about what.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let kind = match ErrorKind::from(error) {
            ErrorKind::NotFound => FailureKind::NotFound,
            ErrorKind::PermissionDenied => FailureKind::PermissionDenied,
            ErrorKind::Invalid => FailureKind::Invalid,
            ErrorKind::Exhausted => FailureKind::Exhausted,
            ErrorKind::Unsupported => FailureKind::Unsupported,
            ErrorKind::Conflict => FailureKind::Conflict,
            _ => FailureKind::Other,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
}

/// Picks the version to speak, from what both sides know.
pub fn agree(hello: &Hello) -> Option<u16> {
    let highest = hello.highest.min(*VERSIONS.end());
    (highest >= hello.lowest && VERSIONS.contains(&highest)).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(lowest: u16, highest: u16) -> Hello {
        Hello {
            lowest,
            highest,
            entropy: Entropy([7; 32]),
            clock: None,
        }
    }

    #[test]
    fn entropy_is_not_shown() {
        assert!(!format!("{:?}", hello(1, 1)).contains('7'));
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        assert_eq!(agree(&hello(1, 9)), Some(*VERSIONS.end()));
        assert_eq!(agree(&hello(1, 1)), Some(1));
    }

    #[test]
    fn without_a_common_version_there_is_none() {
        assert_eq!(agree(&hello(*VERSIONS.end() + 1, u16::MAX)), None);
        assert_eq!(agree(&hello(0, 0)), None);
        assert_eq!(agree(&hello(5, 1)), None);
    }

    #[test]
    fn a_long_failure_is_cut_at_a_character() {
        let failure = Failure::new(FailureKind::Other, "é".repeat(10_000));
        assert!(failure.message.len() <= 4096);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut wire = (bytes.len() as u32).to_le_bytes().to_vec();
            wire.extend(&bytes);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                use sandbox_base::frame::read_message;
                drop(read_message::<Open, _>(&mut wire.as_slice(), MAX_OPEN).await);
                drop(read_message::<GuestOpen, _>(&mut wire.as_slice(), MAX_OPEN).await);
                drop(read_message::<ExecEvent, _>(&mut wire.as_slice(), MAX_MESSAGE).await);
                drop(read_message::<Reply<Welcome>, _>(&mut wire.as_slice(), MAX_MESSAGE).await);
            });
        }
    }
}
