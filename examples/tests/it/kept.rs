//! One sandbox that is kept, and everything that is done to it from other processes.

use std::fs;
use std::io::{BufRead, BufReader};

use rustix::process::Signal;

use crate::support::{Place, Running, note_microvm, write};

const NAME: &str = "lab";

#[test]
fn a_kept_sandbox_serves_many_commands() {
    let place = Place::new();
    let created = place
        .run(&["create", "--name", NAME, "shell", "."])
        .exited(0);
    note_microvm("a_kept_sandbox_serves_many_commands");
    assert_eq!(created.stdout(), "lab\n");

    exec_sets_up_what_it_is_told(&place);
    exec_says_how_a_command_ended(&place);
    streams_carry_bytes(&place);
    a_reader_that_goes_away_ends_the_command(&place);
    a_signal_ends_the_command_and_not_the_sandbox(&place);
    a_name_is_taken_once(&place);
    files_are_copied_both_ways(&place);
    let following = rules_are_set_and_what_they_did_is_logged(&place);
    it_is_listed(&place, "running");
    it_is_stopped_and_started_again(&place);

    place
        .run(&["rm", NAME])
        .failed("it runs; stop it first, or use -f");
    assert_eq!(
        place.run(&["rm", "-f", "--all"]).exited(0).stdout(),
        "lab\n"
    );
    // There is nothing to follow any more.
    following.end().exited(0);
    assert_eq!(place.run(&["ls", "--json"]).exited(0).stdout(), "[]\n");
    place.assert_clean();
}

fn exec_sets_up_what_it_is_told(place: &Place) {
    let project = place.project().display().to_string();
    assert_eq!(
        place.run(&["exec", NAME, "pwd"]).exited(0).stdout(),
        format!("{project}\n")
    );
    let script = "pwd; id -un; echo $A-$B; test -t 0 || echo no terminal";
    let arguments = [
        "exec", "-e", "A=1", "-e", "B=x y", "-w", "/usr/lib", "-u", "root", NAME, "sh", "-c",
        script,
    ];
    let ended = place.run(&arguments).exited(0);
    assert_eq!(ended.stdout(), "/usr/lib\nroot\n1-x y\nno terminal\n");
    let sized = place.run(&["exec", "-t", NAME, "stty", "size"]).exited(0);
    assert_eq!(sized.stdout(), "24 80\r\n");
    place
        .run_with(&["exec", "-it", NAME, "true"], b"x")
        .failed("standard input is not a terminal");
}

fn exec_says_how_a_command_ended(place: &Place) {
    place.run(&["exec", NAME, "false"]).exited(1);
    place.run(&["exec", NAME, "sh", "-c", "exit 42"]).exited(42);
    place
        .run(&["exec", NAME, "sh", "-c", "kill -TERM $$"])
        .exited(143);
    place.run(&["exec", NAME, "no-such-program"]).exited(127);
    place.run(&["exec", NAME, "/etc/passwd"]).exited(126);
    let late = place
        .run(&["exec", "--timeout", "1s", NAME, "sleep", "1000"])
        .exited(124);
    assert!(late.stderr().contains("time ran out"), "{late:?}");
    // A process that is left behind holds the streams, but not the tool.
    let left = place
        .run(&["exec", NAME, "sh", "-c", "sleep 1000 & echo started"])
        .exited(0);
    assert_eq!(left.stdout(), "started\n");
}

fn streams_carry_bytes(place: &Place) {
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    let ended = place
        .run_with(&["exec", "-i", NAME, "cat"], &bytes)
        .exited(0);
    assert!(
        ended.0.stdout == bytes,
        "{} bytes came back",
        ended.0.stdout.len()
    );
    // Without -i there is nothing to read.
    let silent = place.run_with(&["exec", NAME, "cat"], &bytes).exited(0);
    assert_eq!(silent.stdout(), "");
}

