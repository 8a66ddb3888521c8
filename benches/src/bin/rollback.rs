//! For how long does a guest stand still while it is saved, and how soon is it back?
//!
//! A sandbox that does nothing, and one that writes to its memory without end, are saved and taken back. The floor of
//! the way back is a new sandbox of the same kind, from its template to a command's first byte: all that a start
//! does, on memory that nobody has used.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_benches::options::Options;
use sandbox_benches::place::{Place, first_byte};
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::Outside;

/// Fills 64 MiB of memory again and again.
const BUSY: &str =
    "while :; do for n in 1 2 3 4; do head -c 16777216 /dev/urandom >/dev/shm/$n; done; done";

/// How long a guest works before it is saved.
const WORK: Duration = Duration::from_secs(8);

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 5)?;
    let place = Place::new(&options)?;
    // The first one saves the template.
    place.sandbox().create().await?.remove().await?;
    let (mut idle, mut busy) = (rows("idle"), rows("writing to its memory"));
    for round in 0..options.rounds {
        for (rows, script) in [(&mut idle, "sleep 1000"), (&mut busy, BUSY)] {
            measure(&place, rows, script).await?;
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    report::print("Rollback", &[idle, busy].concat(), options.json);
    Ok(())
}

fn rows(which: &str) -> Vec<Row> {
    vec![
        Row::new(format!("{which}: stood still"), "ms", Aim::Below(50.0)),
        Row::new(format!("{which}: whole snapshot"), "s", Aim::None),
        Row::new(format!("{which}: snapshot on the disk"), "MiB", Aim::None),
        Row::new(
            format!("{which}: back, to a first byte"),
            "s",
            Aim::AtMost(5.0),
        ),
    ]
}

async fn measure(place: &Place, rows: &mut [Row], script: &str) -> Result<()> {
    let start = Instant::now();
    let sandbox = place.sandbox().create().await?;
    first_byte(&sandbox).await?;
    let created = start.elapsed().as_secs_f64();
    let mut command = sandbox.command("sh");
    let working = command.arg("-c").arg(script).spawn().await?;
    tokio::time::sleep(WORK).await;

    let start = Instant::now();
    let taken = sandbox.snapshot("a").await?;
    let whole = start.elapsed().as_secs_f64();
    let start = Instant::now();
    sandbox.rollback("a", Outside::Keep).await?;
    first_byte(&sandbox).await?;
    let back = start.elapsed().as_secs_f64();
    drop(working);
    sandbox.remove().await?;

    let ours = [
        taken.stopped_ms as f64,
        whole,
        (taken.bytes >> 20) as f64,
        back,
    ];
    for (row, value) in rows.iter_mut().zip(ours) {
        row.ours.push(value);
    }
    if let Some(row) = rows.last_mut() {
        row.floor.push(created);
    }
    Ok(())
}
