//! Stores on a disk: what is taken comes back, and what is damaged does not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::review::Kind;

/// A store and a folder, removed in the end.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let place = tempfile::Builder::new()
            .prefix("snapshot-test-")
            .tempdir_in(parent)
            .unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        Self(place)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn store(&self) -> Store {
        Store::open(self.0.path().join("store")).unwrap()
    }

    fn space(&self) -> Space {
        self.store().space("one").unwrap()
    }

    fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.root().join(path)).unwrap()
    }

    fn take(&self, name: &str) -> Taken {
        self.space()
            .snapshot(&self.root(), name, &Options::default())
            .unwrap()
    }

    fn restore(&self, name: &str, patterns: &[&str]) -> Restored {
        let restored = self
            .space()
            .restore(&self.root(), (name, patterns), &Options::default());
        restored.unwrap()
    }

    /// Makes all files as old as a file has to be to be known again by its facts.
    fn wait(&self) {
        std::thread::sleep(std::time::Duration::from_millis(2_100));
    }

    fn packs(&self) -> Vec<PathBuf> {
        let packs = fs::read_dir(self.0.path().join("store/packs")).unwrap();
        packs.map(|pack| pack.unwrap().path()).collect()
    }
}

/// How many cases a property is tried with: so many, or what `SANDBOX_CASES` says for a longer run.
fn cases(usual: u32) -> u32 {
    let wanted = std::env::var("SANDBOX_CASES").ok();
    wanted.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// What is in a folder: contents or link targets, permissions, and times of files.
fn picture(root: &Path) -> BTreeMap<PathBuf, (String, u32, i64)> {
    let mut picture = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(folder) = rest.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_symlink() {
                (format!("link to {:?}", fs::read_link(&path).unwrap()), 0, 0)
            } else if meta.is_dir() {
                rest.push(path.clone());
                ("folder".into(), meta.mode(), 0)
            } else {
                let digest = crate::tree::Digest::of(&fs::read(&path).unwrap());
                (digest.to_string(), meta.mode(), meta.mtime())
            };
            picture.insert(path.strip_prefix(root).unwrap().to_owned(), what);
        }
    }
    picture
}

/// A change of a tree; paths are few, so that they meet.
#[derive(Debug, Clone)]
enum Step {
    Write(u8, Vec<u8>, bool),
    Long(u8, u64),
    Folder(u8),
    Link(u8, u8),
    Remove(u8),
}

fn path(number: u8) -> String {
    let names = [
        "a",
        "b",
        "c/d",
        "c/e",
        "c/f/g",
        "h",
        "h/i",
        "c",
        "c/f",
        "\u{e4} \n",
    ];
    names[usize::from(number) % names.len()].into()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..50), any::<bool>())
            .prop_map(|(path, bytes, runs)| Step::Write(path, bytes, runs)),
        1 => (any::<u8>(), any::<u64>()).prop_map(|(path, seed)| Step::Long(path, seed)),
        2 => any::<u8>().prop_map(Step::Folder),
        1 => any::<(u8, u8)>().prop_map(|(path, target)| Step::Link(path, target)),
        2 => any::<u8>().prop_map(Step::Remove),
    ]
}

fn carry_out(root: &Path, step: &Step) {
    let (Step::Write(number, ..)
    | Step::Long(number, _)
    | Step::Folder(number)
    | Step::Link(number, _)
    | Step::Remove(number)) = step;
    let path = root.join(path(*number));
    let is_folder = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
    // What cannot be (a file in the place of a folder above it) is left out.
    let removed = if is_folder {
        fs::remove_dir_all(&path)
    } else {
        fs::remove_file(&path)
    };
    drop(removed);
    drop(fs::create_dir_all(path.parent().unwrap()));
    match step {
        Step::Write(_, bytes, runs) => {
            if fs::write(&path, bytes).is_ok() {
                let mode = if *runs { 0o750 } else { 0o640 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        Step::Long(_, seed) => drop(fs::write(&path, long(*seed, 300_000))),
        Step::Folder(_) => drop(fs::create_dir_all(&path)),
        Step::Link(_, target) => drop(symlink(self::path(*target).replace('/', "_"), &path)),
        Step::Remove(_) => {}
    }
}

fn long(seed: u64, length: usize) -> Vec<u8> {
    let mut word = seed | 1;
    let next = |_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    (0..length / 8).flat_map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(12)))]
    #[test]
    fn i15_what_was_taken_is_what_is_restored(
        before in prop::collection::vec(step(), 0..12),
        after in prop::collection::vec(step(), 0..12),
    ) {
        let place = Place::new();
        for step in &before {
            carry_out(&place.root(), step);
        }
        let taken = picture(&place.root());
        place.take("taken");
        for step in &after {
            carry_out(&place.root(), step);
        }
        let changed = picture(&place.root());
        let restored = place.restore("taken", &[]);
        prop_assert_eq!(restored.refused, []);
        // A file that was there keeps its mode; one whose contents are the same, its time.
        let same = |one: &BTreeMap<PathBuf, (String, u32, i64)>, other: &BTreeMap<PathBuf, (String, u32, i64)>| {
            let plain = |(path, what): (&PathBuf, &(String, u32, i64))| (path.clone(), what.0.clone(), what.1 & 0o100);
            one.iter().map(plain).eq(other.iter().map(plain))
        };
        prop_assert!(same(&picture(&place.root()), &taken), "{:?} is not {:?}", picture(&place.root()), taken);
        // And what was replaced comes back just as well.
        prop_assert_eq!(place.restore(restored.before.as_str(), &[]).refused, []);
        prop_assert!(same(&picture(&place.root()), &changed));
    }
}

