//! `pause`, `resume`, `stop`, `rm` and `fork`.

use sandbox_core::{Dirs, Error, Sandbox, State};

use crate::cli;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::progress::Waiting;

/// Pauses sandboxes.
pub(crate) async fn pause(dirs: &Dirs, names: &cli::Names) -> Result<u8, Failure> {
    let pause = async |sandbox: Sandbox| sandbox.pause().await;
    each(dirs, names, ("pausing the sandbox", pause)).await
}

/// Has paused sandboxes go on.
pub(crate) async fn resume(dirs: &Dirs, names: &cli::Names) -> Result<u8, Failure> {
    let resume = async |sandbox: Sandbox| sandbox.resume().await;
    each(dirs, names, ("resuming the sandbox", resume)).await
}

/// Stops sandboxes.
pub(crate) async fn stop(dirs: &Dirs, names: &cli::Names) -> Result<u8, Failure> {
    let stop = async |sandbox: Sandbox| sandbox.stop().await;
    each(dirs, names, ("stopping the sandbox", stop)).await
}

/// Does one thing to sandboxes; each is tried, whatever becomes of the others.
async fn each(
    dirs: &Dirs,
    names: &cli::Names,
    (doing, what): (&'static str, impl AsyncFn(Sandbox) -> Result<(), Error>),
) -> Result<u8, Failure> {
    let mut status = 0;
    for name in &names.names {
        let done = async {
            let _waiting = Waiting::on(doing);
            let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
            what(sandbox).await.map_err(Failure::from)
        };
        status = status.max(told(name, done.await)?);
    }
    Ok(status)
}

/// Makes copies of a sandbox, and prints their names.
pub(crate) async fn fork(dirs: &Dirs, arguments: cli::Fork) -> Result<u8, Failure> {
    let waiting = Waiting::on("copying the sandbox");
    let sandbox = Sandbox::connect_in(dirs.clone(), arguments.name).await?;
    let copies = match arguments.copies.is_empty() {
        true => sandbox.fork(usize::from(arguments.count)).await?,
        false => sandbox.fork_named(arguments.copies).await?,
    };
    drop(waiting);
    let names = copies.iter().map(|copy| format!("{}\n", copy.name()));
    output::print(names.collect::<String>().as_bytes())?;
    Ok(0)
}

/// Removes sandboxes; each is tried, whatever becomes of the others.
pub(crate) async fn remove(dirs: &Dirs, arguments: &cli::Remove) -> Result<u8, Failure> {
    let names = if arguments.all {
        let all = Sandbox::list_in(dirs.clone()).await?;
        all.into_iter().map(|one| one.name).collect()
    } else {
        arguments.names.clone()
    };
    let mut status = 0;
    for name in &names {
        let removed = remove_one(dirs, name, arguments.force).await;
        status = status.max(told(name, removed)?);
    }
    Ok(status)
}

async fn remove_one(dirs: &Dirs, name: &str, force: bool) -> Result<(), Failure> {
    let _waiting = Waiting::on("removing the sandbox");
    let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
    if !force && sandbox.describe().await?.state != State::Stopped {
        return Err(Failure::new(
            format!("remove the sandbox {name}"),
            "it runs; stop it first, or use -f",
        ));
    }
    Ok(sandbox.remove().await?)
}

/// Prints the name of what was done, or says why it was not.
fn told(name: &str, done: Result<(), Failure>) -> Result<u8, Failure> {
    match done {
        Ok(()) => output::print(format!("{name}\n").as_bytes()).map(|()| 0),
        Err(failure) => {
            failure.tell();
            Ok(FAILED)
        }
    }
}
