//! A watched tree, looked at where it is dirty, against a whole scan of the same tree.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::replica::{Replica, Setup};
use crate::rules::{Lists, Rules};
use crate::scan::{Bounds, Place, Scanner};
use crate::tree::Tree;
use crate::watch::Watch;

/// A replica whose scans are as incremental as its watch lets them be.
struct Watched {
    folder: TempDir,
    watch: Arc<Watch>,
    replica: Replica,
}

const BOUNDS: Bounds = Bounds {
    entries: 1_000_000,
    file_bytes: 1 << 20,
};

fn rules() -> Arc<Rules> {
    Arc::new(Rules::new(&Lists::default().with_ignore("ignored")).unwrap())
}

impl Watched {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let folder = TempDir::new_in(parent).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let watch = Arc::new(Watch::start(&root));
        let setup = Setup {
            rules: rules(),
            bounds: BOUNDS,
            staging: None,
            owner: None,
            trusts_sender: false,
        };
        let mut replica = Replica::new(root, setup, watch.clone());
        replica.scan(false).unwrap();
        Self {
            folder,
            watch,
            replica,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn inner(&self) -> &Inner {
        &self.watch.events.as_ref().unwrap().inner
    }

    /// What is there, found without a watch.
    fn whole(&self) -> Tree {
        let root = Root::open(self.folder.path()).unwrap();
        let (rules, mut tree) = (&rules(), Arc::default());
        let place = Place {
            root: &root,
            rules,
            bounds: BOUNDS,
            made: &Tree::default(),
        };
        Scanner::default().scan(place, &mut tree).unwrap();
        Arc::unwrap_or_clone(tree)
    }

    /// Looks at what is dirty, and compares.
    #[track_caller]
    fn look(&mut self) {
        let before = self.replica.tree().clone();
        let changed = self.replica.scan(false).unwrap();
        let whole = self.whole();
        assert_eq!(**self.replica.tree(), whole, "something was missed");
        for (path, _) in before.changes_to(&whole) {
            assert!(changed.contains(path), "{path} changed and was not told");
        }
    }
}

#[test]
fn only_what_is_dirty_is_read_and_a_quiet_tree_is_not_read_at_all() {
    let mut watched = Watched::new();
    fs::create_dir_all(watched.at("a/b")).unwrap();
    fs::write(watched.at("a/b/c"), "1").unwrap();
    watched.look();
    assert_eq!(watched.watch.take(), Dirt::default());
    fs::write(watched.at("a/b/c"), "2").unwrap();
    fs::create_dir(watched.at("d")).unwrap();
    let path = |text: &str| RelPath::new(text).unwrap();
    let dirt = [(path("a/b/c"), Depth::Name), (path("d"), Depth::Beneath)];
    assert_eq!(watched.watch.take(), Dirt::Paths(dirt.into()));
}

#[test]
fn s22_an_overflow_of_the_queue_makes_everything_dirty() {
    let mut watched = Watched::new();
    fs::write(watched.at("a"), "").unwrap();
    fs::write(watched.at("b"), "").unwrap();
    watched.look();
    drop(watched.watch.renew());
    assert_eq!(watched.watch.renew(), Dirt::default());
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    {
        // Nobody reads the queue meanwhile. Equal events in a row count as one, so they take turns.
        let _state = watched.inner().state();
        for number in 0..=most / 2 {
            fs::write(watched.at(["a", "b"][number % 2]), [0]).unwrap();
        }
        fs::create_dir(watched.at("lost")).unwrap();
        fs::write(watched.at("lost/file"), "").unwrap();
    }
    assert_eq!(
        watched.watch.renew(),
        Dirt::Everything,
        "nor does a snapshot"
    );
    assert_eq!(watched.watch.take(), Dirt::Everything);
    watched.watch.lose();
    watched.look();
    // And from then on it is watched as before.
    fs::write(watched.at("lost/file"), "again").unwrap();
    watched.look();
}

#[test]
fn s22_a_folder_that_cannot_be_watched_makes_everything_dirty_each_time() {
    let watched = Watched::new();
    drop(watched.watch.take());
    watched.inner().state().blind = true;
    assert_eq!(watched.watch.take(), Dirt::Everything);
    assert_eq!(watched.watch.take(), Dirt::default(), "all were set again");
    let events = watched.watch.events.as_ref().unwrap();
    let deleted = tempfile::tempdir().unwrap();
    let file: OwnedFd = fs::File::create(deleted.path().join("file"))
        .unwrap()
        .into();
    events.add(&file, None);
    assert!(!events.vouch(), "no folder, so no watch");
}

/// The tree grows, moves and shrinks while it is looked at; in the end nothing is missing.
fn fills_while_it_is_found(folders: usize) {
    let mut watched = Watched::new();
    let root = watched.folder.path().to_owned();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..folders {
                let folder = root.join(format!("{}/{number}/x/y", number % 7));
                fs::create_dir_all(&folder).unwrap();
                for name in ["1", "2", "3"] {
                    fs::write(folder.join(name), name).unwrap();
                }
                if number % 3 == 0 {
                    let moved = root.join(format!("moved-{number}"));
                    fs::rename(folder.parent().unwrap(), &moved).unwrap();
                    fs::write(moved.join("y/4"), "4").unwrap();
                }
                if number % 50 == 0 {
                    fs::remove_dir_all(folder.ancestors().nth(2).unwrap()).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            watched.replica.scan(false).unwrap();
        }
    });
    watched.look();
}

