//! How fast are two folders made the same, and how fast do they stay so?
//!
//! Ours is measured twice: with its two halves in two processes and a pipe between them, and both in one process.
//! Our snapshots take a turn of their own. Beside them `rsync -a`, Unison, `cp -a` and `git add -A`, as far as they
//! are installed, and the floor: a walk that asks for the facts of every name, on all processors. All work on copies of the same tree and take turns in each
//! round; after each first copy the file system is flushed (`sync -f`), which is part of the figure.
//!
//! usage: folders [--rounds N] [--files N,N,…] [--large] [--folder DIR] [--only TEXT]
//!
//! `--large` adds a tree of 100,000 files; `--only` leaves out the contenders whose names do not contain the text.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

#[cfg(unix)]
mod contender;
#[cfg(unix)]
mod delta;
#[cfg(unix)]
mod latency;
#[cfg(unix)]
mod memory;
#[cfg(unix)]
mod ours;
#[cfg(unix)]
mod rivals;
#[cfg(unix)]
mod snapshots;
#[cfg(unix)]
mod table;
#[cfg(unix)]
mod tree;

use sandbox_benches::Result;

#[cfg(not(unix))]
fn main() -> Result<()> {
    Err("folders are synchronized only on Unix so far".into())
}

#[cfg(unix)]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let role = arguments.next_if(|word| !word.starts_with("--"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match role.as_deref() {
        None => runtime.block_on(run(&Options::read(arguments)?)),
        Some("serve") => runtime.block_on(ours::serve()),
        Some("memory") => {
            let [host, guest] = [arguments.next(), arguments.next()];
            let (host, guest) = host.zip(guest).ok_or("memory FOLDER FOLDER")?;
            runtime.block_on(memory::hold(host.as_ref(), guest.as_ref()))
        }
        Some(_) => Err("no such role".into()),
    }
}

/// What a person asked for.
#[cfg(unix)]
struct Options {
    rounds: usize,
    files: Vec<usize>,
    folder: std::path::PathBuf,
    only: String,
}

#[cfg(unix)]
impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            rounds: 3,
            files: vec![1_000, 20_000],
            folder: std::env::temp_dir(),
            only: String::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or("each option has a value");
            match argument.as_str() {
                "--large" => options.files.push(100_000),
                "--rounds" => options.rounds = value()?.parse()?,
                "--folder" => options.folder = value()?.into(),
                "--only" => options.only = value()?,
                "--files" => {
                    let numbers = value()?;
                    let numbers = numbers.split(',').filter(|number| !number.is_empty());
                    options.files = numbers
                        .map(str::parse)
                        .collect::<std::result::Result<_, _>>()?;
                }
                _ => return Err("see the top of benches/src/bin/folders/main.rs".into()),
            }
        }
        Ok(options)
    }
}

#[cfg(unix)]
async fn run(options: &Options) -> Result<()> {
    let place = tempfile::Builder::new()
        .prefix("sync-bench-")
        .tempdir_in(&options.folder)?;
    for files in &options.files {
        let mut table = table::Table::default();
        let source = tree::Spec::new(*files);
        for round in 0..options.rounds {
            let folder = place.path().join(format!("{files}-{round}"));
            contender::turns(&folder, &source, (&options.only, &mut table)).await?;
            eprintln!("{files} files, round {} of {}", round + 1, options.rounds);
        }
        println!("\n{files} files, {} MB\n", source.bytes() / 1_000_000);
        table.print();
    }
    let mut table = table::Table::default();
    let files = options.files.iter().copied().max().unwrap_or(1_000);
    latency::measure(&place.path().join("latency"), &mut table).await?;
    memory::measure(&place.path().join("memory"), (files, &mut table))?;
    delta::measure(&place.path().join("delta"), &mut table).await?;
    println!("\nBetween two processes\n");
    table.print();
    Ok(())
}
