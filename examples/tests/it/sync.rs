//! `sync`: two folders, and a folder and a child process; no microVM.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The bound on every wait.
const HANG: Duration = Duration::from_secs(30);

struct Folders {
    folder: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("one")).unwrap();
        Self { folder }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    fn command(&self, rest: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sync"));
        command
            .arg("--base")
            .arg(self.at("base"))
            .args(rest)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn one(&self) -> String {
        self.at("one").to_str().unwrap().to_owned()
    }

    fn two(&self) -> String {
        self.at("two").to_str().unwrap().to_owned()
    }

    fn once(&self, rest: &[&str]) -> Output {
        let (one, two) = (self.one(), self.two());
        let mut command = self.command(&[&one, &two, "--once"]);
        command.args(rest).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

/// Waits until a file holds a text.
fn wait(path: &Path, text: &str) {
    let begun = Instant::now();
    while !fs::read_to_string(path).is_ok_and(|found| found == text) {
        assert!(begun.elapsed() < HANG, "{path:?} did not become {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn two_folders_become_the_same_and_conflicts_are_told() {
    let folders = Folders::new();
    folders.write("one/a", "first");
    let done = folders.once(&[]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_eq!(text(&done), "> a\n");
    folders.write("two/b", "from there");
    let done = folders.once(&[]);
    assert_eq!(text(&done), "< b\n");
    folders.write("one/a", "here");
    folders.write("two/a", "there");
    let done = folders.once(&[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done).contains("! a: both sides changed it"));
    assert_eq!(fs::read_to_string(folders.at("one/a")).unwrap(), "here");
    assert_eq!(fs::read_to_string(folders.at("two/a")).unwrap(), "there");
}

#[test]
fn s19_an_emptied_folder_waits_for_an_answer() {
    let folders = Folders::new();
    folders.write("one/a", "1");
    folders.write("one/b", "2");
    assert!(folders.once(&[]).status.success());
    fs::remove_dir_all(folders.at("two")).unwrap();
    let halted = folders.once(&[]);
    assert_eq!(halted.status.code(), Some(1));
    assert!(text(&halted).contains("emptied"), "{}", text(&halted));
    assert!(folders.at("one/a").exists() && folders.at("one/b").exists());
    assert!(folders.once(&["--deletions", "restore"]).status.success());
    assert_eq!(fs::read_to_string(folders.at("two/b")).unwrap(), "2");
}

#[test]
fn what_runs_unasked_comes_back_only_from_a_trusted_folder() {
    let folders = Folders::new();
    folders.write("one/a", "1");
    assert!(folders.once(&[]).status.success());
    folders.write("two/.envrc", "echo run");
    assert!(text(&folders.once(&[])).contains("! .envrc: held back"));
    assert!(!folders.at("one/.envrc").exists());
    assert_eq!(text(&folders.once(&["--trusted"])), "< .envrc\n");
}

/// A running `sync` and its other half, which is a child of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_folder_and_a_child_stay_the_same_until_a_signal() {
    let folders = Folders::new();
    folders.write("one/a", "1");
    let (one, two) = (folders.one(), folders.two());
    // The first folder of the other half is its own choice, not that of whoever talks to it.
    let other = ["--", env!("CARGO_BIN_EXE_sync"), "--serve", &two];
    let mut command = folders.command(&[&one, "/nowhere/at/all"]);
    let mut running = Running(command.args(other).spawn().unwrap());
    wait(&folders.at("two/a"), "1");
    folders.write("one/a", "from the first");
    wait(&folders.at("two/a"), "from the first");
    folders.write("two/b", "from the second");
    wait(&folders.at("one/b"), "from the second");
    // What was written just before the signal goes with the last cycle.
    folders.write("two/c", "late");
    kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    wait(&folders.at("one/c"), "late");
    let mut told = String::new();
    let mut output = running.0.stdout.take().unwrap();
    output.read_to_string(&mut told).unwrap();
    assert!(told.contains("> a\n") && told.contains("< b\n"), "{told}");
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn a_child_that_is_no_half_is_an_error() {
    let folders = Folders::new();
    let one = folders.one();
    let mut command = folders.command(&[&one, "--once", "--", "false"]);
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done).starts_with("sync: "), "{}", text(&done));
}
