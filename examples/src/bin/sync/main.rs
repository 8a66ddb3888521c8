//! The synchronizer on its own: what `sandbox-sync` does for a sandbox, for any two folders.
//!
//! ```text
//! sync ~/project /mnt/copy                                  # both halves in one process
//! sync ~/project -- ssh build sync --serve /srv/project     # the other half behind a pipe
//! ```
//!
//! Standard output is what happened, one line a path: `> path` went to the other side, `< path` came back, `! path`
//! needs somebody; standard error is for people. It runs until SIGINT or SIGTERM, after which comes a last cycle, or
//! with `--once` until both sides agree. The exit status is 0 if they do in the end, 2 if something is left for
//! somebody to decide, 1 if it failed.
//!
//! The other side is not trusted: keys do not go there, and what would run here without being asked does not come
//! back. For two folders that are both yours, `--trusted` lets everything through.
#[cfg(unix)]
mod arguments;

use std::process::ExitCode;

/// What goes wrong is told to the person who started it.
#[cfg(unix)]
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[cfg(not(unix))]
fn main() -> ExitCode {
    use std::io::Write;
    let told = writeln!(
        std::io::stderr(),
        "sync: folders are reached only on Unix so far"
    );
    drop(told);
    ExitCode::FAILURE
}

#[cfg(unix)]
fn main() -> ExitCode {
    let arguments = <arguments::Arguments as clap::Parser>::parse();
    let built = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let done = built
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(unix::run(arguments)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(failure) => {
            let mut text = failure.to_string();
            let mut source = failure.source();
            while let Some(reason) = source {
                text += &format!(": {reason}");
                source = reason.source();
            }
            unix::tell(&text);
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::io::Write;
    use std::path::Path;
    use std::process::Stdio;

    use sandbox_sync::{Event, Report, Session, guest};
    use tokio::io::{AsyncRead, AsyncWrite, join, stdin, stdout};
    use tokio::process::{Child, Command};
    use tokio::signal::unix::{Signal, SignalKind, signal};
    use tokio::sync::broadcast::Receiver;
    use tokio::sync::broadcast::error::RecvError;

    use crate::Failure;
    use crate::arguments::Arguments;

    type Stream = Box<dyn Both>;

    pub(crate) trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

    /// Tells a person, if one is there: nobody at the other end of standard error is no reason to end.
    pub(crate) fn tell(text: &str) {
        drop(writeln!(std::io::stderr(), "sync: {text}"));
    }

    /// Returns whether both sides agree in the end.
    pub(crate) async fn run(arguments: Arguments) -> Result<bool, Failure> {
        if let Some(folder) = &arguments.serve {
            let options = guest::Options::default().with_root(std::path::absolute(folder)?);
            guest::serve(Box::new(join(stdin(), stdout())), options).await?;
            return Ok(true);
        }
        let folder = arguments.folder.as_deref().ok_or("no folder")?;
        // Before anything is started: a signal that comes meanwhile is not lost.
        let mut signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ];
        let (stream, child) = other_half(&arguments)?;
        let settled = keep(folder, (stream, &arguments), &mut signals).await;
        // Its standard input is closed by now: it ends by itself, in its own time.
        if let Some(mut child) = child {
            let status = child.wait().await?;
            if settled.is_ok() && !status.success() {
                return Err(format!("the other half ended with {status}").into());
            }
        }
        settled
    }

    /// Starts the half that keeps the other folder.
    fn other_half(arguments: &Arguments) -> Result<(Stream, Option<Child>), Failure> {
        let Some((program, rest)) = arguments.command.split_first() else {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            tokio::spawn(guest::serve(Box::new(theirs), guest::Options::default()));
            return Ok((Box::new(ours), None));
        };
        let mut child = Command::new(program)
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The terminal's interrupt is for this half, which ends the other one after a last cycle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or("a child without pipes")?;
        Ok((Box::new(join(output, input)), Some(child)))
    }

    async fn keep(
        folder: &Path,
        (stream, arguments): (Stream, &Arguments),
        signals: &mut [Signal; 2],
    ) -> Result<bool, Failure> {
        let session = Session::start(folder, Box::new(stream), arguments.options()?).await?;
        let mut events = session.events();
        print(session.initial());
        if arguments.once {
            return finish(session, events).await;
        }
        tell("both sides are the same from now on; SIGINT ends it");
        let [interrupt, terminate] = signals;
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                event = events.recv() => match event {
                    Ok(Event::Synchronized(report)) => print(&report),
                    Ok(Event::Halted(halt)) => tell(&format!(
                        "{halt}; end this and start it with --deletions"
                    )),
                    Ok(Event::Failed(reason)) => tell(&reason),
                    Ok(Event::Ended) | Err(RecvError::Closed) => return Err("it ended".into()),
                    Err(RecvError::Lagged(_)) | Ok(_) => {}
                },
            }
        }
        finish(session, events).await
    }

    /// Runs the last cycle and writes what was not written yet: its report, and that of a cycle that was under
    /// way when the end was asked for.
    async fn finish(session: Session, mut events: Receiver<Event>) -> Result<bool, Failure> {
        let last = session.stop().await;
        while let Ok(event) = events.recv().await {
            if let Event::Synchronized(report) = event {
                print(&report);
            }
        }
        Ok(last?.is_settled())
    }

    /// Writes what a cycle did, as long as somebody reads it.
    fn print(report: &Report) {
        let mut lines = String::new();
        for change in &report.to_guest {
            lines += &format!("> {}\n", change.path);
        }
        for change in &report.to_host {
            lines += &format!("< {}\n", change.path);
        }
        for (mark, more) in [('>', report.more_to_guest), ('<', report.more_to_host)] {
            if more > 0 {
                lines += &format!("{mark} and {more} more\n");
            }
        }
        for conflict in &report.conflicts {
            lines += &format!("! {}: {conflict}\n", conflict.path);
        }
        for held in &report.held {
            lines += &format!("! {}: held back\n", held.path);
        }
        for problem in &report.problems {
            lines += &format!("! {}: {}\n", problem.path, problem.text);
        }
        drop(std::io::stdout().write_all(lines.as_bytes()));
    }
}
