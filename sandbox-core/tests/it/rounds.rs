//! The host's process is killed at random moments, and nothing is left.
//!
//! Each round runs this test binary once more as a process that makes sandboxes, uses and removes them,
//! one after the other, and kills it. Many rounds end before a machine has booted, which is where most
//! of the moments are. `SANDBOX_CASES` raises the number of rounds.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use sandbox_core::{Dirs, Sandbox, State};

use crate::place::{Place, eventually};

/// Names the folder of the parent's place to the process that is to be killed.
const PLACE: &str = "SANDBOX_ROUNDS_PLACE";

/// Whether that process makes detached sandboxes.
const DETACHED: &str = "SANDBOX_ROUNDS_DETACHED";

const ROUNDS: u64 = 20;

/// The latest moment of a kill: a life with a boot takes about that long.
const LATEST_MS: u64 = 4000;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_process_that_is_killed_at_any_moment() {
    let place = Place::new();
    std::fs::create_dir(place.temporary()).unwrap();
    let groups = control_groups();
    let rounds = std::env::var("SANDBOX_CASES").map_or(ROUNDS, |cases| cases.parse().unwrap());
    let mut random = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    println!("seed {random}");
    for round in 0..rounds {
        let detached = round % 4 == 3;
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let delay = Duration::from_millis((random >> 33) % LATEST_MS);
        println!("round {round}: detached {detached}, killed after {delay:?}");
        let mut child = start(&place, detached);
        tokio::time::sleep(delay).await;
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        if detached {
            remove_what_runs(&place).await;
        } else {
            // Right at once, while the watchdog may still be at work.
            let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
            assert!(listed.is_empty(), "{listed:?}");
        }
        let processes = || {
            let left = place.processes();
            left.is_empty().then_some(()).ok_or(left)
        };
        eventually("all processes are gone", processes).await;
        let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
        assert!(listed.is_empty(), "{listed:?}");
        assert_eq!(place.leftovers(), [""; 0]);
        assert_eq!(control_groups(), groups);
    }
}

/// A detached sandbox is there or not, as its creator came to tell its supervisor or not; what is there
/// can be removed.
async fn remove_what_runs(place: &Place) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
        if listed.is_empty() && place.processes().is_empty() {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{listed:?}: {:?}",
            place.leftovers()
        );
        for one in listed.iter().filter(|one| one.state != State::Creating) {
            // Its supervisor may be about to give it up.
            if let Ok(sandbox) = Sandbox::connect_in(place.dirs.clone(), &one.name).await {
                drop(sandbox.remove().await);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn start(place: &Place, detached: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "rounds::lives_until_it_is_killed", "--ignored"])
        .env(PLACE, place.folder.path())
        .env("TMPDIR", place.temporary())
        .env("SANDBOX_TEST_CACHE", &place.dirs.cache)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if detached {
        command.env(DETACHED, "yes");
    }
    command.spawn().unwrap()
}

/// What is killed. Run by itself it is one life, and its end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is what the rounds run and kill"]
async fn lives_until_it_is_killed() {
    match std::env::var_os(PLACE) {
        None => {
            let place = Place::new();
            live(&place.dirs, false).await;
            assert_eq!(place.leftovers(), [""; 0]);
        }
        Some(folder) => loop {
            let detached = std::env::var_os(DETACHED).is_some();
            live(&Place::beneath(Path::new(&folder)), detached).await;
        },
    }
}

async fn live(dirs: &Dirs, detached: bool) {
    crate::place::count_microvm();
    let mut builder = Sandbox::builder().dirs(dirs.clone()).name("life");
    if detached {
        builder = builder.detached();
    }
    let sandbox = builder.create().await.unwrap();
    for _ in 0..3 {
        let mut command = sandbox.command("sh");
        command.args(["-c", "echo x >> ~/x; cat ~/x"]);
        assert!(command.output().await.unwrap().status.success());
    }
    sandbox.remove().await.unwrap();
}

/// Returns the control groups beneath this process's own.
fn control_groups() -> Vec<String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut found = Vec::new();
    for line in own.lines() {
        let path = line.rsplit(':').next().unwrap().trim_start_matches('/');
        let folder = Path::new("/sys/fs/cgroup").join(path);
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found.sort();
    found
}
