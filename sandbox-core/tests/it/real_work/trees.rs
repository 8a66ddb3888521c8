//! The trees: sources of real programs, fetched once by name, and a repository with a history.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::place::cache;

/// Brings the source of a Debian package, by its name.
pub(crate) fn source(package: &str, to: &Path) {
    let kept = cache().join("sources").join(package);
    if !kept.exists() {
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        let fetched = tempfile::tempdir_in(kept.parent().unwrap()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/fetch-example");
        let into = fetched.path().join(package);
        run(Command::new(script).arg(&into).arg(package));
        // Another test may have been faster.
        if fs::rename(&into, &kept).is_err() {
            assert!(kept.exists());
        }
    }
    run(Command::new("cp").arg("-aT").arg(&kept).arg(to));
}

/// Makes a repository with so many commits on `main`, of which all but the last few are packed, and
/// branches along the way.
pub(crate) fn repository(to: &Path, commits: usize) {
    fs::create_dir_all(to).unwrap();
    git(to, &["init", "--quiet", "--initial-branch=main"]);
    for (name, value) in [("user.name", "Somebody"), ("user.email", "some@body.test")] {
        git(to, &["config", name, value]);
    }
    git(to, &["config", "gc.auto", "0"]);
    let mut import = Command::new("git");
    import.args(["fast-import", "--quiet"]).current_dir(to);
    let mut import = import.stdin(Stdio::piped()).spawn().unwrap();
    let mut stream = import.stdin.take().unwrap();
    stream.write_all(&history(commits)).unwrap();
    drop(stream);
    assert!(import.wait().unwrap().success());
    git(to, &["reset", "--quiet", "--hard", "main"]);
    fs::write(to.join(".git/info/exclude"), "/notes/\n").unwrap();
    for number in 0..20 {
        let path = to.join(format!("loose/{number}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("loose {number}\n")).unwrap();
        git(to, &["add", "loose"]);
        git(to, &["commit", "--quiet", "-m", "loose"]);
    }
}

/// Returns a stream for `git fast-import`: each commit changes three of sixty files, each fiftieth begins a
/// branch.
fn history(commits: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    for commit in 1..=commits {
        let at = 1_700_000_000 + commit * 60;
        let message = format!("change {commit}");
        let from = match commit {
            1 => String::new(),
            _ => format!("from :{}\n", commit - 1),
        };
        let head = format!(
            "commit refs/heads/main\nmark :{commit}\ncommitter Somebody <some@body.test> {at} +0000\n\
             data {}\n{message}\n{from}",
            message.len()
        );
        stream.extend(head.bytes());
        for file in 0..3 {
            let number = (commit * 7 + file * 11) % 60;
            let lines = (0..number + 5).map(|line| format!("{number} {line} {}\n", commit * line));
            let text: String = lines.collect();
            let path = format!("src/part-{}/file-{number}", number % 7);
            stream.extend(format!("M 100644 inline {path}\ndata {}\n{text}\n", text.len()).bytes());
        }
        if commit % 50 == 0 {
            let branch = format!("reset refs/heads/earlier-{commit}\nfrom :{commit}\n\n");
            stream.extend(branch.bytes());
        }
    }
    stream
}

pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
    run(Command::new("git").args(arguments).current_dir(folder))
}

/// Returns what a program says that has to end well.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
