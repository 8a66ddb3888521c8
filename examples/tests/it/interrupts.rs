//! Signals to the tool: whatever it is doing, it ends, and nothing stays that was not to stay.

use std::fs;

use rustix::process::Signal;

use crate::support::{Place, Running, note_microvm, wait_until};

#[test]
fn ctrl_c_ends_the_command_brings_its_work_back_and_removes_the_sandbox() {
    let place = Place::new();
    let script = "echo done >result; echo up; sleep 1000";
    let arguments = [
        "run", "--rm", "--name", "once", "shell", ".", "--", "sh", "-c", script,
    ];
    let mut running = Running::start(&mut place.tool(&arguments));
    running.wait_for("up");
    note_microvm("ctrl_c_ends_the_command_brings_its_work_back_and_removes_the_sandbox");
    let listed = place.run(&["ls", "--json"]).exited(0).json();
    assert_eq!(listed[0]["lifetime"], "attached");
    running.signal(Signal::INT);
    running.end().exited(130);
    assert_eq!(
        fs::read_to_string(place.project().join("result")).unwrap(),
        "done\n"
    );
    place.assert_clean();
}

#[test]
fn a_signal_while_a_sandbox_is_made_leaves_nothing() {
    let place = Place::new();
    let record = |name: &str| place.path(&format!("state/sandbox/sandboxes/{name}/record.json"));

    let arguments = [
        "run",
        "--rm",
        "--name",
        "once",
        "--no-workspace",
        "shell",
        "--",
        "true",
    ];
    let running = Running::start(&mut place.tool(&arguments));
    wait_until("the sandbox to be begun", || record("once").exists());
    running.signal(Signal::HUP);
    running.end().exited(129);
    place.assert_clean();

    let arguments = ["create", "--name", "kept", "--no-workspace", "shell"];
    let running = Running::start(&mut place.tool(&arguments));
    wait_until("the sandbox to be begun", || record("kept").exists());
    running.signal(Signal::TERM);
    running.end().exited(143);
    note_microvm("a_signal_while_a_sandbox_is_made_leaves_nothing");
    place.assert_clean();
}