#[test]
fn s23_nothing_is_missed_in_folders_that_fill_while_they_are_found() {
    fills_while_it_is_found(1_000);
}

/// 111,000 paths; minutes where processors are few.
#[test]
fn s23_nothing_is_missed_of_a_hundred_thousand_paths() {
    if std::env::var_os("SANDBOX_SLOW").is_some() {
        fills_while_it_is_found(18_500);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(String, u8),
    Append(String),
    Remove(String),
    Folder(String),
    Rename(String, String),
    Out(String),
    Executable(String),
    Link(String),
    Look,
    /// The kernel loses its queue, and says so.
    Lose,
}

fn any_step() -> impl Strategy<Value = Step> {
    let path = || "([abc]|ignored)(/[abc]){0,3}";
    prop_oneof![
        6 => (path(), any::<u8>()).prop_map(|(path, text)| Step::Write(path, text)),
        2 => path().prop_map(Step::Append),
        3 => path().prop_map(Step::Remove),
        2 => path().prop_map(Step::Folder),
        4 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => path().prop_map(Step::Out),
        1 => path().prop_map(Step::Executable),
        1 => path().prop_map(Step::Link),
        4 => Just(Step::Look),
        1 => Just(Step::Lose),
    ]
}

/// Does what a step says, if the tree lets it.
fn work(watched: &mut Watched, step: &Step) -> io::Result<()> {
    match step {
        Step::Write(path, text) => {
            let path = watched.at(path);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, [*text])
        }
        Step::Append(path) => {
            let mut file = fs::File::options().append(true).open(watched.at(path))?;
            io::Write::write_all(&mut file, b"more")
        }
        Step::Remove(path) => {
            let path = watched.at(path);
            fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))
        }
        Step::Folder(path) => fs::create_dir_all(watched.at(path)),
        Step::Rename(from, to) => fs::rename(watched.at(from), watched.at(to)),
        Step::Out(path) => {
            // Out of the root and in again, with something done to it in between.
            let outside = TempDir::new_in(watched.folder.path().parent().unwrap())?;
            let there = outside.path().join("x");
            fs::rename(watched.at(path), &there)?;
            if there.is_dir() {
                fs::write(there.join("outside"), "x")?;
            }
            fs::rename(there, watched.at(path))
        }
        Step::Executable(path) => {
            fs::set_permissions(watched.at(path), PermissionsExt::from_mode(0o755))
        }
        Step::Link(path) => symlink("a", watched.at(path)),
        Step::Look => {
            watched.look();
            Ok(())
        }
        Step::Lose => {
            let (mut state, _) = watched.inner().drain();
            state.dirt = Dirt::Everything;
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SANDBOX_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
    ))]
    #[test]
    fn i7_a_watched_tree_is_what_a_whole_scan_finds(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut watched = Watched::new();
        for step in &steps {
            // A step that the tree does not let happen is no step.
            drop(work(&mut watched, step));
        }
        watched.look();
    }
}
