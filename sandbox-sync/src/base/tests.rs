//! Bases that are written, cut, damaged and read again.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::tree::Digest;

struct Kept {
    folder: TempDir,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn open(&self) -> Base {
        Base::open(Some(&self.file()), Path::new("/w"))
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.file()).unwrap()
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn file(contents: &[u8]) -> Entry {
    Entry::File {
        digest: Digest::of(contents),
        size: contents.len() as u64,
        executable: true,
    }
}

fn agreed(text: &str, entry: Entry) -> Result<Item, RelPath> {
    Ok(Item::new(path(text), entry))
}

/// Records a few cycles and returns the tree after each, the empty one first.
fn recorded(kept: &Kept, cycles: &[(u8, u8)]) -> Vec<Tree> {
    let mut base = kept.open();
    let mut trees = vec![Tree::default()];
    for (name, contents) in cycles {
        let name = format!("d/{}", name % 5);
        let change = match contents % 4 {
            0 => Err(path(&name)),
            _ => agreed(&name, file(&[*contents])),
        };
        let change = [agreed("d", Entry::Directory), change];
        base.record(change.into()).unwrap();
        trees.push(Tree::clone(base.tree()));
    }
    trees
}

#[test]
fn what_was_recorded_is_read_again_and_goes_on() {
    let kept = Kept::new();
    let trees = recorded(&kept, &[(1, 1), (2, 1)]);
    assert_eq!(**kept.open().tree(), trees[2]);
    let more = recorded(&kept, &[(3, 1), (1, 0)]);
    assert_eq!(kept.open().tree().len(), 3);
    assert_eq!(**kept.open().tree(), more[2]);
}

#[test]
fn a_cycle_appends_until_a_new_beginning_is_shorter() {
    let kept = Kept::new();
    let mut base = kept.open();
    let many = |n: u32| agreed(&format!("name-{n}"), file(&n.to_le_bytes()));
    base.record((0..10).map(many).collect()).unwrap();
    let (mut lengths, first) = (Vec::new(), kept.bytes().len());
    for round in 0..20u32 {
        base.record((0..500).map(|n| many(n * (round % 2 + 1))).collect())
            .unwrap();
        lengths.push(kept.bytes().len());
    }
    assert!(
        lengths.windows(2).any(|pair| pair[1] < pair[0]),
        "{lengths:?}"
    );
    assert!(lengths[0] > first && lengths.iter().all(|length| *length < 1 << 20));
    assert_eq!(kept.open().tree(), base.tree());
}

#[test]
fn s17_a_record_that_is_cut_short_takes_none_before_it_away() {
    let kept = Kept::new();
    let trees = recorded(&kept, &[(1, 1), (2, 1), (3, 1)]);
    let bytes = kept.bytes();
    fs::write(kept.file(), &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(**kept.open().tree(), trees[2]);
    let zeros = [&bytes[..], &[0; 5000]].concat();
    fs::write(kept.file(), zeros).unwrap();
    assert_eq!(**kept.open().tree(), trees[3]);
}

#[test]
fn what_somebody_else_wrote_is_replaced() {
    let kept = Kept::new();
    let mut base = kept.open();
    base.record(vec![agreed("a", Entry::Directory)]).unwrap();
    fs::write(kept.file(), "nonsense").unwrap();
    base.record(vec![agreed("b", Entry::Directory)]).unwrap();
    assert_eq!(kept.open().tree(), base.tree());
    assert_eq!(base.tree().len(), 2);
}

#[test]
fn s18_a_base_of_another_root_is_no_history() {
    let kept = Kept::new();
    recorded(&kept, &[(1, 1)]);
    let other = Base::open(Some(&kept.file()), Path::new("/other"));
    assert!(other.tree().is_empty());
}

fn any_cycles() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec(any::<(u8, u8)>(), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SANDBOX_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
    ))]

    /// A crash at any byte of an append, and what a file system may make of it: an earlier state, to
    /// which the next session can add.
    #[test]
    fn s17_a_torn_base_is_an_earlier_one(cycles in any_cycles(), cut: prop::sample::Index, zeros in 0usize..100) {
        let kept = Kept::new();
        let trees = recorded(&kept, &cycles);
        let bytes = kept.bytes();
        let cut = cut.index(bytes.len());
        let mut torn = bytes[..cut].to_vec();
        // The length may have reached the disk, and the bytes not.
        torn.resize(torn.len() + zeros, 0);
        for bytes in [&bytes[..cut], &torn] {
            fs::write(kept.file(), bytes).unwrap();
            let tree = Tree::clone(kept.open().tree());
            prop_assert!(trees.contains(&tree));
            let mut base = kept.open();
            base.record(vec![agreed("more", Entry::Directory)]).unwrap();
            prop_assert!(kept.open().tree() == base.tree());
            prop_assert_eq!(base.tree().len(), tree.len() + 1);
        }
    }

    /// Damage that no crash does: the state before the last record at the earliest, or no history.
    #[test]
    fn s17_a_damaged_base_is_no_history(cycles in any_cycles(), flip: prop::sample::Index, bit in 0u8..8) {
        let kept = Kept::new();
        let trees = recorded(&kept, &cycles);
        let mut bytes = kept.bytes();
        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(kept.file(), &bytes).unwrap();
        let tree = Tree::clone(kept.open().tree());
        prop_assert!(tree.is_empty() || tree == trees[trees.len() - 2], "{tree:?}");
    }

    /// Twin of the fuzz target `base`.
    #[test]
    fn s17_whatever_a_file_holds_it_is_read_to_its_end(bytes: Vec<u8>, root: Vec<u8>) {
        prop_assert!(replay(&bytes).is_err());
        let body = [postcard::to_stdvec(&root).unwrap(), bytes.clone()].concat();
        let (mut file, chain) = journal::begin(&body).unwrap();
        drop(replay(&file));
        file.extend(journal::append(chain, &bytes).unwrap().0);
        drop(replay(&file));
    }
}
