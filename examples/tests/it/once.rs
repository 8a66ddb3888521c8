//! `run --rm`: a command in a sandbox that is gone afterwards.

use std::fs;

use crate::support::{Place, Running, note_microvm, wait_until, write};

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

#[test]
fn what_is_left_to_a_person_is_told() {
    let place = Place::new();
    let project = place.project();
    write(project.join(".envrc"), "of both\n");
    let script = "mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; echo inside > .envrc; \
                  touch ready; until [ -e go-on ]; do sleep 0.1; done";
    let arguments = ["run", "--rm", "shell", ".", "--", "sh", "-c", script];
    let running = Running::start(&mut place.tool(&arguments));
    wait_until("the command to be half-way", || {
        project.join("ready").exists()
    });
    write(project.join(".envrc"), "outside\n");
    write(project.join("go-on"), "");
    let ended = running.end().exited(0);
    note_microvm("what_is_left_to_a_person_is_told");
    let said = ended.stderr();
    let about = |path: &str| said.lines().find(|line| line.contains(path));
    for path in ["/.envrc", "/.git/hooks/pre-commit"] {
        let line = about(path).unwrap_or_default();
        assert!(line.contains("stays inside"), "{path}: {said}");
    }
    let kept = fs::read_to_string(project.join(".envrc")).unwrap();
    assert_eq!(kept, "outside\n");
    assert!(!project.join(".git/hooks/pre-commit").exists());
    place.assert_clean();
}

#[test]
fn a_command_that_empties_its_workspace_empties_nothing_here() {
    let place = Place::new();
    let project = place.project();
    write(project.join("a"), "kept\n");
    write(project.join("b"), "kept\n");
    let arguments = ["run", "--rm", "shell", ".", "--", "rm", "a", "b"];
    let ended = place.run(&arguments).failed("emptied in the guest");
    note_microvm("a_command_that_empties_its_workspace_empties_nothing_here");
    assert_eq!(ended.stdout(), "");
    for name in ["a", "b"] {
        let text = fs::read_to_string(project.join(name)).unwrap();
        assert_eq!(text, "kept\n");
    }
    place.assert_clean();
}
