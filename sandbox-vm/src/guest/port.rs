//! The virtio-serial port that leads to the host.
//!
//! Opened without blocking: a blocking write while the host is away would hang the writer for good. While
//! the host is away, `poll` says readable at once and `read` returns nothing; that is the end of a session.
//!
//! The kernel throws away what a port has received when it is closed. So it is opened once per session,
//! before the host is waited for: the host may have said its first word by the time it is seen.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use super::descriptor::Descriptor;

/// How long between two looks at whether the host is there.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens a port's device and waits until a host holds the other end.
pub(crate) async fn connect(path: &Path) -> io::Result<Descriptor> {
    let descriptor = open_raw(path)?;
    while !host_present(&descriptor)? {
        tokio::time::sleep(PAUSE).await;
    }
    Descriptor::new(descriptor)
}

/// Tells whether a host holds the other end, without waiting.
fn host_present(descriptor: &OwnedFd) -> io::Result<bool> {
    let mut wanted = [PollFd::new(descriptor, PollFlags::OUT)];
    poll(
        &mut wanted,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut wanted, Some(&at_once))?;
        Ok(!wanted[0].revents().contains(PollFlags::HUP))
    }

    /// Returns the byte stream of one session.
    pub(crate) fn session(&self) -> io::Result<Descriptor> {
        Descriptor::new(self.0.try_clone()?)
    }
}
