//! Programs of the host that this crate asks for help: `apt-get`, `dpkg-deb`, `mmdebstrap`, `mke2fs`.
//!
//! They are started without a shell, with a fixed locale, and in a process group of their own, so that a
//! caller who goes away ends them with all their children. A missing program is a typed error that names
//! the package to install.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandbox_base::ErrorKind;

use crate::Error;

/// Longest part of a program's error output that is kept for an error message.
const KEPT_DIAGNOSTICS: usize = 2000;
/// How long a program that was asked to end may clean up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs blocking work on the runtime's blocking threads. Dropping the future cancels the work: it stops at
/// its next step, and the program that it waits for is asked to end.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce(&Cancel) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let cancel = Cancel::default();
    let guard = CancelOnDrop(cancel.clone());
    let result = tokio::task::spawn_blocking(move || work(&cancel)).await;
    drop(guard);
    result.unwrap_or_else(|error| Err(Error::new(ErrorKind::Io, operation).with_source(error)))
}

/// Tells blocking work that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<State>);

#[derive(Debug, Default)]
struct State {
    requested: AtomicBool,
    child: Mutex<Option<Child>>,
}

impl Cancel {
    /// Answers an error of kind `Disconnected` once the caller has gone away.
    pub(crate) fn check(&self, operation: &str) -> Result<(), Error> {
        if self.0.requested.load(Ordering::Relaxed) {
            let error = Error::new(ErrorKind::Disconnected, operation);
            return Err(error.with_detail("the caller went away"));
        }
        Ok(())
    }

    fn request(&self) {
        self.0.requested.store(true, Ordering::Relaxed);
        if let Some(child) = self.child().as_mut() {
            signal(child, Signal::Terminate);
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// A program of the host, and the package of the distribution that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What a program that ended said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// The end of what it wrote to its error output.
    pub(crate) diagnostics: String,
    /// What came of consuming its standard output.
    pub(crate) consumed: Result<(), Error>,
}

/// The distribution's package downloader.
pub(crate) const APT_GET: Tool = Tool {
    program: "apt-get",
    package: "apt",
};

impl Tool {
    /// Returns a command for the program, with a fixed locale and no input. System administration
    /// programs are found even if the caller's path has no `sbin` folders.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new(self.find());
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end and returns its standard output, at most `limit` bytes of it.
    pub(crate) fn output(
        self,
        command: &mut Command,
        limit: u64,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, Error> {
        let mut output = Vec::new();
        let finished = self.stream(command, cancel, |stdout| {
            stdout
                .take(limit)
                .read_to_end(&mut output)
                .map(drop)
                .map_err(|error| self.failed(error))
        })?;
        self.expect_success(finished.status, &finished.diagnostics)?;
        Ok(output)
    }

    /// Runs a command, giving its standard output to `consume` as it comes, and waits for its end. When
    /// `consume` fails, that failure is the answer and the program is ended.
    pub(crate) fn stream(
        self,
        command: &mut Command,
        cancel: &Cancel,
        consume: impl FnOnce(&mut dyn Read) -> Result<(), Error>,
    ) -> Result<Finished, Error> {
        let mut finished = self.stream_with(command, cancel, consume, |_| {})?;
        std::mem::replace(&mut finished.consumed, Ok(()))?;
        Ok(finished)
    }

    /// As [`Self::stream`], gives each line of the error output to `on_line`, and leaves it to the caller
    /// to decide which of two failures is the cause of the other.
    pub(crate) fn stream_with(
        self,
        command: &mut Command,
        cancel: &Cancel,
        consume: impl FnOnce(&mut dyn Read) -> Result<(), Error>,
        on_line: impl FnMut(&str) + Send,
    ) -> Result<Finished, Error> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        tracing::debug!(?command, "starting a program");
        let mut child = command.spawn().map_err(|error| self.failed(error))?;
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        *cancel.child() = Some(child);
        let (consumed, status, diagnostics) = std::thread::scope(|scope| {
            let diagnostics = scope.spawn(move || stderr.map(|s| read_lines(s, on_line)));
            let consumed = stdout.map_or(Ok(()), |mut stdout| consume(&mut stdout));
            let status = wait(cancel, consumed.is_err());
            (
                consumed,
                status,
                diagnostics.join().ok().flatten().unwrap_or_default(),
            )
        });
        cancel.check(&format!("run {}", self.program))?;
        let status = status.map_err(|error| self.failed(error))?;
        Ok(Finished {
            status,
            diagnostics,
            consumed,
        })
    }

    /// Turns an unsuccessful end into an error that carries what the program said.
    pub(crate) fn expect_success(self, status: ExitStatus, diagnostics: &str) -> Result<(), Error> {
        if status.success() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, format!("run {}", self.program))
            .with_detail(format!("{status}: {}", diagnostics.trim())))
    }

