//! How fast do bytes get out of a command, and into one?
//!
//! Ours: a command's standard output and input. The floor: the same program's zeros through a pipe and
//! `cat` to the virtio-serial port of a bare QEMU, and the same way back.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_benches::floor::{Floor, drain, fill};
use sandbox_benches::options::Options;
use sandbox_benches::place::Place;
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::{Sandbox, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where the program is inside.
const PROGRAM: &str = "/usr/local/bin/floor-init";

/// How much goes out in one round, and how much in, which is slower: the guest's driver takes pages.
const OUT: u64 = 256 << 20;
const IN: u64 = 64 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 5)?;
    let place = Place::new(&options)?;
    let mut floor = Floor::new(&place).await?.start().await?;
    let sandbox = place.sandbox().create().await?;
    sandbox.copy_in(&place.floor_init, PROGRAM).await?;
    let mut out = Row::new("standard output", "MiB/s", Aim::AtLeast(0.8));
    let mut into = Row::new("standard input", "MiB/s", Aim::AtLeast(0.8));
    for round in 0..options.rounds {
        out.floor.push(rate(OUT, floor.output(OUT).await?));
        out.ours.push(rate(OUT, output(&sandbox).await?));
        into.floor.push(rate(IN, floor.input(IN).await?));
        into.ours.push(rate(IN, input(&sandbox).await?));
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    floor.end().await?;
    sandbox.remove().await?;
    report::print("Throughput of streams", &[out, into], options.json);
    Ok(())
}

async fn output(sandbox: &Sandbox) -> Result<Duration> {
    let start = Instant::now();
    let mut command = sandbox.command(PROGRAM);
    command
        .args(["zeros", &OUT.to_string()])
        .stdout(Stdio::piped());
    let mut child = command.spawn().await?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    drain(&mut stdout, OUT).await?;
    let took = start.elapsed();
    child.wait().await?;
    Ok(took)
}

async fn input(sandbox: &Sandbox) -> Result<Duration> {
    let start = Instant::now();
    let mut command = sandbox.command(PROGRAM);
    command
        .args(["sink", &IN.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().await?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    fill(&mut stdin, IN).await?;
    stdin.shutdown().await?;
    // It says how much it read once it has read it all.
    stdout.read_u8().await?;
    let took = start.elapsed();
    drop(stdout);
    child.wait().await?;
    Ok(took)
}

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / took.as_secs_f64()
}