#[test]
fn i15_permissions_times_and_empty_folders_come_back_where_everything_is_gone() {
    let place = Place::new();
    place.write("run", "#!");
    place.write("secretive/notes", "mine");
    place.write("long", long(3, 1 << 20));
    place.write("empty", "");
    fs::create_dir_all(place.root().join("nothing/in/here")).unwrap();
    symlink("run", place.root().join("link")).unwrap();
    let mode = |path: &str, mode| {
        fs::set_permissions(place.root().join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("run", 0o751);
    mode("secretive/notes", 0o600);
    mode("secretive", 0o700);
    mode("nothing/in/here", 0o500);
    let before = picture(&place.root());
    place.take("all");
    place.wait();
    fs::remove_dir_all(place.root()).unwrap();
    fs::create_dir(place.root()).unwrap();
    assert_eq!(place.restore("all", &[]).refused, []);
    assert_eq!(picture(&place.root()), before);
}

#[test]
fn s38_a_setuid_bit_is_not_restored() {
    let place = Place::new();
    place.write("su", "x");
    fs::set_permissions(place.root().join("su"), fs::Permissions::from_mode(0o4755)).unwrap();
    place.take("a");
    fs::remove_file(place.root().join("su")).unwrap();
    place.restore("a", &[]);
    assert_eq!(
        fs::metadata(place.root().join("su")).unwrap().mode() & 0o7777,
        0o755
    );
}

#[test]
fn only_what_changed_is_read_and_stored_again() {
    let place = Place::new();
    for number in 0..50 {
        place.write(
            &format!("d{}/f{number}", number % 5),
            format!("text {number}"),
        );
    }
    place.write("large", long(1, 1 << 20));
    place.wait();
    assert_eq!(place.take("first").read, 51);
    let second = place.take("second");
    assert_eq!((second.read, second.added), (0, 0));
    place.write("d1/f1", "another");
    let mut large = long(1, 1 << 20);
    large.splice(1_000..1_000, *b"inserted");
    place.write("large", large);
    let third = place.take("third");
    assert_eq!(third.read, 2);
    assert!(third.added < 600_000, "{}", third.added);
}

#[test]
fn what_two_spaces_have_in_common_is_stored_once() {
    let place = Place::new();
    place.write("a", long(1, 200_000));
    place.take("first");
    let other = place.store().space("other").unwrap();
    let taken = other
        .snapshot(&place.root(), "first", &Options::default())
        .unwrap();
    assert!(taken.added < 10_000, "{}", taken.added);
    assert_eq!(place.store().spaces().unwrap().len(), 2);
}

#[test]
fn s51_what_a_restore_replaces_is_in_the_snapshot_that_it_takes_first() {
    let place = Place::new();
    place.write("a", "old");
    place.write("gone", "old");
    place.take("old");
    place.write("a", "new");
    place.write("only now", "new");
    fs::remove_file(place.root().join("gone")).unwrap();
    let restored = place.restore("old", &[]);
    assert_eq!(place.read("a"), b"old");
    assert!(!place.root().join("only now").exists());
    assert_eq!(restored.done.len(), 3);
    place.restore(restored.before.as_str(), &["a", "only now"]);
    assert_eq!(
        (&place.read("a")[..], &place.read("only now")[..]),
        (&b"new"[..], &b"new"[..])
    );
    assert_eq!(place.read("gone"), b"old", "not chosen");
}

#[test]
fn s51_what_is_written_during_a_restore_is_refused_or_told() {
    let place = Place::new();
    let name = |number: u64| format!("d{}/f{number}", number % 9);
    for number in 0..200 {
        place.write(&name(number), "old");
    }
    place.take("old");
    for number in 0..200 {
        place.write(&name(number), "new");
    }
    let ended = AtomicBool::new(false);
    let restored = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..u64::MAX).take_while(|_| !ended.load(Ordering::Relaxed)) {
                // By rename, as editors do.
                let path = place.root().join(name(number % 200));
                let next = place.0.path().join("next");
                fs::write(&next, format!("written {number}")).unwrap();
                fs::rename(next, path).unwrap();
            }
        });
        let restored = place.restore("old", &[]);
        ended.store(true, Ordering::Relaxed);
        restored
    });
    // Each is whole: the old text, or one that was written meanwhile; never what the restore saw first
    // and was to replace without a reason.
    for number in 0..200 {
        let text = String::from_utf8(place.read(&name(number))).unwrap();
        let path = crate::RelPath::new(name(number)).unwrap();
        let refused = restored.refused.iter().any(|one| one.path == path);
        assert!(
            text == "old" || text.starts_with("written") || (refused && text == "new"),
            "{text}"
        );
    }
    // What came in between the two renames of one swap is set aside, as in every write to the host.
    let others: Vec<_> = fs::read_dir(place.root())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    for folder in others
        .iter()
        .filter(|path| path.ends_with(".sandbox-sync-staging"))
    {
        for left in fs::read_dir(folder).unwrap() {
            let name = left.unwrap().file_name();
            assert!(name.to_str().unwrap().starts_with("rescued-"), "{name:?}");
        }
    }
}

