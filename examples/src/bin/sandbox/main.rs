//! The command line tool: a microVM per agent, from a terminal.
//!
//! Its verbs are those that users of `docker sandbox` know. It holds nothing of its own: everything it
//! does is `sandbox-core`'s, and what is here is what only a terminal needs.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | the arguments |
//! | `creation` | from arguments to a new sandbox |
//! | `run`, `exec` | the verbs that run a command |
//! | `session` | one command joined to this process's streams |
//! | `interrupt`, `terminal` | signals, raw mode, window size |
//! | `review`, `sync` | what the guest did to workspaces |
//! | `list`, `remove`, `copy`, `network`, `rollback`, `template`, `doctor`, `setup` | the other verbs |
//! | `progress`, `output`, `failure` | what a person sees while waiting, at the end, and when it fails |
//!
//! Exit status: that of the command inside, 128 + n when signal n ended it or this tool, 124 when its time
//! ran out, 125 for a failure of the tool itself, 126 and 127 for a command that cannot be executed or is
//! not there.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks to a terminal"
)]

mod cli;
mod copy;
mod creation;
mod doctor;
mod exec;
mod failure;
mod interrupt;
mod lifecycle;
mod list;
mod network;
mod output;
mod progress;
mod review;
mod rollback;
mod run;
mod session;
mod setup;
mod snapshot;
mod sync;
mod tail;
mod template;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use cli::{Cli, Verb};
use failure::{FAILED, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("start", error))
        .and_then(|runtime| {
            let done = runtime.block_on(dispatch(cli));
            // A read of standard input may be under way, and ends only with the process.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.tell(),
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    if let Verb::Completions { shell } = cli.verb {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "sandbox", &mut script);
        return output::print(&script).map(|()| 0);
    }
    let dirs = sandbox_core::default_dirs()?;
    match cli.verb {
        Verb::Run(arguments) => run::run(&dirs, arguments).await,
        Verb::Create(arguments) => run::create(&dirs, arguments).await,
        Verb::Exec(arguments) => exec::exec(&dirs, arguments).await,
        Verb::Ls(arguments) => list::list(&dirs, &arguments).await,
        Verb::Pause(names) => lifecycle::pause(&dirs, &names).await,
        Verb::Resume(names) => lifecycle::resume(&dirs, &names).await,
        Verb::Stop(names) => lifecycle::stop(&dirs, &names).await,
        Verb::Rm(arguments) => lifecycle::remove(&dirs, &arguments).await,
        Verb::Cp(arguments) => copy::copy(&dirs, &arguments).await,
        Verb::Network(verb) => network::network(&dirs, verb).await,
        Verb::Diff(arguments) => review::diff(&dirs, &arguments).await,
        Verb::Apply(arguments) => review::apply(&dirs, &arguments).await,
        Verb::Discard(arguments) => review::discard(&dirs, &arguments).await,
        Verb::Sync(verb) => sync::sync(&dirs, verb).await,
        Verb::Snapshot(verb) => rollback::snapshot(&dirs, verb).await,
        Verb::Restore(arguments) => rollback::restore(&dirs, arguments).await,
        Verb::Fork(arguments) => lifecycle::fork(&dirs, arguments).await,
        Verb::Template(verb) => template::template(&dirs, verb),
        Verb::Doctor(arguments) => doctor::doctor(&dirs, &arguments).await,
        Verb::Setup(arguments) => setup::setup(&dirs, &arguments).await,
        Verb::Completions { .. } => Ok(0),
    }
}

/// Prints help where it was asked for, else what is wrong with the arguments: a failure of the tool, so
/// that it is never taken for the status of a command inside.
fn usage(error: &clap::Error) -> ExitCode {
    let failed = error.use_stderr();
    match error.print() {
        Ok(()) if !failed => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

/// Sends warnings of the libraries to standard error; `SANDBOX_LOG` says otherwise, as in
/// `SANDBOX_LOG=sandbox_core=debug`.
fn log() {
    let wanted = std::env::var("SANDBOX_LOG").unwrap_or_default();
    let filter: tracing_subscriber::filter::Targets = wanted
        .parse()
        .ok()
        .filter(|_| !wanted.is_empty())
        .unwrap_or_else(|| {
            tracing_subscriber::filter::Targets::new()
                .with_default(tracing_subscriber::filter::LevelFilter::WARN)
        });
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(output::is_for_a_person())
        .without_time()
        .with_target(false);
    tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .init();
}
