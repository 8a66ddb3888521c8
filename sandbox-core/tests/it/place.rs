//! Where tests keep their sandboxes: state of their own, images and kernels shared.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox_core::{Command, Dirs, Sandbox, SandboxBuilder, Templates};

/// A temporary place for sandboxes.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) dirs: Dirs,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sb").tempdir().unwrap();
        let dirs = Dirs::beneath(folder.path()).with_cache(cache());
        Self { folder, dirs }
    }

    /// Begins a sandbox that starts a real microVM, and counts it: restored from a template, unless
    /// `SANDBOX_TEST_TEMPLATES` is `off`.
    pub(crate) fn microvm(&self) -> SandboxBuilder {
        count_microvm();
        let templates = match std::env::var_os("SANDBOX_TEST_TEMPLATES") {
            Some(value) if value == "off" => Templates::Off,
            _ => Templates::Use,
        };
        Sandbox::builder()
            .dirs(self.dirs.clone())
            .boot_patience(PATIENCE)
            .templates(templates)
    }

    /// A place that another process of this test made.
    pub(crate) fn beneath(folder: &Path) -> Dirs {
        Dirs::beneath(folder).with_cache(cache())
    }

    /// Returns the other processes that have to do with this place: the number and the command line.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let place = self.folder.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten();
            let has_file = files
                .flatten()
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|file| file.starts_with(place));
            if pid != std::process::id() && (has_file || line.contains(place)) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Returns the one process of this place whose command line has a word in it.
    pub(crate) fn process(&self, word: &str) -> u32 {
        let mut found = self.processes();
        found.retain(|(_, line)| line.contains(word));
        assert_eq!(found.len(), 1, "{word}: {found:?}");
        found[0].0
    }

    /// Returns what is left of sandboxes: processes, mounts, sockets, files.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let place = self.folder.path().to_str().unwrap();
        let mut left: Vec<String> = self
            .processes()
            .into_iter()
            .map(|(pid, line)| format!("process {pid}: {line}"))
            .collect();
        // Of sockets, those that listen: a connection of another handle goes with the process that holds
        // it, whose files the kernel closes one after the other.
        for (table, kind) in [
            ("/proc/self/mountinfo", ""),
            ("/proc/net/unix", " 00010000 "),
        ] {
            let text = fs::read_to_string(table).unwrap();
            let ours = text
                .lines()
                .filter(|line| line.contains(place) && line.contains(kind));
            left.extend(ours.map(|line| format!("{table}: {line}")));
        }
        for folder in [
            self.dirs.state.join("sandboxes"),
            self.dirs.runtime.clone(),
            self.temporary(),
        ] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                left.push(format!("file {}", entry.path().display()));
            }
        }
        left
    }

    /// A folder for temporary files of processes that this test starts.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Waits until nothing is left.
    pub(crate) async fn assert_empty(&self) {
        eventually("everything is gone", || {
            let left = self.leftovers();
            left.is_empty().then_some(()).ok_or(left)
        })
        .await;
    }

    /// Makes a folder with files, to be a workspace.
    pub(crate) fn project(&self, files: &[(&str, &str)]) -> PathBuf {
        let project = self.folder.path().join("project");
        for (name, text) in files {
            let path = project.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        project.canonicalize().unwrap()
    }
}

/// How long anything may take before it is said to hang.
const HANG: Duration = Duration::from_secs(30);

/// How long a boot may take: under emulation one in many hangs, and is tried again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until something is so; `Err` says what is so instead.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut is_so: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        match is_so() {
            Ok(value) => return value,
            Err(instead) if Instant::now() > deadline => panic!("not {what}: {instead:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits for what must not hang.
pub(crate) async fn promptly<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("it hangs")
}

/// Runs a shell script inside and returns its standard output, without the space around it.
pub(crate) async fn sh(sandbox: &Sandbox, script: &str) -> String {
    run(sandbox.command("sh").args(["-ec", script])).await
}

/// Runs a shell script inside as root, as [`sh`] does.
pub(crate) async fn root(sandbox: &Sandbox, script: &str) -> String {
    run(sandbox.command("sh").args(["-ec", script]).user("root")).await
}

async fn run(command: &mut Command<'_>) -> String {
    let output = promptly(command.output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Kills a process as the kernel does when memory runs out: it hears nothing of it.
pub(crate) fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Kernels and images take minutes to make and are the same for all tests.
pub(crate) fn cache() -> PathBuf {
    match std::env::var_os("SANDBOX_TEST_CACHE") {
        Some(cache) => cache.into(),
        None => std::env::temp_dir().join("sandbox-test-cache"),
    }
}

pub(crate) fn count_microvm() {
    if let Some(log) = std::env::var_os("SANDBOX_MICROVM_LOG") {
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        log.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
}

/// Returns the files below a folder, disks included, that have one of these texts in them.
pub(crate) fn files_with(folder: &Path, texts: &[&str]) -> String {
    let mut grep = std::process::Command::new("grep");
    // As lines that end with a zero: otherwise the holes of a disk are one line, and memory is as large.
    grep.args([
        "--recursive",
        "--files-with-matches",
        "--text",
        "--null-data",
    ])
    .arg("--fixed-strings");
    for text in texts {
        grep.args(["-e", text]);
    }
    let found = grep.arg(folder).output().unwrap();
    assert!(
        found.status.code().is_some_and(|code| code < 2),
        "{found:?}"
    );
    String::from_utf8(found.stdout).unwrap()
}
