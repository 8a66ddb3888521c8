//! What a machine must not share with others that were restored from the same saved state.
//!
//! Saved is a kernel that has booted and an agent that waits for its host. Each machine that is restored
//! from it goes on from the same instant: with the same random numbers to come, with the time of day of
//! when it was saved, and with what it read of disks that were others. All of that is put right before the
//! host's first word is answered, or the disk is first used, and so before any program runs. Where it cannot
//! be, the host is told so and nothing goes on.
//!
//! What the kernel draws only when it is first asked (its boot identity, the keys of its connections) has
//! not been drawn in a saved state: nothing there asks for it. Where the kernel lies in memory, and the keys
//! of the agent's own hash tables, are the same in all machines of one state.

// JUSTIFICATION: the two requests of the random device, and the one that makes a disk's cache forget, have
// no safe function.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::channel::protocol::{Entropy, Failure, Hello, Reply};

/// `struct rand_pool_info` of `linux/random.h` with a buffer of this length.
#[repr(C)]
struct PoolInfo {
    entropy_count: i32,
    buffer_size: i32,
    buffer: [u8; 32],
}

/// `RNDADDENTROPY`, whose number holds the size of the structure without its buffer.
const ADD_ENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);

/// `RNDRESEEDCRNG`.
const RESEED: Opcode = opcode::none(b'R', 0x07);

/// `BLKFLSBUF` of `linux/fs.h`.
const FLUSH_BUFFERS: Opcode = opcode::none(0x12, 97);

/// Takes what the host gives a machine with its first word.
pub(super) fn take(hello: &Hello) -> Reply<()> {
    reseed(&hello.entropy).map_err(|error| Failure::io("random numbers", &error))?;
    if let Some((seconds, nanoseconds)) = hello.clock {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: i64::from(nanoseconds) as _,
        };
        clock_settime(ClockId::Realtime, time)
            .map_err(|error| Failure::io("clock", &error.into()))?;
    }
    Ok(())
}

/// Mixes the host's bytes into the kernel's pool and has the generator, on every processor, start anew from
/// it.
fn reseed(entropy: &Entropy) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/urandom")?;
    let info = PoolInfo {
        entropy_count: 8 * entropy.0.len() as i32,
        buffer_size: entropy.0.len() as i32,
        buffer: entropy.0,
    };
    // SAFETY: the request reads a `PoolInfo` and as many bytes behind it as that says, which are part of it.
    unsafe { ioctl(device.as_fd(), Setter::<ADD_ENTROPY, _>::new(info))? };
    // SAFETY: the request takes no argument.
    let reseeded = unsafe { ioctl(device.as_fd(), NoArg::<RESEED>::new()) };
    reseeded.map_err(io::Error::from)
}

/// Makes the kernel forget what it has read of a disk that nothing is mounted from.
pub(super) fn forget(disk: &str) -> io::Result<()> {
    let disk = File::open(disk)?;
    // SAFETY: the request takes no argument.
    let forgotten = unsafe { ioctl(disk.as_fd(), NoArg::<FLUSH_BUFFERS>::new()) };
    forgotten.map_err(io::Error::from)
}
