//! Our two halves, in two processes or in one.

use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use sandbox_benches::Result;
use sandbox_core::sync::{Options, Session, guest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, join, stdin, stdout};
use tokio::process::{Child, Command};

/// Where the half is that keeps the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halves {
    /// In a process of its own, behind a pipe.
    Apart,
    /// In this one.
    Together,
}

impl Halves {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Apart => "ours",
            Self::Together => "ours, in process",
        }
    }
}

/// A running session and what has gone over its stream.
pub(crate) struct Ours {
    pub(crate) session: Session,
    pub(crate) moved: Arc<AtomicU64>,
    child: Option<Child>,
}

impl Ours {
    /// Starts a session, which makes the first copy.
    pub(crate) async fn start(tree: &Path, copy: &Path, halves: Halves) -> Result<Self> {
        Self::start_with(tree, halves, Options::default().with_guest_root(copy)).await
    }

    /// Starts one that looks at everything in each cycle.
    pub(crate) async fn start_without_watch(
        tree: &Path,
        copy: &Path,
        halves: Halves,
    ) -> Result<Self> {
        let options = Options::default().with_guest_root(copy).with_watch(false);
        Self::start_with(tree, halves, options).await
    }

    async fn start_with(tree: &Path, halves: Halves, options: Options) -> Result<Self> {
        let moved = Arc::new(AtomicU64::new(0));
        let (stream, child): (Box<dyn Stream>, _) = match halves {
            Halves::Together => {
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                tokio::spawn(guest::serve(Box::new(theirs), guest::Options::default()));
                (Box::new(ours), None)
            }
            Halves::Apart => {
                let mut child = Command::new(std::env::current_exe()?)
                    .arg("serve")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()?;
                let (input, output) = (child.stdin.take(), child.stdout.take());
                let (input, output) = input.zip(output).ok_or("no pipes")?;
                (Box::new(join(output, input)), Some(child))
            }
        };
        let counted = Counted(stream, moved.clone());
        let session = Session::start(tree, Box::new(counted), options).await?;
        Ok(Self {
            session,
            moved,
            child,
        })
    }

    /// The process of the other half.
    pub(crate) fn child(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.session.stop().await?;
        if let Some(mut child) = self.child {
            child.wait().await?;
        }
        Ok(())
    }
}

/// The other process: keeps the copy.
pub(crate) async fn serve() -> Result<()> {
    let stream = join(stdin(), stdout());
    Ok(guest::serve(Box::new(stream), guest::Options::default()).await?)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Counts what goes over a stream, both ways.
struct Counted(Box<dyn Stream>, Arc<AtomicU64>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        let more = buf.filled().len() - before;
        self.1.fetch_add(more as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = written {
            self.1.fetch_add(written as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
