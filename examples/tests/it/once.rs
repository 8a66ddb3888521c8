//! `run --rm`: a command in a sandbox that is gone afterwards.

use std::fs;

use crate::support::{Place, note_microvm, write};

#[test]
fn a_command_runs_and_only_its_changes_stay() {
    let place = Place::new();
    let project = place.project();
    write(project.join("input"), "from outside\n");
    write(project.join("doomed"), "");
    let script = "pwd; cat input - >copy; cat copy; rm doomed; mkdir -p out; echo made >out/file; \
                  echo \"$GREETING\"; echo said >&2; exit 7";
    let arguments = [
        "run",
        "--rm",
        "--name",
        "once",
        "--env",
        "GREETING=hello there",
        "--cpus",
        "1",
        "--memory",
        "512m",
        "shell",
        ".",
        "--",
        "sh",
        "-c",
        script,
    ];
    let ended = place.run_with(&arguments, b"from a pipe\n").exited(7);
    note_microvm("a_command_runs_and_only_its_changes_stay");
    let expected = format!(
        "{}\nfrom outside\nfrom a pipe\nhello there\n",
        project.display()
    );
    assert_eq!(ended.stdout(), expected);
    assert!(ended.stderr().ends_with("said\n"), "{ended:?}");
    assert!(!ended.stdout().contains("said"));
    let copy = fs::read_to_string(project.join("copy")).unwrap();
    assert_eq!(copy, "from outside\nfrom a pipe\n");
    assert_eq!(
        fs::read_to_string(project.join("out/file")).unwrap(),
        "made\n"
    );
    assert!(!project.join("doomed").exists());
    place.assert_clean();
}

#[test]
fn a_command_that_is_not_there_is_127_and_nothing_stays() {
    let place = Place::new();
    let arguments = [
        "run",
        "--rm",
        "--no-workspace",
        "shell",
        "--",
        "no-such-program",
    ];
    let ended = place.run(&arguments).exited(127);
    note_microvm("a_command_that_is_not_there_is_127_and_nothing_stays");
    assert!(ended.stderr().contains("no-such-program"), "{ended:?}");
    place.assert_clean();
}