#[test]
fn s52_a_file_that_is_being_written_is_said_to_be_torn_and_read_again() {
    let place = Place::new();
    place.write("log", vec![b'x'; 8 << 20]);
    place.write("still", "x");
    place.wait();
    let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = fs::File::options()
                .write(true)
                .open(place.root().join("log"))
                .unwrap();
            for number in (0..u64::MAX).take_while(|_| !ended.load(Ordering::Relaxed)) {
                begun.store(number > 0, Ordering::Relaxed);
                file.write_all_at(&number.to_le_bytes(), number % 1_000)
                    .unwrap();
            }
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        // Where processors are few the writer may get none while the file is read.
        let mut takes = (0..50).map(|number| place.take(&format!("torn-{number}")));
        let taken = takes.find(|taken| !taken.snapshot.torn.is_empty());
        ended.store(true, Ordering::Relaxed);
        taken.expect("a file that is written all the time is torn")
    });
    let torn: Vec<String> = taken
        .snapshot
        .torn
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(torn, ["log"]);
    let listed = place.space().list().unwrap();
    assert_eq!(listed.last().unwrap().torn, taken.snapshot.torn);
    place.wait();
    let next = place.take("settled");
    assert_eq!((next.read, next.snapshot.torn.len()), (1, 0));
    let now = place.read("log");
    place.write("log", "");
    place.restore("settled", &["log"]);
    assert!(place.read("log") == now);
}

#[test]
fn s52_a_file_that_was_just_written_is_read_again() {
    let place = Place::new();
    place.write("a", "1");
    place.take("first");
    assert_eq!(place.take("second").read, 1);
}

