//! How soon do copies of a running sandbox go on, and what does each cost?
//!
//! A sandbox that has worked is copied once and ten times. The floor is a new sandbox of the same kind, from its
//! template to a command's first byte. With `SANDBOX_BENCH_COPIES` there are as many copies in the end, which do
//! nothing, and what they take of processor and memory is told.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_benches::options::Options;
use sandbox_benches::place::{Place, first_byte};
use sandbox_benches::process::{memory, processor_time};
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::Sandbox;

/// How many copies there are of one at once.
const MANY: usize = 10;

/// How many at a time, where there are to be more.
const AT_ONCE: usize = 10;

/// For how long copies do nothing.
const IDLE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 5)?;
    let place = Place::new(&options)?;
    let processors = std::thread::available_parallelism()?.get() as f64;
    // The first one saves the template.
    place.sandbox().create().await?.remove().await?;
    let mut rows = [
        Row::new("one copy, to a first byte", "s", Aim::AtMost(5.0)),
        Row::new(
            format!(
                "{MANY} copies, to the last one's first byte, beside {MANY} / processors × one"
            ),
            "s",
            Aim::AtMost(1.5),
        ),
        Row::new("an idle copy's own memory", "MiB", Aim::Below(60.0)),
    ];
    for round in 0..options.rounds {
        let start = Instant::now();
        let sandbox = place.sandbox().create().await?;
        first_byte(&sandbox).await?;
        rows[0].floor.push(start.elapsed().as_secs_f64());

        let start = Instant::now();
        let copies = copy(&sandbox, 1).await?;
        let one = start.elapsed().as_secs_f64();
        rows[0].ours.push(one);
        remove(copies).await?;

        let start = Instant::now();
        let copies = copy(&sandbox, MANY).await?;
        rows[1].ours.push(start.elapsed().as_secs_f64());
        rows[1].floor.push(MANY as f64 / processors * one);
        rows[2].ours.push(own_memory(&copies).await?);
        remove(copies).await?;
        sandbox.remove().await?;
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    report::print("Fork", &rows, options.json);
    if let Ok(count) = std::env::var("SANDBOX_BENCH_COPIES") {
        report::print("Many", &many(&place, count.parse()?).await?, options.json);
    }
    Ok(())
}

/// Has many copies do nothing, and then each of them something.
async fn many(place: &Place, count: usize) -> Result<Vec<Row>> {
    let sandbox = place.sandbox().create().await?;
    first_byte(&sandbox).await?;
    let mut copies = Vec::new();
    let start = Instant::now();
    while copies.len() < count {
        let next = AT_ONCE.min(count - copies.len());
        copies.extend(copy(&sandbox, next).await?);
        eprintln!("{} of {count}", copies.len());
    }
    let made = start.elapsed().as_secs_f64();
    let used =
        |pids: &[u32]| -> Result<Duration> { pids.iter().map(|pid| processor_time(*pid)).sum() };
    let pids = pids(&copies).await?;
    let (before, start) = (used(&pids)?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let idle = used(&pids)?.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for copy in &copies {
        first_byte(copy).await?;
    }
    let each = start.elapsed().as_secs_f64() / count as f64;
    let own = own_memory(&copies).await?;
    let values = [
        ("made, to their first bytes", "s", made),
        ("idle, all of them", "% of a processor", idle * 100.0),
        ("a command in each, after another", "ms each", each * 1000.0),
        ("own memory, each", "MiB", own),
        ("own memory, all", "GiB", own * count as f64 / 1024.0),
    ];
    remove(copies).await?;
    sandbox.remove().await?;
    let rows = values.map(|(what, unit, value)| {
        let mut row = Row::new(format!("{count} copies: {what}"), unit, Aim::None);
        row.ours.push(value);
        row
    });
    Ok(rows.into())
}

/// Makes copies, and waits until each has said something.
async fn copy(sandbox: &Sandbox, count: usize) -> Result<Vec<Sandbox>> {
    let copies = sandbox.fork(count).await?;
    let spoken = copies.iter().map(first_byte);
    for said in futures::future::join_all(spoken).await {
        said?;
    }
    Ok(copies)
}

async fn remove(copies: Vec<Sandbox>) -> Result<()> {
    for copy in copies {
        copy.remove().await?;
    }
    Ok(())
}

async fn pids(copies: &[Sandbox]) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for copy in copies {
        let machine = copy.describe().await?.machine.ok_or("it does not run")?;
        pids.push(machine.pid.ok_or("no process")?);
    }
    Ok(pids)
}

/// Returns what a copy has in memory that no other has, in MiB.
async fn own_memory(copies: &[Sandbox]) -> Result<f64> {
    let mut all = 0.0;
    for pid in pids(copies).await? {
        all += memory(pid)?.private;
    }
    Ok(all / copies.len() as f64)
}
