//! The virtio-serial port that leads to the host.
//!
//! Opened without blocking: a blocking write while the host is away would hang the writer for good. While
//! the host is away, `poll` says readable at once and `read` returns nothing; that is the end of a
//! session, and [`Port::host_present`] tells when the next one can begin.
//!
//! Opened once and for ever: the kernel throws away what has arrived and was not read yet when a port is
//! closed. A host that spoke early would never be heard, nor speak again.

use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use super::descriptor::Descriptor;

/// The open port. Sessions are duplicates of its descriptor, which end without closing it.
#[derive(Debug)]
pub(crate) struct Port(OwnedFd);

impl Port {
    /// Opens a port's device. Only one program can have it open.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Tells whether a host holds the other end, without waiting.
    pub(crate) fn host_present(&self) -> io::Result<bool> {
        let mut wanted = [PollFd::new(&self.0, PollFlags::OUT)];
        let at_once = Timespec {
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
