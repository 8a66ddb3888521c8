//! `run` and `create`.
//!
//! | | sandbox | afterwards |
//! |---|---|---|
//! | `run --rm` | attached: new, in this process | removed, whatever ended the command or this process |
//! | `run` | detached: the one of that name, started if need be, or a new one | goes on |
//! | `create` | detached: new | goes on |

use std::ffi::OsString;
use std::time::Duration;

use sandbox_core::{Command, Description, Dirs, ErrorKind, Lifetime, Sandbox, State};

use crate::cli::{self, Agent};
use crate::creation::Plan;
use crate::failure::{self, FAILED, Failure};
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::Waiting;
use crate::session::{self, Streams};

/// The shells that are tried for an interactive agent, best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// How long a creation that was given up may take to go. Another one's, at the same time, is not waited for
/// longer either.
const SWEEP_PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait before looking again.
const SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// What is to be run, and for how long at most.
#[derive(Debug)]
struct Task {
    agent: Agent,
    command: Vec<OsString>,
    env: Vec<(String, String)>,
    user: Option<String>,
    timeout: Option<Duration>,
}

/// Runs an agent or a command in a sandbox.
pub(crate) async fn run(dirs: &Dirs, arguments: cli::Run) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let plan = Plan::of(&arguments.creation).await?;
    let task = Task {
        agent: arguments.creation.agent,
        command: arguments.command,
        env: arguments.creation.env.clone(),
        user: arguments.creation.user.clone(),
        timeout: arguments.creation.timeout,
    };
    if arguments.rm {
        if plan.waits_for_review() {
            let why = "what waits for review would be removed before it is seen; leave out --rm";
            return Err(Failure::new("use --rm in the mode review", why));
        }
        return run_once(dirs, &plan, &task, &mut interrupts).await;
    }
    let sandbox = match Sandbox::connect_in(dirs.clone(), &plan.name).await {
        Ok(sandbox) => {
            come_back(&sandbox, &plan, &arguments.creation, &mut interrupts).await?;
            sandbox
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_detached(dirs, &plan, &mut interrupts).await?
        }
        Err(error) => return Err(error.into()),
    };
    let done = task.run(&sandbox, &mut interrupts).await;
    settle(done, &sandbox).await
}

/// Creates a sandbox and leaves it running.
pub(crate) async fn create(dirs: &Dirs, arguments: cli::Create) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let mut plan = Plan::of(&arguments.creation).await?;
    plan.set_run_time(arguments.creation.timeout);
    let sandbox = create_detached(dirs, &plan, &mut interrupts).await?;
    output::print(format!("{}\n", sandbox.name()).as_bytes())?;
    Ok(0)
}

async fn run_once(
    dirs: &Dirs,
    plan: &Plan,
    task: &Task,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let waiting = Waiting::on("starting the sandbox");
    let mut builder = plan.builder(dirs)?.progress(waiting.progress());
    if plan.named {
        builder = builder.name(&plan.name);
    }
    // Dropped half-way, it removes what was made.
    let sandbox = match interrupts.or(builder.create()).await {
        Ok(sandbox) => sandbox?,
        Err(failure) => {
            sweep(dirs, |one| one.lifetime == Lifetime::Attached).await;
            return Err(failure);
        }
    };
    drop(waiting);
    let done = task.run(&sandbox, interrupts).await;
    let done = settle(done, &sandbox).await;
    let removed = interrupts.or(sandbox.remove()).await?;
    match (done, removed) {
        (Ok(0), Err(error)) => Err(error.into()),
        (done, Err(error)) => {
            failure::warn(&failure::chain(&error));
            done
        }
        (done, Ok(())) => done,
    }
}

