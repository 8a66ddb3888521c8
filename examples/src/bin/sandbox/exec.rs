//! `exec`: a command in a sandbox that runs.

use std::io::IsTerminal;

use sandbox_core::{Dirs, Sandbox, State};

use crate::cli;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::session::{self, Streams};

/// Runs a command in a sandbox that runs.
pub(crate) async fn exec(dirs: &Dirs, arguments: cli::Exec) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    if arguments.tty && arguments.interactive && !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "give the command a terminal with this input",
            "standard input is not a terminal; leave out -i or -t",
        ));
    }
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    if sandbox.describe().await?.state == State::Stopped {
        return Err(Failure::new(
            format!("run a command in the sandbox {}", arguments.name),
            format!(
                "it does not run; `sandbox run --name {} shell` starts it",
                arguments.name
            ),
        ));
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(Failure::new("run a command", "none is given"));
    };
    let mut command = sandbox.command(program);
    command.args(rest).envs(arguments.env);
    if let Some(folder) = arguments.workdir {
        command.current_dir(folder);
    }
    if let Some(user) = arguments.user {
        command.user(user);
    }
    if let Some(time) = arguments.timeout {
        command.timeout(time);
    }
    let streams = Streams {
        input: arguments.interactive,
        terminal: arguments.tty,
    };
    session::run(&mut command, streams, &mut interrupts).await
}
