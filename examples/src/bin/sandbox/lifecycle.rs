//! `stop` and `rm`.

use sandbox_core::{Dirs, Sandbox, State};

use crate::cli;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::progress::Waiting;

/// Stops sandboxes; each is tried, whatever becomes of the others.
pub(crate) async fn stop(dirs: &Dirs, arguments: &cli::Stop) -> Result<u8, Failure> {
    let mut status = 0;
    for name in &arguments.names {
        let stopped = async {
            let _waiting = Waiting::on("stopping the sandbox");
            let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
            sandbox.stop().await.map_err(Failure::from)
        };
        status = status.max(told(name, stopped.await)?);
    }
    Ok(status)
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
