//! One command with its streams, signals and time limit.
//!
//! Three pipes, or a terminal, are joined to streams of their own, so that one the host does not read
//! holds up neither the others nor the command's end. The end is told as soon as the command is reaped;
//! its output may still be on its way, and each output stream says by its own end that it is complete.
//!
//! A command ends with its host: what nobody listens to must not stay. In a machine that was saved while it ran
//! and is restored, its host is another one, and the command goes on: what it says is lost from there, what it
//! reads does not come, and its time limit still holds.

use std::io;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitStatus};
use sandbox_base::frame::{read_message, write_message};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf,
};
use tokio::net::unix::pipe;

use super::agent::Shared;
use super::descriptor::Descriptor;
use super::group::Group;
use super::process::{Child, Spawn, open_terminal, resize_terminal};
use crate::channel::protocol::{
    Exec, ExecControl, ExecEvent, Exit, ExitCause, Failure, FailureKind, MAX_MESSAGE, Stdio,
    TerminalSize,
};
use crate::channel::{Channel, SPLIT_SEND, Stream};
use crate::users::{self, User};

/// The size of a command's pipes: larger than the default, because each wake-up is dear in an emulated
/// guest.
const PIPE_SIZE: usize = 256 * 1024;

/// Where programs are looked for unless the command, the sandbox or the image says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a command and talks about it on `control` until it has ended.
pub(crate) async fn run(agent: Arc<Shared>, wanted: Exec, control: Stream) -> io::Result<()> {
    let timeout = wanted.timeout_ms.map(Duration::from_millis);
    let (reader, mut writer) = tokio::io::split(control);
    let host = Host(agent.session.current());
    match start(&agent, wanted, &host).await {
        Err(failure) => {
            write_message(&mut writer, &ExecEvent::Failed(failure), MAX_MESSAGE).await?;
            writer.shutdown().await
        }
        Ok(running) => running.attend((reader, writer), timeout, &host).await,
    }
}

/// The host that asked for a command.
#[derive(Clone)]
struct Host(Option<Channel>);

impl Host {
    /// Tells whether it was left behind: the machine was saved, and this is the copy.
    fn was_left_behind(&self) -> bool {
        self.0.as_ref().is_some_and(Channel::was_taken_over)
    }
}

/// A command that runs.
struct Running {
    child: Child,
    group: Option<Group>,
    terminal: Option<OwnedFd>,
}

async fn start(agent: &Arc<Shared>, wanted: Exec, host: &Host) -> Result<Running, Failure> {
    let settings = agent.settings();
    let user = find_user(wanted.user.as_deref())?;
    let cwd = working_directory(&wanted, &user)?;
    let env = environment(&settings.env, &wanted, &user);
    let program = String::from_utf8_lossy(wanted.argv.first().map_or(&[][..], |p| p)).into_owned();
    let mut streams = Vec::new();
    for which in &wanted.stdio {
        streams.push((*which, agent.claim((wanted.id, *which)).await?));
    }
    let (group, join) = agent
        .groups
        .take()
        .map_err(|error| Failure::io("control group", &error))?
        .unzip();
    let ends = Ends::open(wanted.terminal, streams, host).map_err(|e| Failure::io("pipes", &e))?;
    let spawn = Spawn {
        argv: wanted.argv,
        env,
        cwd,
        user,
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
        terminal: wanted.terminal.is_some(),
        group: join,
        open_files: settings.limits.open_files,
    };
    let child = agent
        .reaper
        .spawn(spawn)
        .map_err(|error| Failure::io(program, &error))?;
    for pump in ends.pumps {
        tokio::spawn(pump);
    }
    Ok(Running {
        child,
        group,
        terminal: ends.terminal,
    })
}

