//! The machine under test, and the few words in which checks speak.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sandbox_base::{BoxStream, ErrorKind};
use tokio::io::AsyncReadExt;

use super::Options;
use crate::agent::{Agent, RunningExec, new_exec_id};
use crate::channel::protocol::{Exec, ExecId, Exit, ExitCause, Stdio};
use crate::hypervisor::{Capabilities, Hypervisor, MachineSpec};
use crate::{Error, Machine};

/// The most output that a check reads into memory.
const MAX_OUTPUT: u64 = 16 << 20;

/// Between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) capabilities: Capabilities,
    pub(super) spec: MachineSpec,
    pub(super) options: Options,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) agent: Agent,
    /// A folder inside that belongs to the suite.
    pub(super) scratch: String,
}

/// What a check answers.
pub(super) type Verdict = Result<(), Problem>;

/// Why a check did not pass.
#[derive(Debug)]
pub(super) enum Problem {
    Failed(String),
    Skipped(String),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        use std::error::Error as _;
        let source = error.source().map(|source| format!(" ({source})"));
        Self::Failed(format!("{error}{}", source.unwrap_or_default()))
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// All that came of a command.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) exit: Exit,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Subject {
    pub(super) async fn new(
        hypervisor: &dyn Hypervisor,
        spec: &MachineSpec,
        options: &Options,
        machine: Arc<dyn Machine>,
        agent: Agent,
    ) -> Result<Self, Error> {
        let mut subject = Self {
            name: hypervisor.name(),
            capabilities: hypervisor.capabilities(),
            spec: spec.clone(),
            options: options.clone(),
            machine,
            agent,
            scratch: String::new(),
        };
        let made = subject.output(command(&["mktemp", "-d"])).await;
        let made = made.map_err(|problem| {
            Error::new(ErrorKind::Io, "make a folder inside").with_detail(format!("{problem:?}"))
        })?;
        subject.scratch = text(&made.stdout).trim().to_owned();
        Ok(subject)
    }

    /// Returns a path in the suite's folder.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.scratch)
    }

    /// Runs a command to its end with both outputs read.
    pub(super) async fn output(&self, exec: Exec) -> Result<Output, Problem> {
        let mut running = self.start(exec).await?;
        let stdout = read_all(running.stdout.take());
        let stderr = read_all(running.stderr.take());
        let (stdout, stderr) = tokio::join!(stdout, stderr);
        Ok(Output {
            exit: running.end.wait().await?,
            stdout: stdout?,
            stderr: stderr?,
        })
    }

    /// Runs a script to its end and returns what it wrote, without the last line break.
    pub(super) async fn script(&self, script: &str) -> Result<String, Problem> {
        let output = self.output(shell(script)).await?;
        if output.exit.code != Some(0) {
            return Err(failed(format!("{script:?} gave {output:?}")));
        }
        Ok(text(&output.stdout).trim_end().to_owned())
    }

    pub(super) async fn start(&self, mut exec: Exec) -> Result<RunningExec, Error> {
        exec.id = new_exec_id()?;
        self.agent.exec(exec).await
    }

    /// Checks that a command cannot be started, and why.
    pub(super) async fn refused(&self, exec: Exec, wanted: ErrorKind) -> Verdict {
        let argv = format!("{:?}", exec.argv.first().map(|word| text(word)));
        match self.start(exec).await {
            Ok(_) => Err(failed(format!("{argv} was started"))),
            Err(error) => same(&argv, error.kind(), wanted),
        }
    }

    /// Tells whether a process inside runs; one that ended and waits to be reaped does not.
    pub(super) async fn runs(&self, pid: &str) -> Result<bool, Problem> {
        let script = format!(
            "read -r line </proc/{pid}/stat && case ${{line##*) }} in Z*) exit 1;; esac; exit 0"
        );
        let mut exec = shell(&format!("test -e /proc/{pid}/stat || exit 1; {script}"));
        exec.stdio.clear();
        Ok(self.output(exec).await?.exit.code == Some(0))
    }

    /// Waits until a process inside is gone; the check's time limit ends the wait.
    pub(super) async fn wait_until_gone(&self, pid: &str) -> Verdict {
        while self.runs(pid).await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    pub(super) fn needs_users(&self) -> Verdict {
        if self.capabilities.users {
            return Ok(());
        }
        let reason = "commands run only as the agent's own user here";
        Err(Problem::Skipped(reason.into()))
    }
}

/// Asks again until the answer is empty; the check's time limit ends it.
pub(super) async fn until_empty<F>(mut ask: impl FnMut() -> F) -> Verdict
where
    F: Future<Output = Result<String, Problem>>,
{
    while !ask().await?.is_empty() {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// A command with both outputs.
pub(super) fn command(words: &[&str]) -> Exec {
    Exec {
        id: ExecId([0; 16]),
        argv: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: Vec::new(),
        env_remove: Vec::new(),
        env_clear: false,
        cwd: None,
        user: None,
        stdio: vec![Stdio::Out, Stdio::Err],
        terminal: None,
        timeout_ms: None,
    }
}

/// A script for the shell, with both outputs.
pub(super) fn shell(script: &str) -> Exec {
    command(&["sh", "-c", script])
}

/// Gives a command its input as well.
pub(super) fn with_input(mut exec: Exec) -> Exec {
    exec.stdio = vec![Stdio::In, Stdio::Out, Stdio::Err];
    exec
}

pub(super) async fn read_all(stream: Option<BoxStream>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Reads a line, without its end and without a terminal's carriage return.
pub(super) async fn read_line(stream: &mut BoxStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if line.len() < 4096 => line.push(byte),
            _ => return Err(io::Error::other("a line without end")),
        }
    }
    Ok(text(&line).trim_end_matches('\r').to_owned())
}

/// Takes a stream that was asked for.
pub(super) fn take(stream: &mut Option<BoxStream>) -> Result<BoxStream, Problem> {
    stream
        .take()
        .ok_or_else(|| failed("a stream that was asked for is missing"))
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn failed(reason: impl Into<String>) -> Problem {
    Problem::Failed(reason.into())
}

/// Checks that something is as it should be.
pub(super) fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Verdict {
    if found == wanted {
        return Ok(());
    }
    Err(failed(format!("{what}: {found:?}, not {wanted:?}")))
}

pub(super) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(failed(otherwise()))
    }
}

/// How a command ends that ends by itself.
pub(super) fn exited(code: i32) -> Exit {
    Exit {
        code: Some(code),
        signal: None,
        cause: ExitCause::Own,
    }
}

/// How a command ends that is killed.
pub(super) fn killed(signal: i32, cause: ExitCause) -> Exit {
    Exit {
        code: None,
        signal: Some(signal),
        cause,
    }
}
