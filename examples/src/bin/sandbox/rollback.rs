//! `snapshot create`, `ls`, `rm`, and `restore`: whole sandboxes as they were, with what runs in them.

use std::time::{Duration, UNIX_EPOCH};

use sandbox_core::{Dirs, Outside, Sandbox, SandboxSnapshot};

use crate::cli::{MachineSnapshot, Restore};
use crate::failure::Failure;
use crate::list::age;
use crate::output::{self, QUIET, styled};

/// Takes, lists or removes snapshots of a sandbox.
pub(crate) async fn snapshot(dirs: &Dirs, verb: MachineSnapshot) -> Result<u8, Failure> {
    let connect = |name: String| Sandbox::connect_in(dirs.clone(), name);
    match verb {
        MachineSnapshot::Create(arguments) => {
            let sandbox = connect(arguments.name).await?;
            let taken = sandbox.snapshot(&arguments.snapshot).await?;
            output::print(line(&taken).as_bytes())?;
        }
        MachineSnapshot::Ls(arguments) => {
            let listed = connect(arguments.name).await?.snapshots().await?;
            if arguments.json {
                let json = serde_json::to_value(&listed);
                output::print_json(&json.map_err(|error| Failure::from_error(&error))?)?;
            } else {
                output::print(listed.iter().map(line).collect::<String>().as_bytes())?;
            }
        }
        MachineSnapshot::Rm(arguments) => {
            let sandbox = connect(arguments.name).await?;
            sandbox.remove_snapshot(&arguments.snapshot).await?;
        }
    }
    Ok(0)
}

/// Takes a sandbox back to a snapshot.
pub(crate) async fn restore(dirs: &Dirs, arguments: Restore) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), arguments.name).await?;
    let outside = match arguments.workspaces {
        true => Outside::Restore,
        false => Outside::Keep,
    };
    sandbox.rollback(&arguments.snapshot, outside).await?;
    Ok(0)
}

fn line(one: &SandboxSnapshot) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(one.created);
    let age = age(at.elapsed().unwrap_or_default());
    let about = format!(
        "{} MiB, stood still for {} ms, {age} ago",
        one.bytes >> 20,
        one.stopped_ms
    );
    format!("{}  {}\n", one.name, styled(QUIET, about))
}