#[test]
fn i8_masked_and_ignored_paths_are_neither_taken_nor_touched() {
    let place = Place::new();
    let options = Options::default().with_lists(crate::Lists::default().with_ignore("target"));
    place.write("src/a", "old");
    place.write(".env", "SECRET=one-of-a-kind");
    place.write("target/out", "built one-of-a-kind");
    let space = place.space();
    let taken = space.snapshot(&place.root(), "a", &options).unwrap();
    assert_eq!(
        (taken.snapshot.counts.files, taken.snapshot.counts.untracked),
        (1, 2)
    );
    for pack in place.packs() {
        let bytes = fs::read(pack).unwrap();
        assert!(!bytes.windows(13).any(|window| window == b"one-of-a-kind"));
    }
    place.write("src/a", "new");
    place.write(".env", "SECRET=two");
    place.write("src/.env", "SECRET=three");
    place.write("target/out", "built again");
    space.restore(&place.root(), ("a", &[]), &options).unwrap();
    assert_eq!(place.read("src/a"), b"old");
    assert_eq!(place.read(".env"), b"SECRET=two");
    assert_eq!(place.read("target/out"), b"built again");
    // By other rules than it was taken by: what is masked now stays, too.
    let stricter = Options::default().with_lists(crate::Lists::default().with_mask("src"));
    place.write("src/a", "new");
    space.restore(&place.root(), ("a", &[]), &stricter).unwrap();
    assert_eq!(place.read("src/a"), b"new");
    fs::remove_file(place.root().join("src/a")).unwrap();
    let stricter = Options::default().with_lists(crate::Lists::default().with_mask("a"));
    space.restore(&place.root(), ("a", &[]), &stricter).unwrap();
    assert!(!place.root().join("src/a").exists());
    // A folder that holds what is in no snapshot stays, and is told.
    fs::remove_dir_all(place.root()).unwrap();
    fs::create_dir(place.root()).unwrap();
    space.snapshot(&place.root(), "empty", &options).unwrap();
    place.write("src/.env", "SECRET");
    let restored = space
        .restore(&place.root(), ("empty", &[]), &options)
        .unwrap();
    assert_eq!(restored.refused.len(), 1);
    assert_eq!(place.read("src/.env"), b"SECRET");
}

#[test]
fn s32_a_link_is_never_followed_out_of_the_folder() {
    let place = Place::new();
    place.write("d/a", "old");
    place.take("a");
    let outside = place.0.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "theirs").unwrap();
    fs::remove_dir_all(place.root().join("d")).unwrap();
    symlink(&outside, place.root().join("d")).unwrap();
    let restored = place.restore("a", &[]);
    assert_eq!(fs::read(outside.join("a")).unwrap(), b"theirs");
    assert_eq!(restored.refused.len(), 2, "{restored:?}");
}

#[test]
fn names_are_there_once_and_only_if_they_are_there() {
    let place = Place::new();
    place.take("a");
    let space = place.space();
    let options = Options::default();
    let kind = |result: Result<Taken, Error>| result.unwrap_err().kind();
    assert_eq!(
        kind(space.snapshot(&place.root(), "a", &options)),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(space.snapshot(&place.root(), "../a", &options)),
        ErrorKind::Invalid
    );
    assert_eq!(
        kind(space.snapshot(place.0.path(), "b", &options)),
        ErrorKind::Invalid,
        "holds the store"
    );
    assert_eq!(
        place.store().space("x/y").unwrap_err().kind(),
        ErrorKind::Invalid
    );
    let missing = space
        .restore(&place.root(), ("b", &[]), &options)
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(space.remove("b").unwrap_err().kind(), ErrorKind::NotFound);
    place.write("there", "x");
    place.take("there");
    let restored = place.restore("there", &["there"]);
    assert_eq!(restored.done, [], "it is there, and the same");
    space.remove("there").unwrap();
    space.remove(restored.before.as_str()).unwrap();
    let missing = space
        .restore(&place.root(), ("a", &["no/such"]), &options)
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(
        space.list().unwrap().len(),
        2,
        "a restore that finds nothing has taken one"
    );
}

#[test]
fn differences_are_shown_between_snapshots_and_with_the_folder() {
    let place = Place::new();
    place.write("text", "one\ntwo\n");
    place.write("gone", "x");
    place.take("a");
    place.write("text", "one\nthree\n");
    fs::remove_file(place.root().join("gone")).unwrap();
    place.write("new", "y");
    place.take("b");
    let space = place.space();
    let between = space
        .diff("a", Against::Snapshot("b"), &Options::default())
        .unwrap();
    let now = space
        .diff("a", Against::Folder(&place.root()), &Options::default())
        .unwrap();
    assert_eq!(between, now);
    let kinds: Vec<_> = between
        .changes
        .iter()
        .map(|one| (one.path.to_string(), one.kind.clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("gone".into(), Kind::Removed),
            ("new".into(), Kind::Added),
            ("text".into(), Kind::Changed),
        ]
    );
    assert!(
        between.only("text").changes[0]
            .patch()
            .to_string()
            .contains("-two\n+three\n")
    );
    let back = space
        .diff("b", Against::Snapshot("a"), &Options::default())
        .unwrap();
    assert!(
        back.only("text").changes[0]
            .patch()
            .to_string()
            .contains("-three\n+two\n")
    );
}

