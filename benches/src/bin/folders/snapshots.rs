//! Our snapshots of a folder, beside what copies it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_core::sync::snapshot::{Options, Space, Store};

use crate::contender::{AGAIN_UNWATCHED, EDITS, FIRST, REPEATS, milliseconds};
use crate::ours::{Halves, Ours};
use crate::rivals::flush;
use crate::table::Table;
use crate::tree::{self, Spec};

pub(crate) const NAME: &str = "snapshots";
const RESTORE: (&str, &str) = ("100 files restored", "ms");
const AGAIN_WATCHED: (&str, &str) = ("nothing changed, by a session", "ms");
const EDITS_WATCHED: (&str, &str) = ("100 edits, watched", "ms");
const AGAIN_OPENED: (&str, &str) = ("nothing changed, by a new process's store", "ms");

/// Takes snapshots of the tree in `folder` and goes back to one.
pub(crate) fn measure(folder: &Path, spec: &Spec, table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    let options = Options::default();
    let start = Instant::now();
    let space = Store::open(&copy)?.space("bench")?;
    let first = space.snapshot(&tree, "first", &options)?;
    flush(&copy)?;
    table.add(FIRST, (NAME, start.elapsed().as_secs_f64()));
    if first.snapshot.counts.files != spec.files() as u64 {
        return Err("the snapshot is not whole".into());
    }
    // What is younger than two seconds is read again by the next one.
    std::thread::sleep(Duration::from_millis(2_100));
    space.snapshot(&tree, "settled", &options)?;
    for _ in 0..REPEATS {
        let took = milliseconds(|| again(&space, &tree, 0))?;
        table.add(AGAIN_UNWATCHED, (NAME, took));
    }
    for _ in 0..REPEATS {
        let took = milliseconds(|| again(&Store::open(&copy)?.space("bench")?, &tree, 0))?;
        table.add(AGAIN_OPENED, (NAME, took));
    }
    for _ in 0..REPEATS {
        tree::edit(&tree, (spec, 100))?;
        let took = milliseconds(|| again(&space, &tree, 100))?;
        table.add(EDITS, (NAME, took));
        let start = Instant::now();
        let restored = space.restore(&tree, ("settled", &[]), &options)?;
        table.add(RESTORE, (NAME, start.elapsed().as_secs_f64() * 1e3));
        if (restored.done.len(), restored.refused.len()) != (100, 0) {
            return Err("the restore is not whole".into());
        }
    }
    fs::remove_dir_all(copy)?;
    Ok(())
}

/// The same by a session, which knows what changed.
pub(crate) async fn watched(folder: &Path, spec: &Spec, table: &mut Table) -> Result<()> {
    let (tree, copy, store) = (
        folder.join("tree"),
        folder.join("copy"),
        folder.join("store"),
    );
    let ours = Ours::start(&tree, &copy, Halves::Together).await?;
    let space = Store::open(&store)?.space("bench")?;
    // What is younger than two seconds is read again by the next one.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let take = || ours.session.snapshot(&space, None, Options::default());
    take().await?;
    for (row, edits) in [(AGAIN_WATCHED, 0), (EDITS_WATCHED, 100)] {
        for _ in 0..REPEATS {
            tree::edit(&tree, (spec, edits))?;
            ours.session.flush().await?;
            let start = Instant::now();
            let taken = take().await?;
            table.add(row, (NAME, start.elapsed().as_secs_f64() * 1e3));
            let counts = taken.snapshot.counts;
            if taken.read < edits as u64 || counts.files != spec.files() as u64 {
                return Err(format!("{} files were read", taken.read).into());
            }
        }
    }
    ours.stop().await?;
    fs::remove_dir_all(store)?;
    fs::remove_dir_all(copy)?;
    Ok(())
}

/// Takes a snapshot, which has to read at least so many files and not all of them.
fn again(space: &Space, tree: &Path, read: u64) -> Result<()> {
    let taken = space.snapshot_automatic(tree, &Options::default())?;
    match taken.read >= read && taken.read < taken.snapshot.counts.files {
        true => Ok(()),
        false => Err(format!("{} files were read", taken.read).into()),
    }
}
