//! What does a proxy cost, and how much does it carry?
//!
//! The client, the origin and this table are one process; every proxy is a process of its own. All take turns in
//! each round: no proxy at all, a bare CONNECT splice made of hyper and a copy loop (`splice.rs`), ours, and those
//! rivals whose programs were found. Nothing leaves the loopback.
//!
//! usage: egress [--rounds N] [--seconds S] [--proxy FILE] [--squid FILE] [--mitmdump FILE] [--hudsucker FILE]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod client;
mod crowd;
mod origin;
mod rivals;
mod splice;
mod table;

use std::{path::PathBuf, time::Duration};

use sandbox_benches::Result;

use client::Client;
use origin::Origin;
use rivals::{Rival, Running};
use table::Table;

/// As many as the aim says.
const CLIENTS: usize = 32;
const LARGE: u64 = 64 << 20;

struct Options {
    rounds: usize,
    seconds: u64,
    proxy: PathBuf,
    rivals: Vec<(Rival, PathBuf)>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|word| word == "splice") {
        let address = arguments.nth(1).ok_or("splice ADDRESS")?.parse()?;
        return splice::serve(address);
    }
    let options = read(arguments)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(&options))
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let beside = std::env::current_exe()?.with_file_name("egress-proxy");
    let mut options = Options {
        rounds: 3,
        seconds: 2,
        proxy: beside,
        rivals: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or("each option has a value")?;
        match argument.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--proxy" => options.proxy = value.into(),
            "--squid" => options.rivals.push((Rival::Squid, value.into())),
            "--mitmdump" => options.rivals.push((Rival::Mitmproxy, value.into())),
            "--hudsucker" => options.rivals.push((Rival::Hudsucker, value.into())),
            _ => return Err("see the top of benches/src/bin/egress/main.rs".into()),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<()> {
    crowd::raise_descriptors();
    let origin = Origin::start().await?;
    let mut contenders = vec![
        (Rival::Direct, PathBuf::new()),
        (Rival::Splice, std::env::current_exe()?),
        (Rival::Ours, options.proxy.clone()),
        (Rival::OursLogged, options.proxy.clone()),
    ];
    contenders.extend(options.rivals.iter().cloned());
    let mut table = Table::default();
    for round in 0..options.rounds {
        for (rival, program) in &contenders {
            let running = Running::start(*rival, program, &origin).await?;
            let client = Client::new(&origin, running.address)?;
            measure(&client, &mut table, (*rival, options.seconds)).await?;
            eprintln!("round {} of {}: {rival}", round + 1, options.rounds);
        }
    }
    table.print();
    let mut table = Table::default();
    for (rival, program) in &contenders {
        if matches!(rival, Rival::Ours | Rival::Squid) {
            crowd::measure(&mut table, (*rival, program), &origin).await?;
        }
    }
    println!();
    table.print();
    Ok(())
}

async fn measure(client: &Client, table: &mut Table, (rival, seconds): (Rival, u64)) -> Result<()> {
    let time = Duration::from_secs(seconds);
    let load = client.tunnels(CLIENTS, time).await?;
    table.add("HTTPS, 32 clients", "requests/s", (rival, load.rate()));
    table.add("HTTPS, 32 clients, p99", "ms", (rival, load.quantile(0.99)));
    let alone = client.tunnels(1, time / 2).await?;
    table.add(
        "HTTPS, 1 client, median",
        "ms",
        (rival, alone.quantile(0.5)),
    );
    table.add("HTTPS, 1 client, p99", "ms", (rival, alone.quantile(0.99)));
    let fresh = client.connections(time / 2).await?;
    table.add(
        "new TLS connection, median",
        "ms",
        (rival, fresh.quantile(0.5)),
    );
    let rate = client.large(4).await?;
    table.add("64 MiB over HTTPS", "MB/s", (rival, rate));
    let plain = client.plain(CLIENTS, time).await?;
    table.add(
        "plain HTTP, 32 clients",
        "requests/s",
        (rival, plain.rate()),
    );
    table.add(
        "plain HTTP, 32 clients, p99",
        "ms",
        (rival, plain.quantile(0.99)),
    );
    Ok(())
}