impl Running {
    async fn attend(
        mut self,
        (mut reader, mut writer): (ReadHalf<Stream>, WriteHalf<Stream>),
        timeout: Option<Duration>,
        host: &Host,
    ) -> io::Result<()> {
        let pid = self.child.pid.as_raw_nonzero().get().unsigned_abs();
        write_message(&mut writer, &ExecEvent::Started(pid), MAX_MESSAGE).await?;
        let deadline = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        let mut cause = ExitCause::Own;
        let mut listening = true;
        let status = loop {
            tokio::select! {
                status = &mut self.child.status => break status.map_err(io::Error::other)?,
                control = read_message(&mut reader, MAX_MESSAGE), if listening => match control {
                    Ok(control) => self.obey(control),
                    Err(_) if host.was_left_behind() => listening = false,
                    // The host is gone: nothing of the command stays.
                    Err(_) => { listening = false; self.kill(); }
                },
                () = &mut deadline, if cause == ExitCause::Own => {
                    cause = ExitCause::Timeout;
                    self.kill();
                }
            }
        };
        if cause == ExitCause::Timeout {
            // What left the process group dies with the command, also after its leader.
            self.kill();
        } else if self.group.as_mut().is_some_and(Group::ran_out_of_memory) {
            cause = ExitCause::OutOfMemory;
        }
        let exit = ExecEvent::Exited(exit(status, cause));
        write_message(&mut writer, &exit, MAX_MESSAGE).await?;
        writer.shutdown().await
    }

    fn obey(&self, control: ExecControl) {
        match control {
            ExecControl::Signal(number) => signal_group(self.child.pid, number),
            ExecControl::Kill => self.kill(),
            ExecControl::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    // A terminal that is gone has no size.
                    drop(resize_terminal(terminal, size.rows, size.columns));
                }
            }
        }
    }

    fn kill(&self) {
        let killed = self
            .group
            .as_ref()
            .is_some_and(|group| group.kill().is_ok());
        if !killed {
            signal_group(self.child.pid, Signal::KILL.as_raw());
        }
    }
}

/// Sends a signal to the command's process group. Real-time signals belong to the C library of whoever
/// sends and receives them, and are passed over.
fn signal_group(leader: Pid, number: i32) {
    let Some(signal) = Signal::from_named_raw(number) else {
        return;
    };
    // The group may be gone, or not made yet for the blink between fork and `setsid`.
    if rustix::process::kill_process_group(leader, signal).is_err() {
        let _ = rustix::process::kill_process(leader, signal);
    }
}

fn exit(status: WaitStatus, cause: ExitCause) -> Exit {
    Exit {
        code: status.exit_status(),
        signal: status.terminating_signal(),
        cause,
    }
}

fn find_user(wanted: Option<&str>) -> Result<User, Failure> {
    let own = rustix::process::getuid().as_raw().to_string();
    users::find_here(wanted.unwrap_or(&own))
}

fn working_directory(wanted: &Exec, user: &User) -> Result<Vec<u8>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let is_folder = |path: &[u8]| std::path::Path::new(std::ffi::OsStr::from_bytes(path)).is_dir();
    match &wanted.cwd {
        Some(cwd) if is_folder(cwd) => Ok(cwd.clone()),
        Some(cwd) => {
            let message = format!("{}: no such folder inside", String::from_utf8_lossy(cwd));
            Err(Failure::new(FailureKind::NotFound, message))
        }
        None if is_folder(user.home.as_bytes()) => Ok(user.home.clone().into_bytes()),
        None => Ok(b"/".to_vec()),
    }
}

/// What a command finds in its environment, later names replacing earlier ones: the user's, the
/// sandbox's, its own.
fn environment(
    sandbox: &[(String, String)],
    wanted: &Exec,
    user: &User,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let mut env = std::collections::BTreeMap::new();
    if !wanted.env_clear {
        env.insert(bytes("PATH"), bytes(DEFAULT_PATH));
        env.insert(bytes("HOME"), bytes(&user.home));
        env.insert(bytes("USER"), bytes(&user.name));
        env.insert(bytes("LOGNAME"), bytes(&user.name));
        env.insert(bytes("SHELL"), bytes(&user.shell));
        if wanted.terminal.is_some() {
            env.insert(bytes("TERM"), bytes("xterm-256color"));
        }
        env.extend(
            sandbox
                .iter()
                .map(|(name, value)| (bytes(name), bytes(value))),
        );
    }
    env.extend(wanted.env.iter().cloned());
    for name in &wanted.env_remove {
        env.remove(name);
    }
    env.into_iter().collect()
}

