//! `diff`, `apply`, `discard` and `sync`, on one sandbox whose workspace waits for review.

use std::fs;

use crate::support::{Place, note_microvm, write};
use crate::terminal::Terminal;

const NAME: &str = "lab";

#[test]
fn what_is_done_inside_is_reviewed_from_outside() {
    let place = Place::new();
    let project = place.project();
    write(project.join("a"), "one\n");
    write(project.join("b"), "two\n");
    write(project.join("token.secret"), "hidden\n");
    place
        .run(&["run", "--rm", "--mode", "review", "shell", "--", "true"])
        .failed("--rm");
    place
        .run(&[
            "create", "--name", NAME, "--mode", "review", "--mask", "*.secret", "--ignore",
            "target", "shell",
        ])
        .exited(0);
    note_microvm("what_is_done_inside_is_reviewed_from_outside");
    let script = "test ! -e token.secret; echo 1 >a; rm b; echo 'x\u{1b}[31m' >n; mkdir target; echo >target/t; \
                  echo '{}' >.mcp.json";
    place.run(&["exec", NAME, "sh", "-ec", script]).exited(0);

    it_is_shown(&place);
    let status = place.run(&["sync", "status", NAME]).exited(0).stdout();
    let said = "  review  in step, 3 waiting for review, 1 held\n";
    assert_eq!(status, format!("{}{said}", project.display()));

    place
        .run(&["apply", NAME, "no-such"])
        .failed("find no-such");
    let applied = place.run(&["apply", NAME, "a", "n"]).exited(0).stdout();
    let here = project.display();
    assert_eq!(applied, format!("{here}/a\n{here}/n\n"));
    assert_eq!(fs::read_to_string(project.join("a")).unwrap(), "1\n");
    assert!(project.join("b").exists());
    place.run(&["apply", "--undo", NAME]).exited(0);
    assert_eq!(fs::read_to_string(project.join("a")).unwrap(), "one\n");
    assert!(!project.join("n").exists());
    place
        .run(&["apply", "--undo", NAME])
        .failed("nothing was applied");

    // All of it, but for what would run here.
    let applied = place.run(&["apply", NAME]).exited(0);
    assert!(
        applied.stderr().contains(".mcp.json is left out"),
        "{applied:?}"
    );
    assert!(!project.join("b").exists() && !project.join(".mcp.json").exists());
    assert!(!project.join("target").exists());
    place.run(&["discard", NAME, "."]).exited(0);
    place
        .run(&["exec", NAME, "test", "!", "-e", ".mcp.json"])
        .exited(0);
    assert_eq!(place.run(&["diff", NAME]).exited(0).stdout(), "");

    place.run(&["sync", "pause", NAME]).exited(0);
    let status = place
        .run(&["sync", "status", "--json", NAME])
        .exited(0)
        .json();
    assert_eq!(
        (&status[0]["paused"], &status[0]["mode"]),
        (&true.into(), &"review".into())
    );
    write(project.join("late"), "late\n");
    place
        .run(&["exec", NAME, "test", "!", "-e", "late"])
        .exited(0);
    place.run(&["sync", "resume", NAME]).exited(0);
    place.run(&["exec", NAME, "test", "-e", "late"]).exited(0);
    place.run(&["sync", "flush", NAME]).exited(0);
    write(project.join("late"), "here\n");
    place.run(&["sync", "conflicts", NAME]).exited(0);
    it_is_paged_for_a_person(&place);
    place.run(&["rm", "-f", NAME]).exited(0);
    place.assert_clean();
}

/// A long difference goes through the pager where there is a terminal, one that the guest cannot speak to; without
/// a terminal, or without that pager, it is printed.
fn it_is_paged_for_a_person(place: &Place) {
    let script = "seq 40 >long; printf '\\033[2Jevil\\n' >>long; echo >short";
    place.run(&["exec", NAME, "sh", "-ec", script]).exited(0);
    let shown = |pager: &str, path: &str, last: &str| {
        let terminal = Terminal::open(40, 100);
        let mut command = place.tool(&["diff", NAME, path]);
        command.env("PAGER", pager).env("TERM", "xterm");
        let status = command.stdout(terminal.end()).status().unwrap();
        assert!(status.success());
        terminal.wait_for(last);
        terminal
    };
    let paged = shown("sed s/^/paged:/", "long", "evil");
    assert!(paged.shows("paged:") && paged.shows("\\u{1b}[2Jevil"));
    assert!(
        !paged.shows("\u{1b}[2J"),
        "the guest speaks to the terminal"
    );
    assert!(!shown("sed s/^/paged:/", "short", "@@").shows("paged:"));
    assert!(shown("no-such-pager", "long", "evil").shows("+40"));
    // One that has seen enough is no failure.
    shown("head -n 1", "long", "long");
    let mut piped = place.tool(&["diff", NAME, "long"]);
    let piped = piped.env("PAGER", "sed s/^/paged:/").output().unwrap();
    let piped = String::from_utf8(piped.stdout).unwrap();
    assert!(
        piped.contains("\n+40\n") && !piped.contains("paged:"),
        "{piped}"
    );
}

fn it_is_shown(place: &Place) {
    let stat = place.run(&["diff", "--stat", NAME]).exited(0).stdout();
    let expected = "A .mcp.json  +1 -0  ! would run here without being asked\n\
                    M a  +1 -1\nD b  +0 -1\nA n  +1 -0\n\
                    4 changed, 3 lines added, 2 removed\n";
    assert_eq!(stat, expected);
    let patch = place.run(&["diff", NAME, "a", "n"]).exited(0).stdout();
    let expected = "diff a/a b/a\n--- a/a\n+++ b/a\n@@ -1,1 +1,1 @@\n-one\n+1\n\
                    diff a/n b/n\nnew file\n--- /dev/null\n+++ b/n\n@@ -0,0 +1,1 @@\n+x\\u{1b}[31m\n";
    assert_eq!(patch, expected, "no colours, and none of the guest's");
    let json = place.run(&["diff", "--json", NAME]).exited(0).json();
    let changes = json[0]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 4);
    assert_eq!(changes[0]["marks"], serde_json::json!(["runs-unasked"]));
    assert_eq!(
        (&changes[1]["kind"], &changes[2]["kind"]),
        (&"changed".into(), &"removed".into())
    );
    assert_eq!(changes[1]["host"]["size"], 4);
}