fn a_reader_that_goes_away_ends_the_command(place: &Place) {
    let mut running = place.tool(&["exec", NAME, "yes"]).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(running.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    drop(stdout);
    assert_eq!(running.wait().unwrap().code(), Some(141));
    place.run(&["exec", NAME, "pgrep", "-x", "yes"]).exited(1);
}

fn a_signal_ends_the_command_and_not_the_sandbox(place: &Place) {
    let script = "echo up; exec sleep 4321";
    let mut running = Running::start(&mut place.tool(&["exec", NAME, "sh", "-c", script]));
    running.wait_for("up");
    running.signal(Signal::TERM);
    running.end().exited(143);
    place
        .run(&["exec", NAME, "pgrep", "-f", "sleep 4321"])
        .exited(1);
}

fn a_name_is_taken_once(place: &Place) {
    place
        .run(&["create", "--name", NAME, "shell"])
        .failed("the name is taken");
    place
        .run(&["run", "--rm", "--name", NAME, "shell", "--", "true"])
        .failed("the name is taken");
    place
        .run(&["run", "--name", NAME, "--cpus", "7", "shell", "--", "true"])
        .failed("--cpus");
}

fn files_are_copied_both_ways(place: &Place) {
    let here = place.path("here");
    fs::create_dir_all(here.join("deep")).unwrap();
    write(here.join("deep/file"), "copied\n");
    let here = here.to_str().unwrap();
    place.run(&["cp", here, "lab:/tmp"]).exited(0);
    place
        .run(&["cp", &format!("{here}/deep/file"), "lab:/tmp/renamed"])
        .exited(0);
    let ended = place
        .run(&["exec", NAME, "cat", "/tmp/here/deep/file", "/tmp/renamed"])
        .exited(0);
    assert_eq!(ended.stdout(), "copied\ncopied\n");

    let there = place.path("there").display().to_string();
    place.run(&["cp", "lab:/tmp/here", &there]).exited(0);
    assert_eq!(
        fs::read_to_string(format!("{there}/deep/file")).unwrap(),
        "copied\n"
    );
    place.run(&["cp", "lab:/tmp/renamed", &there]).exited(0);
    assert_eq!(
        fs::read_to_string(format!("{there}/renamed")).unwrap(),
        "copied\n"
    );
    place
        .run(&["cp", "lab:/tmp/nothing", &there])
        .failed("/tmp/nothing");
}

/// Returns one who follows the log.
fn rules_are_set_and_what_they_did_is_logged(place: &Place) -> Running {
    let follow = &["network", "log", NAME, "--follow", "--blocked"];
    let mut following = Running::start(&mut place.tool(follow));
    let mut interrupted = Running::start(&mut place.tool(follow));
    let proxy = |arguments: &[&str]| {
        place
            .run(&[&["network", "proxy", NAME], arguments].concat())
            .exited(0)
            .stdout()
    };
    assert_eq!(proxy(&[]), "policy  deny\n");
    assert_eq!(
        proxy(&["--allow-host", "1.1.1.1"]),
        "policy  deny\nallow   1.1.1.1\n"
    );
    place.run(&["network", "check", NAME, "1.1.1.1"]).exited(0);
    let written = place.run(&["network", "rules", NAME]).exited(0).stdout();
    assert!(
        written.contains("mode = \"deny\"") && written.contains("\"1.1.1.1\""),
        "{written}"
    );
    assert_eq!(
        proxy(&["--policy", "allow", "--block-host", "10.0.0.0/8"]),
        "policy  allow\nblock   10.0.0.0/8\n"
    );
    place
        .run(&["network", "check", NAME, "http://10.1.2.3"])
        .exited(1);
    place
        .run(&["network", "check", "--policy", "deny", NAME, "1.1.1.1"])
        .exited(1);

    let script = "import urllib.request as u\n\
                  try: u.urlopen('http://10.1.2.3/secret')\n\
                  except Exception as e: print(e)";
    let asked = place
        .run(&["exec", NAME, "python3", "-c", script])
        .exited(0);
    assert!(asked.stdout().contains("403"), "{asked:?}");
    let log = place.run(&["network", "log", NAME]).exited(0).stdout();
    assert!(log.contains("  deny    GET 10.1.2.3:80/secret"), "{log}");
    let log = place
        .run(&["network", "log", "--json", NAME])
        .exited(0)
        .stdout();
    let event: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(event["verdict"], "deny");
    assert_eq!(event["host"], "10.1.2.3");
    assert_eq!(event["sandbox"], NAME);
    for running in [&mut following, &mut interrupted] {
        running.wait_for("  deny    GET 10.1.2.3:80/secret");
    }
    interrupted.signal(Signal::INT);
    interrupted.end().exited(130);
    rules_are_added_live(place);
    following
}

fn rules_are_added_live(place: &Place) {
    let network = |arguments: &[&str]| {
        let ended = place.run(&[&["network"], arguments].concat());
        ended.exited(0).stdout()
    };
    let before = "policy  allow\nblock   10.0.0.0/8\n";
    assert_eq!(network(&["block", NAME, "10.0.0.0/8"]), before);
    let after = "policy  allow\nallow   a.test\nallow   *.b.test:8443\nblock   10.0.0.0/8\n";
    assert_eq!(network(&["allow", NAME, "a.test", "*.b.test:8443"]), after);
    assert_eq!(network(&["allow", NAME, "A.test."]), after);
    let after = format!("{after}block   127.9.9.9\n");
    assert_eq!(network(&["block", NAME, "127.9.9.9"]), after);
    let script = "import urllib.request as u\n\
                  try: u.urlopen('http://127.9.9.9/')\n\
                  except Exception as e: print(e.read())";
    let asked = place.run(&["exec", NAME, "python3", "-c", script]);
    assert!(asked.exited(0).stdout().contains("block 127.9.9.9"));
    place.run(&["network", "allow", NAME, "*"]).failed("*");
    assert_eq!(network(&["proxy", NAME]), after);
}

fn it_is_listed(place: &Place, state: &str) {
    let listed = place.run(&["ls", "--json"]).exited(0).json();
    let project = place.project();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["name"], NAME);
    assert_eq!(listed[0]["state"], state);
    assert_eq!(listed[0]["lifetime"], "detached");
    assert_eq!(
        listed[0]["workspaces"][0]["host"],
        project.to_str().unwrap()
    );
    let text = place.run(&["ls"]).exited(0).stdout();
    let line = text.lines().nth(1).unwrap();
    assert!(line.starts_with(&format!("lab   {state}")), "{text}");
}

