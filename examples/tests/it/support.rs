//! A place of its own for each test: home, state, sockets and a project, beside a cache that all share.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// When something hangs: the first test on an empty cache waits for a kernel and an image.
const HANG: Duration = Duration::from_secs(900);

/// How long clean-up by the watchdog may take.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// The folders of one test.
#[derive(Debug)]
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        // Short, because sockets' paths are.
        let folder = tempfile::Builder::new().prefix("sb").tempdir().unwrap();
        let cache = test_cache();
        fs::create_dir_all(&cache).unwrap();
        for name in ["home", "cache", "state", "run", "project"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink(cache, folder.path().join("cache/sandbox")).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// The folder that the tool is started in.
    pub(crate) fn project(&self) -> PathBuf {
        self.path("project")
    }

    /// Gives a program this place and nothing else of the environment.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm")
            .env("HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.project())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn tool(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_sandbox"));
        command.args(arguments);
        command
    }

    /// Runs the tool to its end.
    pub(crate) fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Ended {
        self.run_with(arguments, b"")
    }

    /// Runs the tool to its end, with an input.
    pub(crate) fn run_with(&self, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Ended {
        let mut command = self.tool(arguments);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut running = Running::start(&mut command);
        if let Some(mut stdin) = running.child.stdin.take() {
            // What does not read it to its end is judged by what it does.
            drop(stdin.write_all(input));
        }
        running.end()
    }

    /// Asserts that no process, file or socket of a sandbox is left.
    pub(crate) fn assert_clean(&self) {
        let began = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < CLEAN_UP, "left behind: {left:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn left(&self) -> Vec<String> {
        let folders = ["state/sandbox/sandboxes", "run/sandbox"];
        let entries = folders
            .iter()
            .filter_map(|folder| fs::read_dir(self.path(folder)).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.path()));
        let mut left: Vec<String> = entries.map(|path| path.display().to_string()).collect();
        let ours = self.path("").display().to_string();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&ours) {
                left.push(line);
            }
        }
        left
    }
}

impl Drop for Place {
    /// A test that failed leaves no machine behind either.
    fn drop(&mut self) {
        if self.path("state/sandbox/sandboxes").exists() {
            drop(self.tool(&["rm", "-f", "--all"]).output());
        }
    }
}

fn test_cache() -> PathBuf {
    let stable = || {
        // Of whoever began a test in a user namespace, where everybody is root.
        let user = std::env::var("SANDBOX_TEST_INSIDE");
        let user = user.unwrap_or_else(|_| getuid().as_raw().to_string());
        std::env::temp_dir().join(format!("sandbox-test-cache-{user}"))
    };
    std::env::var_os("SANDBOX_TEST_CACHE").map_or_else(stable, PathBuf::from)
}

/// Notes that a test ran in a real microVM.
pub(crate) fn note_microvm(test: &str) {
    if let Some(path) = std::env::var_os("SANDBOX_MICROVM_LOG") {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        log.write_all(format!("examples: {test}\n").as_bytes())
            .unwrap();
    }
}

/// A tool that runs. Its output is read all the time, so that it never waits for its reader.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: Reader,
    stderr: Reader,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = Reader::start(child.stdout.take());
        let stderr = Reader::start(child.stderr.take());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Waits until its standard output has this in it.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let child = &mut self.child;
        let stdout = &self.stdout;
        wait_until(&format!("{text:?} to be printed"), || {
            let printed = stdout.so_far().contains(text);
            let ended = child.try_wait().unwrap();
            assert!(printed || ended.is_none(), "ended with {ended:?}");
            printed
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let mut status = None;
        wait_until("the tool to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let output = Output {
            status: status.unwrap(),
            stdout: self.stdout.rest(),
            stderr: self.stderr.rest(),
        };
        Ended(output)
    }
}

#[derive(Debug)]
struct Reader {
    bytes: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(from: Option<impl Read + Send + 'static>) -> Self {
        let bytes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let thread = from.map(|mut from| {
            let bytes = bytes.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    bytes.lock().unwrap().extend(&buffer[..count]);
                }
            })
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn rest(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.bytes.lock().unwrap())
    }
}

/// Waits for something that is bound to happen.
pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < HANG, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a run of the tool left.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Output);

impl Ended {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.0.stdout).unwrap()
    }

    /// Asserts an exit status.
    #[track_caller]
    pub(crate) fn exited(self, status: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(status), "{self:#?}");
        self
    }

    /// Asserts that the tool failed, and said why in one line of its own.
    #[track_caller]
    pub(crate) fn failed(self, reason: &str) -> Self {
        let ended = self.exited(125);
        let said = ended.stderr();
        let mut own = said
            .lines()
            .filter(|line| line.starts_with("sandbox: cannot "));
        let line = own.next().unwrap_or_default();
        assert!(line.contains(reason), "{said:?} does not say {reason:?}");
        assert_eq!(own.next(), None, "{said:?} is more than a line");
        ended
    }
}

/// Writes a file of a project.
pub(crate) fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(path, text).unwrap();
}
