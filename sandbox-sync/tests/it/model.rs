//! Random work on both sides, checked against what must hold whatever was done (I1, I4, I5, I11).
//!
//! The model is small: what each side held before a cycle, and what it holds after. A file that was
//! changed since the last agreement must still be at its path on one of the sides; two settled sides are
//! equal; the next cycle does nothing. A stream that breaks after a random number of bytes stands for a
//! crash of the peer; the session that follows starts from what is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sandbox_sync::{Event, Report, Session, guest};
use tokio::io::duplex;

use crate::pair::{Pair, write};
use crate::stream::{End, Metered};

#[derive(Debug, Clone)]
enum Step {
    Write(bool, String, u8),
    Remove(bool, String),
    Folder(bool, String),
    Rename(bool, String, String),
    Executable(bool, String),
    Link(bool, String),
    Flush,
    Restart,
    /// A restart whose stream breaks after so many bytes.
    Break(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let path = || "[abc](/[abc]){0,2}";
    prop_oneof![
        6 => (any::<bool>(), path(), any::<u8>()).prop_map(|(s, p, c)| Step::Write(s, p, c)),
        3 => (any::<bool>(), path()).prop_map(|(s, p)| Step::Remove(s, p)),
        1 => (any::<bool>(), path()).prop_map(|(s, p)| Step::Folder(s, p)),
        2 => (any::<bool>(), path(), path()).prop_map(|(s, p, q)| Step::Rename(s, p, q)),
        1 => (any::<bool>(), path()).prop_map(|(s, p)| Step::Executable(s, p)),
        1 => (any::<bool>(), path()).prop_map(|(s, p)| Step::Link(s, p)),
        3 => Just(Step::Flush),
        1 => Just(Step::Restart),
        2 => (0usize..3000).prop_map(Step::Break),
    ]
}

/// Does what a step says, if the tree lets it.
fn work(pair: &Pair, step: &Step) -> io::Result<()> {
    let at = |host: &bool, path: &str| {
        if *host {
            pair.host(path)
        } else {
            pair.guest(path)
        }
    };
    match step {
        Step::Write(side, path, contents) => {
            let path = at(side, path);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, vec![*contents; usize::from(*contents) * 9])
        }
        Step::Remove(side, path) => {
            let path = at(side, path);
            fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))
        }
        Step::Folder(side, path) => fs::create_dir_all(at(side, path)),
        Step::Rename(side, from, to) => fs::rename(at(side, from), at(side, to)),
        Step::Executable(side, path) => {
            fs::set_permissions(at(side, path), PermissionsExt::from_mode(0o755))
        }
        Step::Link(side, path) => symlink("a", at(side, path)),
        Step::Flush | Step::Restart | Step::Break(_) => Ok(()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Folder,
    /// Length, what all its bytes are (`None` where they differ), executable.
    File(usize, Option<u8>, bool),
    Link(PathBuf),
}

type Snapshot = BTreeMap<PathBuf, Thing>;

fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path == root.join(".sandbox-sync-staging") {
                // What a session that broke had received waits there for the next one.
                continue;
            }
            let facts = fs::symlink_metadata(&path).unwrap();
            let thing = if facts.is_dir() {
                folders.push(path.clone());
                Thing::Folder
            } else if facts.is_symlink() {
                Thing::Link(fs::read_link(&path).unwrap())
            } else {
                let bytes = fs::read(&path).unwrap();
                let first = bytes.first().copied();
                let whole = first.filter(|first| bytes.iter().all(|byte| byte == first));
                Thing::File(bytes.len(), whole, facts.permissions().mode() & 0o100 != 0)
            };
            drop(found.insert(path.strip_prefix(root).unwrap().to_owned(), thing));
        }
    }
    found
}

