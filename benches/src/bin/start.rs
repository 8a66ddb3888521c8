//! How long from the start of a process to the first byte of a command in a new microVM?
//!
//! Ours: this program again, which makes a sandbox as the README shows, runs a command that says one
//! word, and writes the word's first byte to its own standard output. The floor: a bare QEMU to the first
//! byte of its first process. Both cold; then the same restored from a template, which has no floor of its own
//! yet.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_benches::floor::Floor;
use sandbox_benches::marks::Marks;
use sandbox_benches::options::Options;
use sandbox_benches::place::Place;
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::{Dirs, Sandbox, Templates};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// The first argument of the process that is measured.
const ONE: &str = "one-start";

/// The last argument of one that boots.
const COLD: &str = "cold";

/// The stages of a start: the diagnostic that ends each, and what it is.
const STAGES: [(&str, &str); 5] = [
    ("QEMU runs", "state, disk, QEMU's start"),
    ("the guest answers", "kernel, or state, and agent"),
    ("the guest is prepared", "root, mounts, limits"),
    ("created", "egress, workspaces, record"),
    ("first byte", "the command"),
];

fn main() -> Result<()> {
    let marks = std::env::args()
        .nth(1)
        .is_some_and(|one| one == ONE)
        .then(Marks::install);
    let runtime = tokio::runtime::Runtime::new()?;
    match marks {
        Some(marks) => runtime.block_on(one(&marks)),
        None => runtime.block_on(compare()),
    }
}

async fn compare() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 7)?;
    let place = Place::new(&options)?;
    let floor = Floor::new(&place).await?;
    let port_only = Floor::with_port_only(&place).await?;
    let mut start = Row::new("process start to first byte", "s", Aim::AtMost(1.15));
    let mut bare = Row::new("the same, floor without disk drivers", "s", Aim::None);
    let stages = || STAGES.map(|(_, name)| Row::new(format!("of it: {name}"), "s", Aim::None));
    let mut restored = Row::new("restored: process start to first byte", "s", Aim::None);
    let (mut cold_stages, mut restored_stages) = (stages(), stages());
    // The first one saves the template.
    ours(&place.dirs, Templates::Use).await?;
    for round in 0..options.rounds {
        for (floor, row) in [(&floor, &mut start), (&port_only, &mut bare)] {
            let running = floor.start().await?;
            row.floor.push(running.first_byte.as_secs_f64());
            running.end().await?;
        }
        let (whole, parts) = ours(&place.dirs, Templates::Off).await?;
        start.ours.push(whole.as_secs_f64());
        bare.ours.push(whole.as_secs_f64());
        for (row, part) in cold_stages.iter_mut().zip(parts) {
            row.ours.push(part);
        }
        let (whole, parts) = ours(&place.dirs, Templates::Use).await?;
        restored.ours.push(whole.as_secs_f64());
        for (row, part) in restored_stages.iter_mut().zip(parts) {
            row.ours.push(part);
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    let mut rows = vec![start, bare];
    rows.extend(cold_stages);
    rows.push(restored);
    rows.extend(restored_stages);
    report::print("Start", &rows, options.json);
    Ok(())
}

/// Starts the process that is measured; returns the time to its first byte, and its own stages.
async fn ours(dirs: &Dirs, templates: Templates) -> Result<(Duration, Vec<f64>)> {
    let start = Instant::now();
    let mut process = tokio::process::Command::new(std::env::current_exe()?)
        .arg(ONE)
        .arg(serde_json::to_string(dirs)?)
        .args((templates == Templates::Off).then_some(COLD))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(process.stdout.take().ok_or("no pipe")?);
    stdout.read_u8().await?;
    let whole = start.elapsed();
    let mut line = String::new();
    stdout.read_line(&mut line).await?;
    stdout.read_to_string(&mut line).await?;
    let parts = serde_json::from_str(&line)?;
    match process.wait().await?.success() {
        true => Ok((whole, parts)),
        false => Err("the measured process failed".into()),
    }
}

/// What a harness does, no more.
async fn one(marks: &Marks) -> Result<()> {
    use std::io::Write;
    let dirs: Dirs = serde_json::from_str(&std::env::args().nth(2).ok_or("no folders")?)?;
    let templates = match std::env::args().nth(3).is_some_and(|word| word == COLD) {
        true => Templates::Off,
        false => Templates::Use,
    };
    let builder = Sandbox::builder().dirs(dirs).templates(templates);
    let sandbox = builder.create().await?;
    marks.add("created");
    let mut command = sandbox.command("/bin/echo");
    command.arg("hello").stdout(sandbox_core::Stdio::piped());
    let mut child = command.spawn().await?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    let mut first = [0; 1];
    stdout.read_exact(&mut first).await?;
    std::io::stdout().write_all(&first)?;
    std::io::stdout().flush()?;
    marks.add("first byte");
    drop(stdout);
    child.wait().await?;
    sandbox.remove().await?;
    let mut last = Duration::ZERO;
    let parts = STAGES.map(|(mark, _)| {
        let at = marks.at(mark).unwrap_or(last);
        let part = at.saturating_sub(last);
        last = at;
        part.as_secs_f64()
    });
    print!("{}", serde_json::to_string(&parts)?);
    Ok(())
}