fn it_is_stopped_and_started_again(place: &Place) {
    place
        .run(&["exec", NAME, "sh", "-c", "echo kept >~/note"])
        .exited(0);
    assert_eq!(place.run(&["pause", NAME]).exited(0).stdout(), "lab\n");
    it_is_listed(place, "paused");
    place.run(&["exec", NAME, "true"]).failed("resume it first");
    assert_eq!(place.run(&["resume", NAME]).exited(0).stdout(), "lab\n");
    it_is_listed(place, "running");
    // `run` has it go on as well.
    place.run(&["pause", NAME]).exited(0);
    let again = ["run", "--name", NAME, "shell", "--", "true"];
    place.run(&again).exited(0);
    it_is_listed(place, "running");
    assert_eq!(place.run(&["stop", NAME]).exited(0).stdout(), "lab\n");
    it_is_listed(place, "stopped");
    place.run(&["exec", NAME, "true"]).failed("it does not run");
    // `run` without a command and without a terminal is a shell that reads its input.
    let arguments = ["run", "--name", NAME, "shell"];
    let ended = place
        .run_with(&arguments, b"cat ~/note; pwd; echo late >out; exit 5")
        .exited(5);
    note_microvm("it_is_stopped_and_started_again");
    assert_eq!(
        ended.stdout(),
        format!("kept\n{}\n", place.project().display())
    );
    assert_eq!(
        fs::read_to_string(place.project().join("out")).unwrap(),
        "late\n"
    );
    it_is_listed(place, "running");
}
