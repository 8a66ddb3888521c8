//! Large files either way, beside the raw stream of a command that carries as many bytes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use sandbox_benches::Result;
use sandbox_benches::floor::{drain, fill};
use sandbox_benches::report::{Aim, Row};
use sandbox_core::{Sandbox, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::first::{inside, remove};
use crate::tree;

const FILES: usize = 8;
const LENGTH: usize = 8 << 20;
const BYTES: u64 = (FILES * LENGTH) as u64;

/// Takes turns: the raw stream, ours, and the same back.
pub(crate) async fn measure(sandbox: &Sandbox, project: &Path, rounds: usize) -> Result<Vec<Row>> {
    let mut into = Row::new("64 MiB in 8 files to the guest", "s", Aim::AtMost(1.3));
    let mut out = Row::new("64 MiB in 8 files back", "s", Aim::AtMost(1.3));
    for round in 0..rounds {
        into.floor.push(stream_in(sandbox).await?);
        into.ours.push(files_in(sandbox, project).await?);
        out.floor.push(stream_out(sandbox).await?);
        out.ours.push(files_out(sandbox, project).await?);
        eprintln!("large files, round {} of {rounds}", round + 1);
    }
    Ok(vec![into, out])
}

async fn stream_in(sandbox: &Sandbox) -> Result<f64> {
    let start = Instant::now();
    let mut command = sandbox.command("sh");
    command
        .args(["-c", "cat >/dev/null; echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().await?;
    let ends = child.stdin.take().zip(child.stdout.take());
    let (mut stdin, mut stdout) = ends.ok_or("no streams")?;
    fill(&mut stdin, BYTES).await?;
    stdin.shutdown().await?;
    stdout.read_u8().await?;
    let took = start.elapsed().as_secs_f64();
    child.wait().await?;
    Ok(took)
}

async fn stream_out(sandbox: &Sandbox) -> Result<f64> {
    let start = Instant::now();
    let mut command = sandbox.command("head");
    command
        .args(["-c", &BYTES.to_string(), "/dev/zero"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().await?;
    let mut stdout = child.stdout.take().ok_or("no stream")?;
    drain(&mut stdout, BYTES).await?;
    let took = start.elapsed().as_secs_f64();
    child.wait().await?;
    Ok(took)
}

async fn files_in(sandbox: &Sandbox, project: &Path) -> Result<f64> {
    sandbox.set_sync_paused(true).await?;
    let folder = project.join("large");
    fs::create_dir(&folder)?;
    let mut text = Vec::new();
    for file in 0..FILES {
        tree::noise(&mut text, (file, LENGTH))?;
        fs::write(folder.join(file.to_string()), &text)?;
    }
    let took = synchronized(sandbox).await?;
    let size = inside(sandbox, &format!("cat {}/* | wc -c", folder.display())).await?;
    if size.trim() != BYTES.to_string() {
        return Err("the files are not whole".into());
    }
    remove(sandbox, &folder).await?;
    Ok(took)
}

async fn files_out(sandbox: &Sandbox, project: &Path) -> Result<f64> {
    sandbox.set_sync_paused(true).await?;
    let folder = project.join("large");
    let line = format!(
        "mkdir {0}; for file in $(seq {FILES}); do head -c {LENGTH} /dev/urandom > {0}/$file; done; sync",
        folder.display()
    );
    inside(sandbox, &line).await?;
    let took = synchronized(sandbox).await?;
    for file in fs::read_dir(&folder)? {
        if file?.metadata()?.len() != LENGTH as u64 {
            return Err("the files are not whole".into());
        }
    }
    remove(sandbox, &folder).await?;
    Ok(took)
}

async fn synchronized(sandbox: &Sandbox) -> Result<f64> {
    let start = Instant::now();
    sandbox.set_sync_paused(false).await?;
    sandbox.sync().await?;
    Ok(start.elapsed().as_secs_f64())
}
