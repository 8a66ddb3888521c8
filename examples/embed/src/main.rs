//! A harness in twenty lines: runs one command over a folder, in a microVM of its own.
//!
//! `embed FOLDER PROGRAM [ARGUMENT]…`

use sandbox_core::{Sandbox, Workspace};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(program)) = (arguments.next(), arguments.next()) else {
        return Err("usage: embed FOLDER PROGRAM [ARGUMENT]…".into());
    };
    let workspace = Workspace::sync(&folder);
    let sandbox = Sandbox::builder().workspace(workspace).create().await?;
    let mut command = sandbox.command(program);
    command.args(arguments).current_dir(&folder);
    let output = command.output().await?;
    sandbox.remove().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    std::process::exit(output.status.code().unwrap_or(1))
}
