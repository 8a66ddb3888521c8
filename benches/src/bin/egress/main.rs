//! What does a proxy cost, and how much does it carry?
//!
//! The client and this table are one process; the origin and every proxy are processes of their own. All take turns
//! in each round: no proxy at all, a bare CONNECT splice made of hyper and a copy loop (`splice.rs`), ours, and those
//! rivals whose programs were found; first with tunnels that stay closed, then with TLS opened by those who can.
//! Nothing leaves the loopback.
//!
//! usage: egress [--rounds N] [--seconds S] [--proxy FILE] [--squid FILE] [--mitmdump FILE] [--hudsucker FILE]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod captured;
mod client;
mod crowd;
mod origin;
mod rivals;
mod splice;
mod table;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sandbox_benches::Result;

use client::{Client, Way};
use origin::Origin;
use rivals::{Rival, Running};
use table::Table;

/// As many as the aim says.
const CLIENTS: usize = 32;
const LARGE: u64 = 64 << 20;
/// No contender's turn takes a tenth of it.
const TURN: Duration = Duration::from_secs(120);

struct Options {
    rounds: usize,
    seconds: u64,
    proxy: PathBuf,
    rivals: Vec<(Rival, PathBuf)>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let role = arguments.next_if(|word| !word.starts_with("--"));
    let Some(role) = role else {
        let options = read(arguments)?;
        return runtime()?.block_on(run(&options));
    };
    let argument = arguments.next().ok_or("a role has an argument")?;
    match role.as_str() {
        "origin" => runtime()?.block_on(origin::serve(argument.as_ref())),
        "splice" => splice::serve(argument.parse()?),
        "captured" => {
            let port = arguments.next().ok_or("captured ADDRESS PORT")?.parse()?;
            runtime()?.block_on(captured::serve(argument.parse()?, port))
        }
        _ => Err("no such role".into()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
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
    let ours = options.proxy.clone();
    let mut closed = vec![
        (Rival::Direct, PathBuf::new()),
        (Rival::Splice, std::env::current_exe()?),
        (Rival::Ours, ours.clone()),
        (Rival::OursLogged, ours.clone()),
        (Rival::OursCaptured, std::env::current_exe()?),
    ];
    closed.extend(options.rivals.iter().cloned());
    let mut table = Table::default();
    turns(options, &closed, (false, &origin, &mut table)).await?;
    table.print();
    let mut opened = vec![
        (Rival::Direct, PathBuf::new()),
        (Rival::OursInspecting, ours),
    ];
    for (rival, program) in &options.rivals {
        opened.extend(rival.inspecting().map(|rival| (rival, program.clone())));
    }
    let mut table = Table::default();
    turns(options, &opened, (true, &origin, &mut table)).await?;
    println!();
    table.print();
    let mut table = Table::default();
    for (rival, program) in &closed {
        if matches!(rival, Rival::Ours | Rival::Squid) {
            crowd::measure(&mut table, (*rival, program), &origin).await?;
        }
    }
    println!();
    table.print();
    Ok(())
}

/// Lets each contender take its turn in each round, with TLS that stays closed or is opened.
async fn turns(
    options: &Options,
    contenders: &[(Rival, PathBuf)],
    (opened, origin, table): (bool, &Origin, &mut Table),
) -> Result<()> {
    for round in 0..options.rounds {
        for (rival, program) in contenders {
            let turn = turn(options, (*rival, program, opened), (origin, table));
            let result = tokio::time::timeout(TURN, turn).await;
            let word = match result {
                Ok(done) => done.map(|()| "")?,
                // What it did before that counts.
                Err(_) if rival.is_foreign() => ", which stalled",
                Err(_) => return Err(format!("{rival} stalled").into()),
            };
            eprintln!("round {} of {}: {rival}{word}", round + 1, options.rounds);
        }
    }
    Ok(())
}

/// Starts a contender and measures it.
async fn turn(
    options: &Options,
    (rival, program, opened): (Rival, &Path, bool),
    (origin, table): (&Origin, &mut Table),
) -> Result<()> {
    let running = Running::start(rival, program, origin).await?;
    let client = Client::new(origin, (running.address, rival.way()))?;
    over_tls(&client, table, (rival, options.seconds)).await?;
    if opened {
        fresh_hosts(&client, table, rival).await?;
    } else if rival.way() == Way::Asking {
        plain(&client, table, (rival, options.seconds)).await?;
    }
    Ok(())
}

async fn over_tls(
    client: &Client,
    table: &mut Table,
    (rival, seconds): (Rival, u64),
) -> Result<()> {
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
    Ok(())
}

/// Connects to many hosts once: each needs a certificate of its own.
async fn fresh_hosts(client: &Client, table: &mut Table, rival: Rival) -> Result<()> {
    let first = client.first_connections().await?;
    let what = "first TLS connection to a host, median";
    table.add(what, "ms", (rival, first.quantile(0.5)));
    Ok(())
}

async fn plain(client: &Client, table: &mut Table, (rival, seconds): (Rival, u64)) -> Result<()> {
    let plain = client.plain(CLIENTS, Duration::from_secs(seconds)).await?;
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
