//! Everybody's turn: first copy, nothing changed, a hundred edits.

use std::fs;
use std::path::Path;
use std::time::Instant;

use sandbox_benches::Result;

use crate::ours::{Halves, Ours};
use crate::rivals::{Rival, flush};
use crate::snapshots;
use crate::table::Table;
use crate::tree::{self, Spec};

pub(crate) const FIRST: (&str, &str) = ("first copy, flushed", "s");
const AGAIN: (&str, &str) = ("nothing changed", "ms");
pub(crate) const AGAIN_UNWATCHED: (&str, &str) = ("nothing changed, no watcher", "ms");
pub(crate) const EDITS: (&str, &str) = ("100 edits", "ms");
const FLOOR: (&str, &str) = ("one walk", "ms");

/// How often what takes milliseconds is repeated in a round.
pub(crate) const REPEATS: usize = 5;

/// Lets each contender take its turn, on a tree in `folder`, which is removed in the end.
pub(crate) async fn turns(
    folder: &Path,
    spec: &Spec,
    (only, table): (&str, &mut Table),
) -> Result<()> {
    let tree = folder.join("tree");
    fs::create_dir_all(&tree)?;
    spec.write(&tree)?;
    for _ in 0..REPEATS {
        let took = milliseconds(|| {
            let found = tree::walk(&tree)?;
            (found == spec.files())
                .then_some(())
                .ok_or_else(|| "the walk missed something".into())
        })?;
        table.add(FLOOR, ("floor", took));
    }
    for halves in [Halves::Apart, Halves::Together] {
        if halves.name().contains(only) {
            ours(folder, (spec, halves), table).await?;
            without_watch(folder, halves, table).await?;
            fs::remove_dir_all(folder.join("copy"))?;
        }
    }
    if snapshots::NAME.contains(only) {
        snapshots::measure(folder, spec, table)?;
        snapshots::watched(folder, spec, table).await?;
    }
    for rival in Rival::all() {
        if rival.name().contains(only) && rival.is_installed() {
            theirs(folder, (spec, rival), table)?;
            fs::remove_dir_all(folder.join("copy"))?;
        }
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

async fn ours(folder: &Path, (spec, halves): (&Spec, Halves), table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    let start = Instant::now();
    let ours = Ours::start(&tree, &copy, halves).await?;
    flush(&copy)?;
    table.add(FIRST, (halves.name(), start.elapsed().as_secs_f64()));
    if tree::walk(&copy)? != spec.files() {
        return Err("the copy is not whole".into());
    }
    ours.session.flush().await?;
    // What is younger than two seconds is read again, as it may change again within one step of the clock.
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    ours.session.flush().await?;
    for _ in 0..REPEATS {
        let start = Instant::now();
        ours.session.flush().await?;
        table.add(AGAIN, (halves.name(), start.elapsed().as_secs_f64() * 1e3));
    }
    for _ in 0..REPEATS {
        tree::edit(&tree, (spec, 100))?;
        let start = Instant::now();
        ours.session.flush().await?;
        table.add(EDITS, (halves.name(), start.elapsed().as_secs_f64() * 1e3));
        same(&tree, &copy)?;
    }
    ours.stop().await
}

async fn without_watch(folder: &Path, halves: Halves, table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    let ours = Ours::start_without_watch(&tree, &copy, halves).await?;
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    ours.session.flush().await?;
    for _ in 0..REPEATS {
        let start = Instant::now();
        ours.session.flush().await?;
        table.add(
            AGAIN_UNWATCHED,
            (halves.name(), start.elapsed().as_secs_f64() * 1e3),
        );
    }
    ours.stop().await
}

fn theirs(folder: &Path, (spec, rival): (&Spec, Rival), table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    fs::create_dir(&copy)?;
    let start = Instant::now();
    rival.run(&tree, &copy)?;
    flush(&copy)?;
    table.add(FIRST, (rival.name(), start.elapsed().as_secs_f64()));
    if !rival.updates() {
        return Ok(());
    }
    for _ in 0..REPEATS {
        let took = milliseconds(|| rival.run(&tree, &copy))?;
        table.add(AGAIN, (rival.name(), took));
    }
    for _ in 0..REPEATS {
        tree::edit(&tree, (spec, 100))?;
        let took = milliseconds(|| rival.run(&tree, &copy))?;
        table.add(EDITS, (rival.name(), took));
    }
    Ok(())
}

/// A look at the first edited file: a figure for work that was not done is none.
fn same(tree: &Path, copy: &Path) -> Result<()> {
    let path = Spec::path(0);
    if fs::read(tree.join(&path))? == fs::read(copy.join(path))? {
        return Ok(());
    }
    Err("the edit did not arrive".into())
}

pub(crate) fn milliseconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
