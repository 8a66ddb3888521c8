//! What a tree costs while it is kept, names aside.
//!
//! A process of its own holds the session, so that nothing that was measured before counts.

use std::fs;
use std::path::Path;
use std::process::Command;

use sandbox_benches::{Result, process};

use crate::ours::{Halves, Ours};
use crate::table::Table;
use crate::tree::Spec;

/// Has another process hold a session, and asks it.
pub(crate) fn measure(folder: &Path, (files, table): (usize, &mut Table)) -> Result<()> {
    let (tree, copy, empty) = (
        folder.join("tree"),
        folder.join("copy"),
        folder.join("empty"),
    );
    fs::create_dir_all(&tree)?;
    fs::create_dir_all(&empty)?;
    Spec::new(files).write(&tree)?;
    let without = ask(&empty, &folder.join("none"))?;
    let with = ask(&tree, &copy)?;
    let names: usize = (0..files)
        .map(|file| Spec::path(file).as_os_str().len())
        .sum();
    let names = names as f64 / files as f64;
    for (column, (with, without)) in ["to the copy", "back"]
        .into_iter()
        .zip(with.into_iter().zip(without))
    {
        let each = (with - without) * f64::from(1 << 20) / files as f64;
        table.add(
            ("memory a file, names aside; the copy's half last", "bytes"),
            (column, each - names),
        );
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

fn ask(tree: &Path, copy: &Path) -> Result<[f64; 2]> {
    let answer = Command::new(std::env::current_exe()?)
        .arg("memory")
        .args([tree, copy])
        .output()?;
    let text = String::from_utf8(answer.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || numbers.next().ok_or("no answer");
    Ok([next()??, next()??])
}

/// Holds a session that has nothing to do and prints what both halves take, in MiB.
pub(crate) async fn hold(tree: &Path, copy: &Path) -> Result<()> {
    let ours = Ours::start(tree, copy, Halves::Apart).await?;
    for _ in 0..3 {
        ours.session.flush().await?;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let host = process::memory(std::process::id())?.private;
    let guest = process::memory(ours.child().ok_or("the other half is gone")?)?.private;
    println!("{host} {guest}");
    ours.stop().await
}
