//! One running agent.
//!
//! It ends when its socket closes, whoever closes it: [`Machine::kill`], the drop of the machine, or the
//! kernel when the owner is gone. It then kills everything that it has started. Only when it does not
//! manage that in time is it killed itself.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sandbox_base::{BoxStream, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, Notify, watch};

use super::NAME;
use crate::Error;
use crate::hypervisor::{Acceleration, Isolation, Machine, MachineEnd, MachineFacts};
use crate::template::{ColdReason, Started};

/// How long the agent may take to kill its commands and end.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// How much of what the agent says about itself is kept.
const CONSOLE_TAIL: usize = 16 << 10;

/// The agent as a child process.
#[derive(Debug)]
pub(super) struct PlainMachine {
    facts: MachineFacts,
    channel: Mutex<Option<UnixStream>>,
    /// The same socket, to close it whoever reads from it.
    closer: Socket,
    kill: Arc<Notify>,
    end: watch::Receiver<Option<MachineEnd>>,
}

/// Starts the agent. To be called on a tokio runtime.
pub(super) fn start(helper: &Path, folder: &Path) -> Result<PlainMachine, Error> {
    let failed = |error| Error::io("start the agent as a plain process", error);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::io(format!("make the folder {}", folder.display()), error))?;
    let started = spawn(helper);
    let (child, ours) = started.map_err(|error| {
        // The first error is the one to report.
        drop(fs::remove_dir_all(folder));
        failed(error)
    })?;
    let pid = child.id();
    let channel = ours.try_clone().and_then(|socket| {
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    });
    let kill = Arc::new(Notify::new());
    let (sender, end) = watch::channel(None);
    let attending = attend(child, kill.clone(), folder.to_owned());
    tokio::spawn(async move { sender.send_replace(Some(attending.await)) });
    Ok(PlainMachine {
        facts: MachineFacts {
            backend: NAME,
            isolation: Isolation::None,
            acceleration: Acceleration::NotApplicable,
            pid,
            started: Started::Cold(ColdReason::Unsupported),
        },
        channel: Mutex::new(Some(channel.map_err(failed)?)),
        closer: ours,
        kill,
        end,
    })
}

fn spawn(helper: &Path) -> io::Result<(Child, Socket)> {
    let (ours, theirs) = Socket::pair()?;
    let child = Command::new(helper)
        .arg("agent")
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C at the owner's terminal is the owner's business.
        .process_group(0)
        .spawn()
        .map_err(|error| {
            let about = format!("helper binary {}: {error}", helper.display());
            io::Error::new(error.kind(), about)
        })?;
    Ok((child, ours))
}

/// Waits for the agent's end, or brings it about when told to, and removes its folder.
async fn attend(mut child: Child, kill: Arc<Notify>, folder: PathBuf) -> MachineEnd {
    let mut console = Vec::new();
    let stderr = child.stderr.take();
    let status = {
        let reading = async {
            if let Some(stderr) = stderr {
                keep_last(stderr, &mut console).await;
            }
            std::future::pending::<()>().await;
        };
        let too_late = async {
            kill.notified().await;
            tokio::time::sleep(END_PATIENCE).await;
        };
        let ended = async {
            tokio::select! {
                status = child.wait() => status,
                () = too_late => {
                    // It may have ended meanwhile.
                    drop(child.start_kill());
                    child.wait().await
                }
            }
        };
        tokio::select! {
            status = ended => status,
            () = reading => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    drop(fs::remove_dir_all(&folder));
    MachineEnd {
        failure: failure(status),
        console: String::from_utf8_lossy(&console).into_owned(),
    }
}

async fn keep_last(mut from: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.extend(&buffer[..count]);
        let excess = kept.len().saturating_sub(CONSOLE_TAIL);
        kept.drain(..excess);
    }
}

fn failure(status: io::Result<ExitStatus>) -> Option<String> {
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(match status.signal() {
            Some(signal) => format!("the agent was killed by signal {signal}"),
            None => format!("the agent exited with {}", status.code().unwrap_or(-1)),
        }),
        Err(error) => Some(format!("the agent is gone: {error}")),
    }
}

#[async_trait]
impl Machine for PlainMachine {
    fn facts(&self) -> &MachineFacts {
        &self.facts
    }

    async fn connect(&self) -> Result<BoxStream, Error> {
        const OPERATION: &str = "connect to an agent";
        if self.end.borrow().is_some() {
            return Err(Error::new(ErrorKind::Disconnected, OPERATION));
        }
        match self.channel.lock().await.take() {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(Error::new(ErrorKind::Conflict, OPERATION)
                .with_detail("its one connection is taken")),
        }
    }

    fn wait(&self) -> BoxFuture<'static, MachineEnd> {
        let mut end = self.end.clone();
        Box::pin(async move {
            let told = end.wait_for(Option::is_some).await;
            told.ok()
                .and_then(|end| end.clone())
                .unwrap_or_else(|| MachineEnd {
                    failure: Some("the runtime that attended to it is gone".into()),
                    console: String::new(),
                })
        })
    }

    async fn kill(&self) -> Result<(), Error> {
        self.close();
        self.wait().await;
        Ok(())
    }
}

impl PlainMachine {
    fn close(&self) {
        // Closed already is as good.
        drop(self.closer.shutdown(Shutdown::Both));
        self.kill.notify_one();
    }
}

impl Drop for PlainMachine {
    fn drop(&mut self) {
        self.close();
    }
}
