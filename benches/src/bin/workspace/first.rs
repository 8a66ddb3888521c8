//! A whole tree that comes in, beside a tar of it that is unpacked inside.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use sandbox_benches::Result;
use sandbox_benches::report::{Aim, Row};
use sandbox_core::{ExtraDisk, Sandbox};

use crate::tree;

/// Where the disk with the tars is, inside.
const DISK: &str = "/given";

/// Makes a disk with a tar of each tree.
pub(crate) fn disk(folder: &Path, sizes: &[usize]) -> Result<ExtraDisk> {
    let tars = folder.join("tars");
    fs::create_dir(&tars)?;
    for files in sizes {
        let tree = folder.join("tree");
        tree::write(&tree, *files)?;
        let tar = tars.join(format!("{files}.tar"));
        run(Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(tar)
            .arg("."))?;
        fs::remove_dir_all(tree)?;
    }
    let image = folder.join("tars.ext4");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-d"]).arg(&tars).arg(&image);
    run(make.arg("1G"))?;
    fs::remove_dir_all(tars)?;
    Ok(ExtraDisk::ext4(image, DISK).read_only())
}

/// Takes turns: tar, ours.
pub(crate) async fn measure(
    sandbox: &Sandbox,
    (project, files): (&Path, usize),
    rounds: usize,
) -> Result<Row> {
    let mut row = Row::new(
        format!("first copy of {files} files"),
        "s",
        Aim::AtMost(1.2),
    );
    for round in 0..rounds {
        row.floor.push(unpack(sandbox, files).await?);
        row.ours.push(ours(sandbox, (project, files)).await?);
        eprintln!("{files} files, round {} of {rounds}", round + 1);
    }
    Ok(row)
}

/// Seconds that `tar` takes inside, flushed.
async fn unpack(sandbox: &Sandbox, files: usize) -> Result<f64> {
    inside(
        sandbox,
        "sync; echo 3 > /proc/sys/vm/drop_caches; mkdir /unpacked",
    )
    .await?;
    let start = Instant::now();
    let line = format!("tar -C /unpacked -xf {DISK}/{files}.tar && sync -f /unpacked");
    inside(sandbox, &line).await?;
    let took = start.elapsed().as_secs_f64();
    inside(sandbox, "rm -r /unpacked").await?;
    Ok(took)
}

/// Seconds from the permission to synchronize to the end of the cycle that brings the tree in, durable.
async fn ours(sandbox: &Sandbox, (project, files): (&Path, usize)) -> Result<f64> {
    inside(sandbox, "sync; echo 3 > /proc/sys/vm/drop_caches").await?;
    sandbox.set_sync_paused(true).await?;
    let tree = project.join("tree");
    tree::write(&tree, files)?;
    let start = Instant::now();
    sandbox.set_sync_paused(false).await?;
    sandbox.sync().await?;
    let took = start.elapsed().as_secs_f64();
    let count = format!("find {} -type f | wc -l", tree.display());
    if inside(sandbox, &count).await?.trim() != files.to_string() {
        return Err("the copy is not whole".into());
    }
    remove(sandbox, &tree).await?;
    Ok(took)
}

/// Removes a folder on both sides.
pub(crate) async fn remove(sandbox: &Sandbox, folder: &Path) -> Result<()> {
    sandbox.set_sync_paused(true).await?;
    fs::remove_dir_all(folder)?;
    inside(sandbox, &format!("rm -r {}", folder.display())).await?;
    sandbox.set_sync_paused(false).await?;
    // Everything went at once, on both sides, which the two agree on.
    sandbox.sync().await.map(drop).map_err(Into::into)
}

/// Runs a line inside as root and returns what it says.
pub(crate) async fn inside(sandbox: &Sandbox, line: &str) -> Result<String> {
    let mut command = sandbox.command("sh");
    let output = command.args(["-ec", line]).user("root").output().await?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {status}").into()),
    }
}