    fn failed(self, error: io::Error) -> Error {
        let operation = format!("run {}", self.program);
        if error.kind() == io::ErrorKind::NotFound {
            return Error::new(ErrorKind::NotFound, operation).with_detail(format!(
                "it is missing; install the package {}",
                self.package
            ));
        }
        Error::io(operation, error)
    }

    fn find(self) -> PathBuf {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .map(|folder| Path::new(folder).join(self.program))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from(self.program))
    }
}

/// Waits for the end of the program, which is asked to end when `unwanted` or when the caller has gone, and
/// killed when it does not.
///
/// Polls, because the child must stay unreaped (and so its number its own) while a canceller may signal it.
fn wait(cancel: &Cancel, unwanted: bool) -> io::Result<ExitStatus> {
    let mut asked = None;
    loop {
        let mut slot = cancel.child();
        let Some(child) = slot.as_mut() else {
            return Err(io::Error::other("the child was taken"));
        };
        if let Some(status) = child.try_wait()? {
            *slot = None;
            return Ok(status);
        }
        if unwanted || cancel.0.requested.load(Ordering::Relaxed) {
            let since = asked.get_or_insert_with(|| {
                signal(child, Signal::Terminate);
                Instant::now()
            });
            if since.elapsed() > PATIENCE {
                signal(child, Signal::Kill);
            }
        }
        drop(slot);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Terminate,
    Kill,
}

/// Signals a child that was not reaped yet, and its whole group.
#[cfg(unix)]
fn signal(child: &mut Child, signal: Signal) {
    let signal = match signal {
        Signal::Terminate => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
    };
    let number = i32::try_from(child.id()).ok();
    if let Some(group) = number.and_then(rustix::process::Pid::from_raw) {
        // Gone already is as good.
        let _gone = rustix::process::kill_process_group(group, signal);
    }
}

#[cfg(not(unix))]
fn signal(child: &mut Child, _: Signal) {
    // Gone already is as good.
    drop(child.kill());
}

fn read_lines(stream: impl Read, mut on_line: impl FnMut(&str)) -> String {
    let mut kept = String::new();
    let mut reader = io::BufReader::new(stream);
    let mut line = Vec::new();
    while read_line(&mut reader, &mut line) {
        let text = String::from_utf8_lossy(&line);
        on_line(text.trim_end());
        kept.push_str(&text);
        if kept.len() > 2 * KEPT_DIAGNOSTICS {
            let cut = kept.ceil_char_boundary(kept.len() - KEPT_DIAGNOSTICS);
            kept.drain(..cut);
        }
    }
    kept
}

fn read_line(reader: &mut impl io::BufRead, line: &mut Vec<u8>) -> bool {
    line.clear();
    let bounded = &mut Read::take(reader, KEPT_DIAGNOSTICS as u64);
    matches!(io::BufRead::read_until(bounded, b'\n', line), Ok(1..))
}

/// Returns an `option=value` argument for the programs of apt.
pub(crate) fn apt_option(name: &str, value: impl AsRef<OsStr>) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("-o");
    option.push(name);
    option.push("=");
    option.push(value);
    option
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const SHELL: Tool = Tool {
        program: "sh",
        package: "dash",
    };

    #[test]
    fn a_missing_program_names_its_package() {
        let tool = Tool {
            program: "no-such-program-here",
            package: "such",
        };
        let error = tool
            .output(&mut tool.command(), 10, &Cancel::default())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.to_string().contains("install the package such"),
            "{error}"
        );
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let mut command = SHELL.command();
        command.args(["-c", "echo because >&2; exit 3"]);
        let error = SHELL
            .output(&mut command, 10, &Cancel::default())
            .unwrap_err();
        assert!(error.to_string().contains("because"), "{error}");
    }

    #[test]
    fn a_dropped_future_ends_the_program_and_its_children() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (started, wait_started) = std::sync::mpsc::channel();
        let (ended, wait_ended) = std::sync::mpsc::channel();
        runtime.block_on(async {
            let work = tokio::spawn(blocking("test", move |cancel| {
                let mut command = SHELL.command();
                command.args(["-c", "echo up; sleep 600 & wait"]);
                let result = SHELL.stream(&mut command, cancel, |out| {
                    let mut first = [0];
                    out.read_exact(&mut first).unwrap();
                    started.send(()).unwrap();
                    out.read_to_end(&mut Vec::new()).unwrap();
                    Ok(())
                });
                ended.send(result.map(drop)).unwrap();
                Ok(())
            }));
            tokio::task::spawn_blocking(move || wait_started.recv().unwrap())
                .await
                .unwrap();
            work.abort();
            drop(work.await);
        });
        let result = wait_ended.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Disconnected);
    }
}