#[test]
fn a_collector_keeps_what_is_needed_and_frees_the_rest() {
    let place = Place::new();
    let store = place.store();
    place.write("kept", long(1, 400_000));
    place.write("goes", long(2, 1_000_000));
    place.take("a");
    fs::remove_file(place.root().join("goes")).unwrap();
    place.take("b");
    assert_eq!(store.collect().unwrap().freed, 0);
    place.space().remove("a").unwrap();
    fs::write(place.0.path().join("store/packs/.part-1-1"), "torn").unwrap();
    fs::write(place.0.path().join("store/spaces/one/.part-1-1"), "torn").unwrap();
    let collected = store.collect().unwrap();
    assert!(collected.freed > 900_000, "{collected:?}");
    assert!(place.packs().iter().all(|path| path.extension().is_some()));
    let before = picture(&place.root());
    fs::remove_file(place.root().join("kept")).unwrap();
    place.restore("b", &[]);
    assert_eq!(picture(&place.root()), before);
    place.space().clear().unwrap();
    store.collect().unwrap();
    assert_eq!(place.packs().len(), 0);
}

#[test]
fn many_short_packs_become_one() {
    let place = Place::new();
    for number in 0..30 {
        place.write("a", long(number, 10_000));
        place.take(&format!("s{number}"));
    }
    assert_eq!(place.packs().len(), 30);
    place.store().collect().unwrap();
    assert_eq!(place.packs().len(), 1);
    for number in [0, 29] {
        place.restore(&format!("s{number}"), &[]);
        assert!(place.read("a") == long(number, 10_000));
    }
}