/// What must hold between the sides before and after a cycle, finished or broken.
fn check(agreed: &Snapshot, before: [&Snapshot; 2], after: [&Snapshot; 2]) {
    for (path, thing) in before.into_iter().flatten() {
        let changed = *thing != Thing::Folder && agreed.get(path) != Some(thing);
        let kept = after.iter().any(|side| side.get(path) == Some(thing));
        assert!(!changed || kept, "{path:?} is lost: {before:#?} {after:#?}");
    }
    // I2: whatever is there was there on one of the sides, whole.
    for (path, thing) in after.into_iter().flatten() {
        let known = before.iter().any(|side| side.get(path) == Some(thing));
        assert!(known, "{path:?} is torn or in the way: {thing:?}");
    }
}

struct Model {
    pair: Pair,
    session: Option<Session>,
    agreed: Snapshot,
}

impl Model {
    fn sides(&self) -> [Snapshot; 2] {
        [
            snapshot(&self.pair.host("")),
            snapshot(&self.pair.guest("")),
        ]
    }

    async fn session(&mut self) -> Session {
        match self.session.take() {
            Some(session) => session,
            None => self.pair.start().await,
        }
    }

    async fn flush(&mut self) {
        let before = self.sides();
        let session = self.session().await;
        // A session that had to be started has run its first cycle already.
        let report = session.flush().await.unwrap();
        self.settle(&before, &report);
        let again = session.flush().await.unwrap();
        assert!(again.is_quiet(), "a second run does nothing: {again:#?}");
        self.session = Some(session);
    }

    fn settle(&mut self, before: &[Snapshot; 2], report: &Report) {
        let after = self.sides();
        check(&self.agreed, before.each_ref(), after.each_ref());
        assert!(report.problems.is_empty(), "{report:#?}");
        let [host, guest] = &after;
        if report.conflicts.is_empty() {
            assert_eq!(host, guest, "two settled sides are equal");
        }
        self.agreed = host
            .iter()
            .filter(|(path, thing)| guest.get(*path) == Some(thing))
            .map(|(path, thing)| (path.clone(), thing.clone()))
            .collect();
    }

    /// Runs a session over a stream that breaks; both halves have ended when this returns.
    async fn broken(&mut self, bytes: usize) {
        if let Some(session) = self.session.take() {
            let mut events = session.events();
            drop(session);
            while !matches!(events.recv().await, Ok(Event::Ended)) {}
        }
        let before = self.sides();
        let (ours, theirs) = duplex(4096);
        let guest = tokio::spawn(guest::serve(Box::new(theirs), guest::Options::default()));
        let stream = Box::new(Metered::new(ours, End::Breaks(bytes)));
        let started = Session::start(&self.pair.host(""), stream, self.pair.options()).await;
        if let Ok(session) = started {
            drop(session.stop().await);
        }
        drop(guest.await);
        let after = self.sides();
        check(&self.agreed, before.each_ref(), after.each_ref());
        // What both hold now counts as agreed, whether or not the base got to say so.
        let [host, guest] = after;
        let both = host
            .into_iter()
            .filter(|(path, thing)| guest.get(path) == Some(thing));
        self.agreed.extend(both);
    }
}

async fn run(steps: Vec<Step>) {
    let pair = Pair::new();
    write(pair.host("anchor/1"), "x");
    write(pair.host("anchor/2"), "x");
    let mut model = Model {
        pair,
        session: None,
        agreed: Snapshot::new(),
    };
    model.session = Some(model.pair.start().await);
    model.agreed = model.sides()[0].clone();
    for step in steps {
        match step {
            Step::Flush => model.flush().await,
            Step::Restart => {
                if let Some(session) = model.session.take() {
                    let before = model.sides();
                    let report = session.stop().await.unwrap();
                    model.settle(&before, &report);
                }
            }
            Step::Break(bytes) => model.broken(bytes).await,
            // A step that the tree does not let happen is no step.
            step => drop(work(&model.pair, &step)),
        }
    }
    model.flush().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SANDBOX_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
    ))]
    #[test]
    fn random_work_on_both_sides_loses_nothing(steps in prop::collection::vec(any_step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
