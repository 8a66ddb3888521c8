//! Snapshots that are told what may have changed, against snapshots that read everything.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::folder::Node;
use super::super::load::load;
use super::*;
use crate::reconcile::Op;
use crate::replica::{Replica, Setup};
use crate::rules::Rules;
use crate::snapshot::{Options, Store, Taken};
use crate::tree::Entry;

thread_local! {
    /// How much later it is than it is, so that no file is too young to be known again.
    pub(in crate::snapshot) static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

const ENTRIES: usize = 1_000_000;

/// A watched folder and two stores: one whose snapshots know what may have changed, and one that is new for
/// each.
struct Watched {
    place: TempDir,
    replica: Replica,
    watch: Arc<Watch>,
    since: Since,
    options: Options,
    whole: usize,
}

impl Watched {
    fn new() -> Self {
        AHEAD.set(Duration::from_secs(3));
        let shm = Path::new("/dev/shm");
        let parent = match shm.is_dir() {
            true => shm.to_owned(),
            false => std::env::temp_dir(),
        };
        let place = TempDir::new_in(parent).unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        let root = Root::open(&place.path().join("root")).unwrap();
        let watch = Arc::new(Watch::start(&root));
        let lists = Lists::default().with_ignore("ignored");
        let setup = Setup {
            rules: Arc::new(Rules::new(&lists).unwrap()),
            bounds: Options::default().bounds(),
            staging: None,
            owner: None,
            trusts_sender: false,
        };
        let mut replica = Replica::new(root, setup, watch.clone());
        replica.scan(false).unwrap();
        let since = Since::new((replica.root().clone(), watch.clone()), &lists);
        Self {
            place,
            replica,
            watch,
            since,
            options: Options::default().with_lists(lists),
            whole: 0,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.place.path().join("root").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn store(&self) -> Store {
        Store::open(self.place.path().join("store")).unwrap()
    }

    fn take(&self) -> Taken {
        let space = self.store().space("one").unwrap();
        let place = (self.replica.root().path(), Some(&self.since));
        let taken = space.snapshot_since(place, None, &self.options).unwrap();
        // Longer than the step in which the kernel counts.
        std::thread::sleep(Duration::from_millis(12));
        taken
    }

    /// Takes one and compares it with one that reads everything.
    #[track_caller]
    fn compare(&mut self) -> Taken {
        let taken = self.take();
        self.whole += 1;
        let folder = self.place.path().join(format!("whole-{}", self.whole));
        let whole = Store::open(&folder).unwrap();
        let space = whole.space("one").unwrap();
        let root = self.replica.root().path();
        let other = space.snapshot_automatic(root, &self.options).unwrap();
        let counts = [&taken, &other].map(|taken| taken.snapshot.counts);
        assert_eq!(counts[0], counts[1]);
        assert_eq!(picture(&self.store(), &taken), picture(&whole, &other));
        fs::remove_dir_all(folder).unwrap();
        taken
    }

    /// Writes as a plan does that takes over what the guest did.
    fn own(&mut self, path: &str, from: &str) -> io::Result<()> {
        self.replica.scan(false)?;
        let path = RelPath::new(path).unwrap();
        let tree = self.replica.tree();
        let new = tree.entry(&RelPath::new(from).unwrap()).cloned();
        let ops = vec![Op {
            old: tree.entry(&path).cloned(),
            new: new.filter(|entry| matches!(entry, Entry::File { .. } | Entry::Directory)),
            path,
        }];
        self.replica.prepare(ops)?.apply().map(drop)
    }
}

/// What a snapshot has, without what its files are known by.
fn picture(store: &Store, taken: &Taken) -> Vec<(RelPath, String)> {
    let space = store.space("one").unwrap();
    let _lock = store.lock(false).unwrap();
    let tree = space.find(taken.snapshot.name.as_str()).unwrap().tree;
    let nodes = load(&store.packs, tree, ENTRIES).unwrap();
    let what = |node: Node| match node {
        Node::Folder { mode, beneath, .. } => format!("folder {mode:o} {:?}", beneath.counts),
        Node::File(file) => {
            let (digest, size, mode) = (file.digest, file.size, file.mode);
            format!("file {digest} {size} {mode:o} {:?}", file.modified)
        }
        other => format!("{other:?}"),
    };
    let nodes = nodes.into_iter();
    nodes.map(|(path, node)| (path, what(node))).collect()
}

#[test]
fn only_what_is_dirty_is_looked_at() {
    let mut watched = Watched::new();
    for number in 0..30 {
        watched.write(&format!("a/{}/f{number}", number % 3), "1");
    }
    watched.replica.scan(false).unwrap();
    assert_eq!(watched.take().read, 30);
    assert_eq!(watched.take().read, 0);
    watched.write("a/1/f1", "2");
    watched.write("b/new", "2");
    // Of what makes no event nothing is known: the look is no whole one.
    let other = watched.place.path().join("another-name");
    fs::hard_link(watched.at("a/0/f0"), &other).unwrap();
    fs::write(&other, "behind the watch").unwrap();
    let taken = watched.take();
    assert_eq!((taken.read, taken.snapshot.counts.files), (2, 31));
    // Until a whole scan finds it, as one does from time to time.
    watched.replica.scan(true).unwrap();
    assert_eq!(watched.compare().read, 1);
}

#[test]
fn s52_a_file_that_was_too_young_is_read_again_although_nothing_is_dirty() {
    let mut watched = Watched::new();
    watched.write("a/young", "1");
    watched.replica.scan(false).unwrap();
    AHEAD.set(Duration::ZERO);
    assert_eq!(watched.take().read, 1);
    AHEAD.set(Duration::from_secs(3));
    assert_eq!(watched.compare().read, 1);
    assert_eq!(watched.take().read, 0);
}

#[test]
fn i7_what_shakes_the_watch_has_everything_looked_at() {
    let mut watched = Watched::new();
    watched.write("a/b", "1");
    watched.replica.scan(false).unwrap();
    watched.take();
    let behind = |watched: &Watched, text: &str| {
        let other = watched.place.path().join("another-name");
        drop(fs::remove_file(&other));
        fs::hard_link(watched.at("a/b"), &other).unwrap();
        fs::write(&other, text).unwrap();
    };
    behind(&watched, "22");
    watched.watch.lose();
    assert_eq!(watched.compare().read, 1, "the watch was lost");
    // From here on it vouches again.
    watched.replica.scan(false).unwrap();
    watched.take();
    assert_ne!(watched.watch.renew(), Dirt::Everything);
    watched.take();

    behind(&watched, "333");
    let options = watched.options.clone();
    watched.options.limits.file_bytes -= 1;
    assert_eq!(watched.compare().read, 1, "other bounds");
    watched.options = options;
    watched.take();

    behind(&watched, "4444");
    watched.options.lists = watched.options.lists.with_ignore("more");
    assert_eq!(watched.compare().read, 1, "other rules");
    watched.options.lists.ignore.pop();
    watched.take();

    behind(&watched, "55555");
    let space = watched.store().space("one").unwrap();
    space.clear().unwrap();
    watched.store().collect().unwrap();
    assert_eq!(watched.compare().read, 1, "no such snapshot any more");

    behind(&watched, "666666");
    let space = watched.store().space("another").unwrap();
    let place = (watched.replica.root().path(), Some(&watched.since));
    let taken = space.snapshot_since(place, None, &watched.options).unwrap();
    assert_eq!(taken.read, 1, "another space");
}

#[test]
fn i7_what_no_scan_has_read_yet_is_not_watched_and_looked_at_each_time() {
    let mut watched = Watched::new();
    watched.take();
    fs::create_dir_all(watched.at("new/folder")).unwrap();
    watched.write("new/folder/a", "1");
    for text in ["22", "333", "4444"] {
        assert_eq!(watched.compare().snapshot.counts.files, 1);
        // The folder is in the snapshot before, and no event comes out of it.
        watched.write("new/folder/a", text);
    }
    watched.compare();
}

#[test]
fn i7_what_lies_in_a_folder_that_could_not_be_read_is_looked_at_each_time() {
    let mut watched = Watched::new();
    watched.write("a/b/c", "1");
    watched.replica.scan(false).unwrap();
    watched.take();
    // As a scan says it that had no descriptor left.
    watched.watch.shun(&RelPath::new("a/b").unwrap());
    watched.watch.forget(&RelPath::new("a/b").unwrap());
    for text in ["22", "333"] {
        watched.take();
        watched.write("a/b/c", text);
        assert_eq!(watched.compare().read, 1);
    }
}

#[test]
fn i7_an_ignored_folder_that_is_gone_is_not_in_the_next_snapshot() {
    let mut watched = Watched::new();
    fs::create_dir(watched.at("ignored")).unwrap();
    watched.replica.scan(false).unwrap();
    assert_eq!(watched.compare().snapshot.counts.untracked, 1);
    fs::remove_dir(watched.at("ignored")).unwrap();
    assert_eq!(watched.compare().snapshot.counts.untracked, 0);
}

#[test]
fn i15_what_is_hurt_is_stored_anew_although_nothing_is_dirty() {
    let mut watched = Watched::new();
    watched.write("a/b", "1");
    watched.replica.scan(false).unwrap();
    watched.take();
    // The file's contents alone: all listings can be read.
    for path in fs::read_dir(watched.place.path().join("store/packs")).unwrap() {
        let path = path.unwrap().path();
        let pack = super::super::pack::Pack::open(&path).unwrap();
        let at = pack.index.find(&Digest::of(b"1")).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[usize::try_from(at.offset).unwrap()] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(watched.store().verify().unwrap().hurt.len(), 1);
    assert_eq!(watched.compare().read, 1);
    assert_eq!(watched.store().verify().unwrap().hurt, []);
}

#[derive(Debug, Clone)]
enum Step {
    Write(String, u8),
    Append(String),
    Remove(String),
    Folder(String),
    Rename(String, String),
    Out(String),
    Mode(String, bool),
    Link(String),
    /// A plan's own write.
    Own(String, String),
    Scan,
    Thorough,
    Take,
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
        1 => (path(), any::<bool>()).prop_map(|(path, runs)| Step::Mode(path, runs)),
        1 => path().prop_map(Step::Link),
        2 => (path(), path()).prop_map(|(path, from)| Step::Own(path, from)),
        4 => Just(Step::Scan),
        1 => Just(Step::Thorough),
        5 => Just(Step::Take),
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
            let there = watched.place.path().join("out");
            fs::rename(watched.at(path), &there)?;
            if there.is_dir() {
                fs::write(there.join("outside"), "x")?;
            }
            fs::rename(there, watched.at(path))
        }
        Step::Mode(path, runs) => {
            let mode = if *runs { 0o755 } else { 0o700 };
            fs::set_permissions(watched.at(path), PermissionsExt::from_mode(mode))
        }
        Step::Link(path) => symlink("a", watched.at(path)),
        Step::Own(path, from) => watched.own(path, from),
        Step::Scan => watched.replica.scan(false).map(drop),
        Step::Thorough => watched.replica.scan(true).map(drop),
        Step::Take => {
            watched.compare();
            Ok(())
        }
        Step::Lose => {
            watched.watch.lose();
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SANDBOX_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(32)
    ))]
    #[test]
    fn i7_a_snapshot_with_hints_is_one_without(steps in prop::collection::vec(any_step(), 1..50)) {
        let mut watched = Watched::new();
        for step in &steps {
            // A step that the tree does not let happen is no step.
            drop(work(&mut watched, step));
        }
        watched.compare();
    }
}
