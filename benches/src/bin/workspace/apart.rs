//! The same between two processes of the host: the floor of what a machine adds.

use std::path::Path;
use std::process::Stdio;

use sandbox_benches::Result;
use sandbox_core::sync::{Options, Session, guest};
use tokio::io::{join, stdin, stdout};
use tokio::process::{Child, Command};

/// The argument that makes this program the half that keeps the copy.
pub(crate) const SERVE: &str = "serve";

/// A session whose other half is another process, which ends when this is dropped.
pub(crate) struct Apart {
    _session: Session,
    _child: Child,
}

impl Apart {
    /// Opens one, which makes the first copy.
    pub(crate) async fn start(tree: &Path, copy: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (input, output) = ends.ok_or("no pipes")?;
        let options = Options::default().with_guest_root(copy);
        let session = Session::start(tree, Box::new(join(output, input)), options).await?;
        Ok(Self {
            _session: session,
            _child: child,
        })
    }
}

/// Keeps the copy.
pub(crate) async fn serve() -> Result<()> {
    let stream = join(stdin(), stdout());
    Ok(guest::serve(Box::new(stream), guest::Options::default()).await?)
}