#[test]
fn a_collector_that_cannot_read_a_snapshot_removes_nothing() {
    let place = Place::new();
    place.write("a", long(1, 100_000));
    place.take("a");
    place.take("b");
    place.space().remove("b").unwrap();
    fs::write(
        place.0.path().join("store/spaces/one/c.snap"),
        "no snapshot",
    )
    .unwrap();
    let before = place.packs();
    assert_eq!(
        place.store().collect().unwrap_err().kind(),
        ErrorKind::Damaged
    );
    assert_eq!(place.packs(), before);
    let error = place
        .space()
        .restore(&place.root(), ("c", &[]), &Options::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(place.space().list().unwrap().len(), 1);
    place.space().remove("c").unwrap();
    place.store().collect().unwrap();
}

#[test]
fn retention_spares_what_has_a_name() {
    let place = Place::new();
    let space = place.space();
    place.take("mine");
    for _ in 0..4 {
        space
            .snapshot_automatic(&place.root(), &Options::default())
            .unwrap();
    }
    let rule = Retention::default().with_last(2).with_hours(0).with_days(0);
    let gone: Vec<String> = space
        .prune(rule)
        .unwrap()
        .into_iter()
        .map(Into::into)
        .collect();
    assert_eq!(gone, ["auto-000001", "auto-000002"]);
    let left: Vec<String> = space
        .list()
        .unwrap()
        .into_iter()
        .map(|one| one.name.into())
        .collect();
    assert_eq!(left, ["mine", "auto-000003", "auto-000004"]);
    let next = space
        .snapshot_automatic(&place.root(), &Options::default())
        .unwrap();
    assert_eq!(next.snapshot.name.as_str(), "auto-000005");
}

#[test]
fn a_store_that_others_may_write_to_or_of_another_version_is_refused() {
    let place = Place::new();
    drop(place.store());
    let store = place.0.path().join("store");
    assert_eq!(fs::metadata(&store).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(
        Store::open(&store).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(store.join("format"), "sandbox snapshots 1\n").unwrap();
    assert_eq!(
        Store::open(&store).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn everything_in_a_store_is_its_owners_alone() {
    let place = Place::new();
    place.write("a", "x");
    place.take("a");
    let mut rest = vec![place.0.path().join("store")];
    while let Some(path) = rest.pop() {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.mode() & 0o077, 0, "{path:?}");
        if meta.is_dir() {
            rest.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]
    #[test]
    fn damaged_bytes_anywhere_are_told_and_never_restored(
        file: prop::sample::Index, at: prop::sample::Index, bit in 0u8..8, cut: bool,
    ) {
        let place = Place::new();
        place.write("d/a", long(1, 3_000));
        place.write("d/b", "text text text text text text text text");
        place.write("long", long(2, 300_000));
        let before = picture(&place.root());
        place.take("a");
        let mut files = place.packs();
        files.push(place.0.path().join("store/spaces/one/a.snap"));
        let damaged = &files[file.index(files.len())];
        let mut bytes = fs::read(damaged).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(damaged, bytes).unwrap();
        fs::remove_dir_all(place.root()).unwrap();
        fs::create_dir(place.root()).unwrap();
        // A flipped bit may lie where nothing is: between what is needed. Then all is well.
        match place.space().restore(&place.root(), ("a", &[]), &Options::default()) {
            Ok(restored) => {
                prop_assert_eq!(restored.refused, []);
                prop_assert_eq!(picture(&place.root()).len(), before.len());
                prop_assert_eq!(place.read("long"), long(2, 300_000));
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error);
                prop_assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0);
            }
        }
        drop(place.space().diff("a", Against::Folder(&place.root()), &Options::default()));
        drop(place.store().collect());
    }
}

/// Changes one byte in the middle of blobs that are chosen, in all packs, and returns how many.
fn damage(place: &Place, chooses: impl Fn(u32) -> bool) -> u64 {
    let mut damaged = 0;
    for path in place.packs() {
        let pack = pack::Pack::open(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (_, at) in pack.index.iter().filter(|(_, at)| chooses(at.length)) {
            bytes[usize::try_from(at.offset).unwrap() + at.stored as usize / 2] ^= 1;
            damaged += 1;
        }
        fs::write(path, bytes).unwrap();
    }
    damaged
}

#[test]
fn i15_what_a_disk_damaged_is_told_by_snapshot_and_path_and_stored_anew() {
    let place = Place::new();
    place.write("d/whole", "x");
    place.write("d/long", long(1, 1 << 20));
    place.write("d/short", long(2, 9_000));
    place.wait();
    place.take("first");
    place.write("later", "x");
    place.wait();
    place.take("second");
    let before = picture(&place.root());
    let sound = place.store().verify().unwrap();
    assert_eq!((sound.damaged, sound.hurt.len()), (0, 0));
    assert!(sound.read > 5 && !place.0.path().join("store/damaged").exists());

    let damaged = damage(&place, |length| length > 5_000);
    let found = place.store().verify().unwrap();
    assert_eq!((found.read, found.damaged), (sound.read, damaged));
    let told: Vec<_> = (found.hurt.iter())
        .map(|hurt| {
            (
                hurt.name.as_str(),
                hurt.paths.iter().map(ToString::to_string).collect(),
            )
        })
        .collect();
    let paths: Vec<String> = vec!["d/long".into(), "d/short".into()];
    assert_eq!(told, [("first", paths.clone()), ("second", paths)]);

    // Of what is damaged, and of nothing else, the next one reads the files again.
    let healed = place.take("third");
    assert_eq!((healed.read, healed.added > 1 << 20), (2, true));
    assert_eq!(place.take("fourth").read, 0);
    let after = place.store().verify().unwrap();
    assert_eq!((after.damaged, after.hurt), (damaged, vec![]));
    fs::remove_dir_all(place.root().join("d")).unwrap();
    assert_eq!(place.restore("second", &[]).refused, []);
    assert_eq!(picture(&place.root()), before);
}

#[test]
fn i15_listings_that_are_damaged_are_stored_anew_as_well() {
    let place = Place::new();
    place.write("d/e/a", "x");
    place.write("b", "y");
    place.wait();
    place.take("first");
    assert!(damage(&place, |_| true) > 3);
    let found = place.store().verify().unwrap();
    let hurt = &found.hurt[0];
    assert_eq!(
        (hurt.name.as_str(), hurt.paths.len(), hurt.more),
        ("first", 0, 1)
    );
    place.take("second");
    assert_eq!(place.store().verify().unwrap().hurt, []);
    fs::remove_dir_all(place.root().join("d")).unwrap();
    assert_eq!(place.restore("first", &[]).done.len(), 3);
    assert_eq!(place.read("d/e/a"), b"x");
}

#[test]
fn a_pack_that_is_gone_hurts_and_a_list_of_damage_that_is_damaged_says_nothing() {
    let place = Place::new();
    place.write("a", "x");
    place.wait();
    place.take("first");
    for pack in place.packs() {
        fs::remove_file(pack).unwrap();
    }
    assert_eq!(place.store().verify().unwrap().hurt.len(), 1);
    let list = place.0.path().join("store/damaged");
    fs::write(&list, "nonsense").unwrap();
    // The listing is gone, so everything is read in any case.
    place.take("second");
    assert_eq!(place.store().verify().unwrap().hurt, []);
    assert!(!list.exists());
    assert_eq!(place.restore("first", &[]).refused, []);
}
