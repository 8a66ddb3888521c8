//! From a file saved on one side to its bytes on the other.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox_benches::Result;

use crate::ours::{Halves, Ours};
use crate::table::Table;
use crate::tree::Spec;

const SAVES: usize = 100;
const FILES: usize = 1_000;

/// The bound on every wait.
const HANG: Duration = Duration::from_secs(30);

/// Saves files, one after the other on either side, and then a thousand at once.
pub(crate) async fn measure(folder: &Path, table: &mut Table) -> Result<()> {
    let (tree, copy) = (folder.join("tree"), folder.join("copy"));
    fs::create_dir_all(&tree)?;
    Spec::new(20_000).write(&tree)?;
    let ours = Ours::start(&tree, &copy, Halves::Apart).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (direction, from, to) in [("to the copy", &tree, &copy), ("back", &copy, &tree)] {
        let mut took = Vec::new();
        for number in 0..SAVES {
            took.push(save(number, (from, to)).await?);
            // Not in step with anything that repeats.
            tokio::time::sleep(Duration::from_millis(20 + number as u64 * 7 % 90)).await;
        }
        took.sort_by(f64::total_cmp);
        for value in &took {
            table.add(("saved to visible, median", "ms"), (direction, *value));
        }
        table.add(
            ("saved to visible, p95", "ms"),
            (direction, took[SAVES * 95 / 100]),
        );
        table.add(
            ("1,000 small files at once", "ms"),
            (direction, many(direction, (from, to)).await?),
        );
    }
    ours.stop().await
}

/// Saves as editors do: beside it, then by a rename.
async fn save(number: usize, (from, to): (&Path, &Path)) -> Result<f64> {
    let path = Spec::path(number * 13);
    let text = format!("{number} from {}", from.display());
    let beside = from.join("saving");
    fs::write(&beside, &text)?;
    let start = Instant::now();
    fs::rename(&beside, from.join(&path))?;
    while fs::read_to_string(to.join(&path)).is_ok_and(|found| found != text) {
        if start.elapsed() > HANG {
            return Err("a saved file did not arrive".into());
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

async fn many(name: &str, (from, to): (&Path, &Path)) -> Result<f64> {
    let start = Instant::now();
    fs::create_dir(from.join(name))?;
    for number in 0..FILES {
        fs::write(from.join(name).join(number.to_string()), number.to_string())?;
    }
    while fs::read_dir(to.join(name)).map_or(0, Iterator::count) < FILES {
        if start.elapsed() > HANG {
            return Err("new files did not arrive".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
