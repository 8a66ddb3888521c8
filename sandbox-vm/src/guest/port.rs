//! The virtio-serial port that leads to the host.
//!
//! Opened without blocking: a blocking write while the host is away would hang the writer for good. While
//! the host is away, `poll` says readable at once and `read` returns nothing; that is the end of a
//! session, and [`host_present`] tells when the next one can begin.

use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use super::descriptor::Descriptor;

/// Opens a port's device.
pub(crate) fn open(path: &Path) -> io::Result<Descriptor> {
    Descriptor::new(open_raw(path)?)
}

/// Tells whether a host holds the other end, without waiting.
pub(crate) fn host_present(path: &Path) -> io::Result<bool> {
    let descriptor = open_raw(path)?;
    let mut wanted = [PollFd::new(&descriptor, PollFlags::OUT)];
    poll(
        &mut wanted,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    Ok(!wanted[0].revents().contains(PollFlags::HUP))
}

fn open_raw(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
