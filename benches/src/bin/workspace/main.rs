//! How fast is a workspace that is synchronized into a microVM?
//!
//! One machine, in turns: a tree copied in, beside a tar of the same tree that the same guest unpacks from a disk;
//! large files either way, beside the raw stream of a command; a file saved on one side until its bytes are on the
//! other, beside the same between two processes of the host; a thousand files at once; nothing.
//!
//! usage: workspace [--rounds N] [--json] [--cache DIR]
//!
//! `SANDBOX_BENCH_FILES` names other sizes of trees than `1000,20000`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

#[cfg(unix)]
mod apart;
#[cfg(unix)]
mod first;
#[cfg(unix)]
mod inside;
#[cfg(unix)]
mod large;
#[cfg(unix)]
mod latency;
#[cfg(unix)]
mod tree;

use sandbox_benches::Result;

#[cfg(not(unix))]
fn main() -> Result<()> {
    Err("folders are synchronized only on Unix so far".into())
}

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<()> {
    use sandbox_benches::{options::Options, place::Place, report};
    use sandbox_core::Workspace;

    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|word| word == apart::SERVE) {
        return apart::serve().await;
    }
    let options = Options::from_arguments(arguments, 3)?;
    let sizes = std::env::var("SANDBOX_BENCH_FILES").unwrap_or_else(|_| "1000,20000".into());
    let sizes: Vec<usize> = sizes
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;

    let place = Place::new(&options)?;
    let folder = tempfile::Builder::new().prefix("workspace-").tempdir()?;
    let project = folder.path().join("project");
    std::fs::create_dir(&project)?;
    let project = project.canonicalize()?;
    let disk = first::disk(folder.path(), &sizes)?;
    let sandbox = place
        .sandbox()
        .workspace(Workspace::sync(&project))
        .disk(disk)
        .create()
        .await?;
    let mut rows = Vec::new();
    for files in &sizes {
        rows.push(first::measure(&sandbox, (&project, *files), options.rounds).await?);
    }
    rows.extend(large::measure(&sandbox, &project, options.rounds).await?);
    let most = sizes.iter().copied().max().unwrap_or(0);
    rows.extend(latency::measure(&sandbox, (&project, folder.path()), most).await?);
    sandbox.remove().await?;
    report::print("A workspace in a microVM", &rows, options.json);
    Ok(())
}
