//! How long does a command take in a sandbox that runs?
//!
//! Ours: from the call to the exit status of a static program that does nothing. The floor: the guest's
//! own fork, exec and wait of the same program, measured inside the same guest.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::time::Instant;

use sandbox_benches::Result;
use sandbox_benches::options::Options;
use sandbox_benches::place::Place;
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::{Sandbox, Stdio};

/// Where the program is inside.
const PROGRAM: &str = "/usr/local/bin/floor-init";

/// How often each side runs it in one round.
const PER_ROUND: usize = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 10)?;
    let place = Place::new(&options)?;
    let sandbox = place.sandbox().create().await?;
    sandbox.copy_in(&place.floor_init, PROGRAM).await?;
    let aim = Aim::AtMostOrAbove(1.5, 5.0);
    let mut silent = Row::new("exec and wait", "ms", aim);
    let mut output = Row::new("exec and all output", "ms", aim);
    for round in 0..=options.rounds {
        let floor = inside(&sandbox).await?;
        let (mut quiet, mut read) = (Vec::new(), Vec::new());
        for _ in 0..PER_ROUND {
            quiet.push(once(&sandbox, false).await?);
            read.push(once(&sandbox, true).await?);
        }
        // The first round warms both sides up.
        if round > 0 {
            silent.floor.extend(report::median(&floor));
            output.floor.extend(report::median(&floor));
            silent.ours.extend(report::median(&quiet));
            output.ours.extend(report::median(&read));
            eprintln!("round {round} of {}", options.rounds);
        }
    }
    sandbox.remove().await?;
    report::print("Command round trip", &[silent, output], options.json);
    Ok(())
}

/// Milliseconds that fork, exec and wait took inside, one by one.
async fn inside(sandbox: &Sandbox) -> Result<Vec<f64>> {
    let rounds = PER_ROUND.to_string();
    let told = sandbox
        .command(PROGRAM)
        .args(["loop", &rounds])
        .output()
        .await?;
    let text = String::from_utf8(told.stdout)?;
    text.lines()
        .map(|line| Ok(line.parse::<f64>()? / 1e6))
        .collect()
}

/// Milliseconds that one command took from here.
async fn once(sandbox: &Sandbox, output: bool) -> Result<f64> {
    let mut command = sandbox.command(PROGRAM);
    command.arg("true");
    let start = Instant::now();
    let status = if output {
        command.output().await?.status
    } else {
        let null = Stdio::null();
        command.stdout(null).stderr(null).status().await?
    };
    let took = start.elapsed();
    match status.success() {
        true => Ok(took.as_secs_f64() * 1e3),
        false => Err(format!("the program ended with {status}").into()),
    }
}