/// Waits until a creation that was given up is cleaned up, and does it where that was cut short: a step of
/// it that was on its way to the disk ends later than the signal came.
async fn sweep(dirs: &Dirs, given_up: impl Fn(&Description) -> bool) {
    let half_made = |one: &Description| one.state == State::Creating && given_up(one);
    let swept = async {
        // Looking for sandboxes removes what has no owner.
        while let Ok(found) = Sandbox::list_in(dirs.clone()).await
            && found.iter().any(half_made)
        {
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    };
    drop(tokio::time::timeout(SWEEP_PATIENCE, swept).await);
}

/// Makes an existing sandbox ready for a command.
async fn come_back(
    sandbox: &Sandbox,
    plan: &Plan,
    creation: &cli::Creation,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    let description = sandbox.describe().await?;
    plan.check_fits(creation, &description)?;
    match description.state {
        State::Stopped => {
            let _waiting = Waiting::on("starting the sandbox");
            interrupts.or(sandbox.start()).await??;
        }
        State::Paused => {
            let _waiting = Waiting::on("resuming the sandbox");
            interrupts.or(sandbox.resume()).await??;
        }
        _ => {}
    }
    Ok(())
}

async fn create_detached(
    dirs: &Dirs,
    plan: &Plan,
    interrupts: &mut Interrupts,
) -> Result<Sandbox, Failure> {
    let waiting = Waiting::on("starting the sandbox");
    let builder = plan.builder(dirs)?.progress(waiting.progress());
    match interrupts
        .or(builder.name(&plan.name).detached().create())
        .await
    {
        Ok(sandbox) => Ok(sandbox?),
        Err(failure) => {
            // Its supervisor gives up, too, once nobody waits for its answer.
            sweep(dirs, |one| one.name == plan.name).await;
            Err(failure)
        }
    }
}

impl Task {
    async fn run(&self, sandbox: &Sandbox, interrupts: &mut Interrupts) -> Result<u8, Failure> {
        if let Some((program, arguments)) = self.command.split_first() {
            let mut command = sandbox.command(program);
            self.furnish(command.args(arguments));
            return session::run(&mut command, Streams::of_a_command(), interrupts).await;
        }
        match self.agent {
            Agent::Shell => self.shell(sandbox, Streams::of_a_shell(), interrupts).await,
        }
    }

    async fn shell(
        &self,
        sandbox: &Sandbox,
        streams: Streams,
        interrupts: &mut Interrupts,
    ) -> Result<u8, Failure> {
        let mut missing = None;
        for shell in SHELLS {
            let mut command = sandbox.command(shell);
            self.furnish(command.arg("-l"));
            match session::spawn(&mut command, streams, interrupts).await? {
                Ok(child) => return session::attend(child, streams, interrupts).await,
                Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(error),
                Err(error) => return Err(Failure::spawn(&error)),
            }
        }
        Err(missing.map_or_else(|| Failure::silent(FAILED), |error| Failure::spawn(&error)))
    }

    /// Adds what was said on the command line: a sandbox that was there already does not know it.
    fn furnish(&self, command: &mut Command<'_>) {
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(user) = &self.user {
            command.user(user);
        }
        if let Some(time) = self.timeout {
            command.timeout(time);
        }
    }
}

/// Brings the workspaces into agreement and says what is left to a person. A failure of the command is
/// told before one of the workspaces.
async fn settle(done: Result<u8, Failure>, sandbox: &Sandbox) -> Result<u8, Failure> {
    let settled = agree(sandbox).await;
    match (done, settled) {
        (Ok(0), Err(failure)) => Err(failure),
        (done, Err(failure)) => {
            failure.tell();
            done
        }
        (done, Ok(())) => done,
    }
}

async fn agree(sandbox: &Sandbox) -> Result<(), Failure> {
    for report in sandbox.sync().await? {
        let folder = &report.workspace;
        for path in &report.conflicts {
            failure::warn(&match report.collisions.get(path) {
                Some(why) => format!("{folder}/{path}: {why}"),
                None => {
                    format!("{folder}/{path} was changed here and inside: each side keeps its own")
                }
            });
        }
        for path in &report.held {
            failure::warn(&format!(
                "{folder}/{path} stays inside, because it would run here without being asked"
            ));
        }
        for path in &report.overruled {
            failure::warn(&format!(
                "{folder}/{path} was changed here and inside: this side's stays, the other is kept beside it"
            ));
        }
        if !report.waiting.is_empty() {
            let count = report.waiting.len();
            failure::warn(&format!(
                "{count} changed in {folder}: see `sandbox diff {0}`, then `sandbox apply {0}`",
                sandbox.name()
            ));
        }
        for problem in &report.problems {
            failure::warn(&format!("{folder}: {problem}"));
        }
    }
    Ok(())
}
