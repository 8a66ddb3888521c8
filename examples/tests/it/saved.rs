//! `sync snapshot`, `snapshot`, `fork` and `template`: workspaces and machines that are kept, on one sandbox.

use std::fs;
use std::path::Path;

use crate::support::{Place, note_microvm, write};

const NAME: &str = "lab";

/// What no other test has, so that the template is this test's alone in the cache that all share.
const MEMORY: u64 = 517;

#[test]
fn what_was_kept_comes_back_and_goes_when_it_is_told_to() {
    let place = Place::new();
    let project = place.project();
    write(project.join("a"), "one\n");
    drop_template(&place);
    let memory = MEMORY.to_string();
    place
        .run(&[
            "create",
            "--name",
            NAME,
            "--memory",
            &memory,
            "--snapshots",
            "shell",
        ])
        .exited(0);
    note_microvm("what_was_kept_comes_back_and_goes_when_it_is_told_to");
    templates_are_listed_and_removed(&place);

    let kept = place.run(&["sync", "snapshot", "create", NAME, "first"]);
    assert_eq!(kept.exited(0).stdout(), "first\n");
    place
        .run(&["sync", "snapshot", "create", NAME, "first"])
        .failed("first");
    let script = "echo two >a; echo >'n\u{1b}[31m'";
    place.run(&["exec", NAME, "sh", "-ec", script]).exited(0);
    assert_eq!(fs::read_to_string(project.join("a")).unwrap(), "two\n");
    let stat = place.run(&["sync", "snapshot", "diff", "--stat", NAME, "first"]);
    let stat = stat.exited(0).stdout();
    assert!(stat.contains("a") && !stat.contains('\u{1b}'), "{stat:?}");
    let diff = place.run(&["sync", "snapshot", "diff", NAME, "first"]);
    let diff = diff.exited(0).stdout();
    assert!(diff.contains("-one\n+two\n"), "{diff}");

    // Each command had one taken before it.
    let listed = place.run(&["sync", "snapshot", "ls", "--json", NAME]);
    let listed = listed.exited(0).json();
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["auto-000001", "first", "auto-000002"]);
    let sound = place.run(&["sync", "snapshot", "verify", NAME]);
    assert_eq!(sound.exited(0).stdout(), "");
    let listed = place.run(&["sync", "snapshot", "ls", NAME]).exited(0);
    assert!(listed.stdout().contains("1 files, 4 bytes"), "{listed:?}");

    let restored = place.run(&["sync", "snapshot", "restore", NAME, "first", "a"]);
    let here = project.display();
    assert_eq!(restored.exited(0).stdout(), format!("{here}/a\n"));
    assert_eq!(fs::read_to_string(project.join("a")).unwrap(), "one\n");
    assert_eq!(fs::read_dir(&project).unwrap().count(), 2);
    let inside = place.run(&["exec", NAME, "cat", "a"]).exited(0).stdout();
    assert_eq!(inside, "one\n");
    place
        .run(&["sync", "snapshot", "rm", NAME, "first"])
        .exited(0);
    place
        .run(&["sync", "snapshot", "restore", NAME, "first"])
        .failed("first");
    a_sandbox_goes_back(&place);
    copies_are_made_and_one_is_taken(&place, &project);
    place.run(&["rm", "-f", NAME]).exited(0);
    place.assert_clean();
}

fn a_sandbox_goes_back(place: &Place) {
    let exec = |script: &str| place.run(&["exec", NAME, "sh", "-ec", script]).exited(0);
    exec("echo then >~/mark");
    let taken = place.run(&["snapshot", "create", NAME, "whole"]).exited(0);
    assert!(taken.stdout().starts_with("whole  "), "{taken:?}");
    place
        .run(&["snapshot", "create", NAME, "whole"])
        .failed("whole");
    exec("echo now >~/mark");
    place.run(&["restore", NAME, "nothing"]).failed("nothing");
    place
        .run(&["restore", "--workspaces", NAME, "whole"])
        .exited(0);
    assert_eq!(exec("cat ~/mark").stdout(), "then\n");
    let listed = place
        .run(&["snapshot", "ls", "--json", NAME])
        .exited(0)
        .json();
    assert_eq!(listed[0]["name"], "whole");
    place.run(&["snapshot", "rm", NAME, "whole"]).exited(0);
    let listed = place.run(&["snapshot", "ls", NAME]).exited(0);
    assert_eq!(listed.stdout(), "");
}

fn copies_are_made_and_one_is_taken(place: &Place, project: &Path) {
    let copies = place.run(&["fork", "-n", "2", NAME]).exited(0).stdout();
    assert_eq!(copies, "lab-1\nlab-2\n");
    place.run(&["fork", NAME, "lab-1"]).failed("lab-1");
    place.run(&["fork", "-n", "2", NAME, "lab-3"]).exited(125);
    place.run(&["fork", "nothing"]).failed("nothing");
    for copy in ["lab-1", "lab-2"] {
        note_microvm("what_was_kept_comes_back_and_goes_when_it_is_told_to");
        let work = format!("cat ~/mark; echo {copy} >chosen");
        let said = place.run(&["exec", copy, "sh", "-ec", &work]).exited(0);
        assert_eq!(said.stdout(), "then\n");
    }
    assert!(!project.join("chosen").exists());
    let diff = place.run(&["diff", "lab-2"]).exited(0).stdout();
    assert!(diff.contains("+lab-2\n"), "{diff}");
    place.run(&["apply", "lab-2"]).exited(0);
    let chosen = fs::read_to_string(project.join("chosen"));
    assert_eq!(chosen.unwrap(), "lab-2\n");
    place.run(&["rm", "-f", "lab-1", "lab-2"]).exited(0);
    let inside = place.run(&["exec", NAME, "cat", "chosen"]).exited(0);
    assert_eq!(inside.stdout(), "lab-2\n");
}

/// Returns the name of this test's template.
fn template(place: &Place) -> Option<String> {
    let listed = place.run(&["template", "ls", "--json"]).exited(0).json();
    let ours = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|template| template["key"]["memory_mib"] == MEMORY);
    ours.map(|template| template["name"].as_str().unwrap().to_owned())
}

/// What an earlier run may have left.
fn drop_template(place: &Place) {
    if let Some(name) = template(place) {
        place.run(&["template", "rm", &name]).exited(0);
    }
}

fn templates_are_listed_and_removed(place: &Place) {
    let name = template(place).expect("the machine was saved");
    let listed = place.run(&["template", "ls"]).exited(0).stdout();
    let line = listed.lines().find(|line| line.starts_with(&name[..12]));
    assert!(line.unwrap().contains("517 MiB"), "{listed}");
    let removed = place.run(&["template", "rm", &name]).exited(0).stdout();
    assert_eq!(removed, format!("{name}\n"));
    assert_eq!(template(place), None);
    place.run(&["template", "rm", &name]).failed(&name);
    // Its machine goes on without it.
    place.run(&["exec", NAME, "true"]).exited(0);
}
