//! The terminal that the tool runs in: raw mode, restored on every way out, and its size.

use std::io;

use rustix::termios::{self, OptionalActions, Termios};
use sandbox_core::TerminalSize;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Raw mode of standard input, for as long as this lives: each key goes inside, Ctrl-C among them.
#[derive(Debug)]
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Switches it on. What was typed ahead is kept.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Returns the size of the terminal that standard output or input is.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| termios::tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    // Some say nothing of themselves.
    (size.ws_row > 0 && size.ws_col > 0).then(|| TerminalSize::new(size.ws_row, size.ws_col))
}

/// Listens to changes of its size.
pub(crate) fn resizes() -> io::Result<Signal> {
    signal(SignalKind::window_change())
}
