//! How much of a large file moves when a hundredth of it changed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sandbox_benches::Result;

use crate::ours::{Halves, Ours};
use crate::table::Table;

const LENGTH: u64 = 1 << 30;
/// So many places are changed, together a hundredth.
const PLACES: u64 = 16;

/// Changes a file of 1 GiB on either side.
pub(crate) async fn measure(folder: &Path, table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    fs::create_dir_all(&tree)?;
    write(&tree.join("large"))?;
    let ours = Ours::start(&tree, &copy, Halves::Apart).await?;
    for (round, direction, from, to) in
        [(1, "to the copy", &tree, &copy), (2, "back", &copy, &tree)]
    {
        change(&from.join("large"), round)?;
        let before = ours.moved.load(Ordering::Relaxed);
        let start = Instant::now();
        ours.session.flush().await?;
        let took = start.elapsed().as_secs_f64();
        let moved = (ours.moved.load(Ordering::Relaxed) - before) as f64 / LENGTH as f64 * 100.0;
        table.add(("1 GiB with 1 % changed, moved", "%"), (direction, moved));
        table.add(("1 GiB with 1 % changed, took", "s"), (direction, took));
        if !same(&from.join("large"), &to.join("large"))? {
            return Err("the large file did not arrive".into());
        }
    }
    ours.stop().await?;
    fs::remove_dir_all(folder)?;
    Ok(())
}

fn write(path: &Path) -> Result<()> {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut word = 1u64;
    for _ in 0..LENGTH / 8 {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        file.write_all(&word.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

fn change(path: &Path, round: u8) -> Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    let bytes = vec![round; usize::try_from(LENGTH / 100 / PLACES)?];
    for place in 0..PLACES {
        file.write_all_at(&bytes, place * (LENGTH / PLACES) + 12_345)?;
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let (one, other) = (fs::File::open(one)?, fs::File::open(other)?);
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let [left, right] = &mut buffers;
    for at in (0..LENGTH).step_by(left.len()) {
        one.read_exact_at(left, at)?;
        other.read_exact_at(right, at)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}
