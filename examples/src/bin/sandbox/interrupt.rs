//! The signals that ask the tool to end.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Number of SIGHUP on Linux, also inside.
pub(crate) const SIGHUP: i32 = 1;
/// Number of SIGINT on Linux, also inside.
pub(crate) const SIGINT: i32 = 2;
/// Number of SIGTERM on Linux, also inside.
pub(crate) const SIGTERM: i32 = 15;

/// The signals that ask the tool to end. While it lives, they do nothing by themselves.
#[derive(Debug)]
pub(crate) struct Interrupts {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new("listen to signals", error));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one and returns its number. Cancel safe.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            Some(()) = self.hangup.recv() => SIGHUP,
            Some(()) = self.interrupt.recv() => SIGINT,
            Some(()) = self.terminate.recv() => SIGTERM,
            else => std::future::pending().await,
        }
    }

    /// Does something unless a signal comes first: it is dropped then, and the tool is to end.
    pub(crate) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            done = work => Ok(done),
            signal = self.next() => Err(Failure::signal(signal)),
        }
    }
}
