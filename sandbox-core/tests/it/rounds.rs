//! The host's process is killed at random moments, and nothing is left.
//!
//! Each round runs this test binary once more as a process that makes sandboxes, uses, saves, copies and removes them,
//! one after the other, and kills it. Others kill the supervisor of a sandbox that is being saved, taken back and
//! copied, which must still be there with all it had. `SANDBOX_CASES` raises the number of rounds.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use sandbox_core::{Dirs, Error, ErrorKind, Outside, Sandbox, State, Workspace};

use crate::place::{Place, eventually, kill, promptly, sh};

/// Names the folder of the parent's place to the process that is to be killed.
const PLACE: &str = "SANDBOX_ROUNDS_PLACE";

/// Whether that process makes detached sandboxes.
const DETACHED: &str = "SANDBOX_ROUNDS_DETACHED";

const ROUNDS: u64 = 20;

/// The latest moment of a kill: a life with a boot takes about that long.
const LATEST_MS: u64 = 4000;

const SAVING_ROUNDS: u64 = 6;

/// As long as it takes to be saved, taken back and copied.
const LATEST_SAVING_MS: u64 = 2500;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_process_that_is_killed_at_any_moment() {
    let place = Place::new();
    std::fs::create_dir(place.temporary()).unwrap();
    let groups = control_groups();
    let mut moments = Moments::new();
    println!("seed {}", moments.0);
    for round in 0..rounds(ROUNDS) {
        let detached = round % 4 == 3;
        let delay = moments.before(LATEST_MS);
        println!("round {round}: detached {detached}, killed after {delay:?}");
        let mut child = start(&place, detached);
        tokio::time::sleep(delay).await;
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        if detached {
            remove_what_runs(&place).await;
        } else {
            // While the watchdog may still be at work. A child that the process was about to start may hold its files
            // for a moment longer than the process itself.
            let deadline = Instant::now() + Duration::from_secs(1);
            while let listed @ [_, ..] = &Sandbox::list_in(place.dirs.clone()).await.unwrap()[..] {
                assert!(Instant::now() < deadline, "{listed:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
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

/// Random moments, the same ones for the same seed.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self(now.unwrap().as_nanos() as u64)
    }

    fn before(&mut self, latest_ms: u64) -> Duration {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1);
        Duration::from_millis((self.0 >> 33) % latest_ms)
    }
}

fn rounds(usual: u64) -> u64 {
    std::env::var("SANDBOX_CASES").map_or(usual, |cases| cases.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_supervisor_is_killed_at_any_moment_is_whole() {
    let place = Place::new();
    let project = place.project(&[("outside", "0")]);
    let builder = place.microvm().name("kept").detached();
    let created = builder.workspace(Workspace::sync(&project)).create().await;
    let sandbox = created.unwrap();
    sh(&sandbox, "echo first >~/mark; sync").await;
    sandbox.snapshot("first").await.unwrap();
    sh(&sandbox, "echo later >~/mark; sync").await;
    let mut moments = Moments::new();
    println!("seed {}", moments.0);
    for round in 0..rounds(SAVING_ROUNDS) {
        let delay = moments.before(LATEST_SAVING_MS);
        println!("round {round}: killed after {delay:?}");
        let supervisor = place.process("supervisor");
        let killed = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            kill(supervisor);
        });
        // As far as it comes.
        let came = save_and_go_back(&sandbox, round).await;
        assert!(came.is_ok() || killed.is_finished(), "{came:?}");
        killed.await.unwrap();
        what_is_left_is_whole(&place, &sandbox, round).await;
        let kept = std::fs::read_to_string(project.join("outside")).unwrap();
        assert_eq!(kept, "0");
    }
    for one in Sandbox::list_in(place.dirs.clone()).await.unwrap() {
        let one = Sandbox::connect_in(place.dirs.clone(), one.name).await;
        promptly(one.unwrap().remove()).await.unwrap();
    }
    place.assert_empty().await;
}

async fn save_and_go_back(sandbox: &Sandbox, round: u64) -> Result<(), Error> {
    sandbox.snapshot(&format!("round-{round}")).await?;
    sandbox.rollback("first", Outside::Keep).await?;
    sandbox.fork_named([format!("copy-{round}")]).await?;
    sandbox.rollback("first", Outside::Restore).await?;
    sandbox.pause().await?;
    sandbox.resume().await
}

/// It starts from its disk as it was before or after; each snapshot that is listed can be gone back to.
async fn what_is_left_is_whole(place: &Place, sandbox: &Sandbox, round: u64) {
    let stopped = async || {
        let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
        let kept = listed.iter().find(|one| one.name == "kept");
        kept.expect("it is not lost").state == State::Stopped
    };
    while !stopped().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    promptly(sandbox.start()).await.unwrap();
    let mark = sh(sandbox, "cat ~/mark").await;
    assert!(["first", "later"].contains(&mark.as_str()), "{mark:?}");
    let snapshots = sandbox.snapshots().await.unwrap();
    assert!(snapshots.iter().any(|one| one.name == "first"));
    for one in snapshots {
        promptly(sandbox.rollback(&one.name, Outside::Restore))
            .await
            .unwrap();
        let mark = sh(sandbox, "cat ~/mark").await;
        assert!(["first", "later"].contains(&mark.as_str()), "{mark:?}");
        if one.name != "first" {
            sandbox.remove_snapshot(&one.name).await.unwrap();
        }
    }
    // A copy is one that was made, or was never there.
    let copy = format!("copy-{round}");
    match Sandbox::connect_in(place.dirs.clone(), &copy).await {
        Ok(copy) => {
            if copy.describe().await.unwrap().state == State::Running {
                assert_eq!(sh(&copy, "cat ~/mark").await, "first");
            }
            promptly(copy.remove()).await.unwrap();
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
    }
}

/// A detached sandbox is there or not, as its creator came to tell its supervisor or not; what is there
/// can be removed.
async fn remove_what_runs(place: &Place) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let listed = Sandbox::list_in(place.dirs.clone()).await.unwrap();
        if listed.is_empty() && place.processes().is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
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
    sandbox.snapshot("then").await.unwrap();
    let copies = sandbox.fork(2).await.unwrap();
    for copy in copies {
        copy.remove().await.unwrap();
    }
    sandbox.rollback("then", Outside::Keep).await.unwrap();
    sandbox.pause().await.unwrap();
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
