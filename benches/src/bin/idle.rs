//! What does a sandbox cost that does nothing?
//!
//! The memory and processor time of its QEMU beside those of a bare QEMU whose first process waits for
//! the port, and the same of the processes around it (watchdog).

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::time::Duration;

use sandbox_benches::Result;
use sandbox_benches::floor::Floor;
use sandbox_benches::options::Options;
use sandbox_benches::place::Place;
use sandbox_benches::process::{memory, processor_time};
use sandbox_benches::report::{self, Aim, Row};

/// How long both are watched in each round, at the same time: they disturb each other equally.
const WATCH: Duration = Duration::from_secs(20);

/// How long both are left alone before the first look.
const SETTLE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 3)?;
    let place = Place::new(&options)?;
    let floor = Floor::new(&place).await?.start().await?;
    let sandbox = place.sandbox().create().await?;
    let machine = sandbox.describe().await?.machine.ok_or("no machine")?;
    let ours = machine.pid.ok_or("no process")?;
    let theirs = floor.process.id().ok_or("the floor has ended")?;
    let mut cpu = Row::new("processor time", "ms/s", Aim::AtMost(1.0));
    let mut private = Row::new("private memory", "MiB", Aim::None);
    let mut shared = Row::new("shared memory", "MiB", Aim::None);
    tokio::time::sleep(SETTLE).await;
    for round in 0..options.rounds {
        let before = (processor_time(theirs)?, processor_time(ours)?);
        tokio::time::sleep(WATCH).await;
        let used = |before: Duration, pid| -> Result<f64> {
            let used = processor_time(pid)?.saturating_sub(before);
            Ok(used.as_secs_f64() * 1e3 / WATCH.as_secs_f64())
        };
        cpu.floor.push(used(before.0, theirs)?);
        cpu.ours.push(used(before.1, ours)?);
        let (floors, own) = (memory(theirs)?, memory(ours)?);
        private.floor.push(floors.private);
        private.ours.push(own.private);
        shared.floor.push(floors.shared);
        shared.ours.push(own.shared);
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    floor.end().await?;
    sandbox.remove().await?;
    report::print("An idle sandbox", &[cpu, private, shared], options.json);
    Ok(())
}