type Pump = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// The command's ends of its standard streams, and what moves bytes at the other ends.
struct Ends {
    stdin: process::Stdio,
    stdout: process::Stdio,
    stderr: process::Stdio,
    terminal: Option<OwnedFd>,
    pumps: Vec<Pump>,
}

impl Ends {
    fn open(
        size: Option<TerminalSize>,
        streams: Vec<(Stdio, Stream)>,
        host: &Host,
    ) -> io::Result<Self> {
        match size {
            Some(size) => Self::terminal(size, streams, host),
            None => Self::pipes(streams, host),
        }
    }

    fn pipes(streams: Vec<(Stdio, Stream)>, host: &Host) -> io::Result<Self> {
        let null = process::Stdio::null;
        let mut ends = Self {
            stdin: null(),
            stdout: null(),
            stderr: null(),
            terminal: None,
            pumps: Vec::new(),
        };
        for (which, stream) in streams {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            // A smaller pipe is slower and nothing worse.
            let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_SIZE);
            match which {
                Stdio::In => {
                    ends.stdin = read.into();
                    let pipe = pipe::Sender::from_owned_fd(nonblocking(write)?)?;
                    ends.pumps.push(Box::pin(feed(stream, pipe, host.clone())));
                }
                Stdio::Out | Stdio::Err => {
                    let pipe = pipe::Receiver::from_owned_fd(nonblocking(read)?)?;
                    let end = if which == Stdio::Out {
                        &mut ends.stdout
                    } else {
                        &mut ends.stderr
                    };
                    *end = write.into();
                    ends.pumps.push(Box::pin(drain(pipe, stream, host.clone())));
                }
            }
        }
        Ok(ends)
    }

    fn terminal(
        size: TerminalSize,
        streams: Vec<(Stdio, Stream)>,
        host: &Host,
    ) -> io::Result<Self> {
        let (master, slave) = open_terminal(size.rows, size.columns)?;
        let mut pumps: Vec<Pump> = Vec::new();
        for (which, stream) in streams {
            let side = Descriptor::new(master.try_clone()?)?;
            match which {
                Stdio::In => pumps.push(Box::pin(pump(stream, side, host.clone()))),
                Stdio::Out => pumps.push(Box::pin(drain(side, stream, host.clone()))),
                Stdio::Err => {}
            }
        }
        Ok(Self {
            stdin: slave.try_clone()?.into(),
            stdout: slave.try_clone()?.into(),
            stderr: slave.into(),
            terminal: Some(master),
            pumps,
        })
    }
}

fn nonblocking(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    Ok(descriptor)
}

/// Moves bytes until one side ends, then ends the other. What either side says is the command's or the
/// host's business; both learn of it by the end.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, host: Host) {
    let mut buffer = vec![0; SPLIT_SEND];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    if !host.was_left_behind() {
        drop(to.shutdown().await);
    }
}

/// Moves what the host says into a command's pipe. Without its host the pipe stays open and empty, until the
/// command has let go of its end.
async fn feed(from: Stream, mut to: pipe::Sender, host: Host) {
    pump(from, &mut to, host.clone()).await;
    if host.was_left_behind() {
        drop(to.ready(Interest::ERROR).await);
    }
}

/// Moves what a command says to the host. Without its host it is read all the same, so that the command goes
/// on.
async fn drain(mut from: impl AsyncRead + Unpin, to: Stream, host: Host) {
    pump(&mut from, to, host.clone()).await;
    if host.was_left_behind() {
        drop(tokio::io::copy(&mut from, &mut tokio::io::sink()).await);
    }
}
