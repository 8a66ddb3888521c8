//! The watchdog's own side: one thread, no runtime, nothing that can fail to notice.

// JUSTIFICATION: a child that dies with its parent needs `pre_exec`; descriptors that the owner left open
// by accident can only be closed by number.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::{Event, IN_ORDER, Job, MAX_JOB};
use crate::lock::FileLock;

/// How much of the child's output is kept.
const OUTPUT_TAIL: usize = 16 << 10;

/// How much a pipe holds (`man 7 pipe`).
const PIPE_SIZE: usize = 64 << 10;

/// Runs a watchdog: reads its job from standard input and returns when the child is gone and its files
/// are removed. To be called first thing in the helper binary, while it has one thread.
///
/// # Errors
///
/// When there is no job to read, or the owner can no longer be told anything.
pub fn run() -> io::Result<()> {
    keep_descriptors_from_children();
    // The owner's terminal and working directory are none of ours.
    let _ = rustix::process::setsid();
    drop(std::env::set_current_dir("/"));
    let job = read_job()?;
    let (claim, mut child, output) = match claim_and_start(&job) {
        Ok(started) => started,
        Err(error) => {
            remove_all(&job.remove);
            return tell(&Event::Refused(error.to_string()));
        }
    };
    // An owner that is gone already closes the pipe too: the wait below returns at once.
    drop(tell(&Event::Started(child.id())));
    let end = attend(&mut child, output)?;
    let (status, output) = (end.status, end.output);
    let mut left = remove_all(&job.remove);
    // Held until this process ends, which is after the last removal.
    let _alone = match claim {
        Some(claim) if end.orphaned => {
            let alone = after_the_others(claim);
            if alone.is_some() {
                left.extend(remove_all(&job.remove_when_orphaned));
            }
            alone
        }
        claim => claim,
    };
    tell(&Event::Ended {
        code: status.code(),
        signal: status.signal(),
        output,
        left,
    })
}

fn read_job() -> io::Result<Job> {
    let mut line = Vec::new();
    // Byte by byte is what an unbuffered standard input gives; the job is one line.
    io::stdin()
        .lock()
        .take(MAX_JOB as u64)
        .read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(io::Error::other)
}

/// Waits until no other watchdog of the folder lives: its child may still use what is to be removed. `None` when
/// somebody has removed it meanwhile.
fn after_the_others(claim: FileLock) -> Option<FileLock> {
    let path = claim.path().to_owned();
    drop(claim);
    let alone = FileLock::acquire(&path);
    alone.ok().filter(FileLock::is_in_place)
}

fn claim_and_start(job: &Job) -> io::Result<(Option<FileLock>, Child, OwnedFd)> {
    let claim = match job.remove_when_orphaned.last() {
        Some(folder) => {
            let claim = FileLock::try_acquire_shared(&folder.join(super::CLAIM))?;
            Some(claim.ok_or_else(|| io::Error::other("somebody removes its files"))?)
        }
        None => None,
    };
    let (child, output) = start(job)?;
    Ok((claim, child, output))
}

/// Starts the child and returns it with the reading end of its output.
fn start(job: &Job) -> io::Result<(Child, OwnedFd)> {
    let (program, arguments) = job.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (output, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let parent = rustix::process::getpid();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(end.try_clone()?)
        .stderr(end);
    // SAFETY: two system calls on plain numbers, nothing allocated, no lock taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            match rustix::process::getppid() {
                Some(pid) if pid == parent => Ok(()),
                _ => Err(rustix::io::Errno::SRCH.into()),
            }
        });
    }
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    rustix::io::ioctl_fionbio(&output, true)?;
    Ok((child, output))
}

/// How it all ended.
struct End {
    status: ExitStatus,
    output: String,
    /// The owner went without a word.
    orphaned: bool,
}

/// Waits until the child has ended or the owner has closed the pipe, and makes sure that the child has
/// ended.
fn attend(child: &mut Child, output: OwnedFd) -> io::Result<End> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let stdin = io::stdin();
    let mut tail = Tail {
        pipe: Some(output),
        kept: Vec::new(),
    };
    loop {
        let mut wanted = vec![
            PollFd::new(&ended, PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        wanted.extend(
            tail.pipe
                .as_ref()
                .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        match poll(&mut wanted, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = wanted.iter().map(|one| !one.revents().is_empty()).collect();
        if ready.get(2) == Some(&true) {
            tail.read();
        }
        let owner = if ready[1] {
            hear_owner(&mut stdin.lock())
        } else {
            Owner::Quiet
        };
        if owner != Owner::Quiet {
            child.kill()?;
        }
        if owner != Owner::Quiet || ready[0] {
            let status = child.wait()?;
            tail.read();
            let output = String::from_utf8_lossy(&tail.kept).into_owned();
            return Ok(End {
                status,
                output,
                orphaned: owner == Owner::Gone,
            });
        }
    }
}

/// The last bytes of a pipe.
struct Tail {
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl Tail {
    /// Reads what is there, without waiting, and keeps the last of it. At most a pipe full at a time:
    /// a child that writes without end must not keep the watchdog from hearing its owner.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..PIPE_SIZE / buffer.len() {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(count @ 1..) => self.kept.extend(&buffer[..count]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Ok(_) | Err(_) => self.pipe = None,
            }
            let excess = self.kept.len().saturating_sub(OUTPUT_TAIL);
            self.kept.drain(..excess);
        }
    }
}

/// What the owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Quiet,
    /// It went in order.
    Done,
    /// It went without a word.
    Gone,
}

fn hear_owner(pipe: &mut impl Read) -> Owner {
    let mut said = [0; IN_ORDER.len()];
    match pipe.read(&mut said) {
        Ok(0) | Err(_) => Owner::Gone,
        Ok(count) if IN_ORDER.starts_with(&said[..count]) => Owner::Done,
        Ok(_) => Owner::Quiet,
    }
}

/// Removes files and folders, and returns what could not be removed.
fn remove_all(paths: &[PathBuf]) -> Vec<String> {
    let mut left = Vec::new();
    for path in paths {
        // Its name is free at one stroke: nobody looks at half of a folder, or makes a new file in it.
        let gone = path.with_file_name(format!(".{}", std::process::id()));
        let path = match fs::rename(path, &gone) {
            Ok(()) => &gone,
            Err(_) => path,
        };
        let removed = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("{}: {error}", path.display()));
            }
            _ => {}
        }
    }
    left
}

fn tell(event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// Descriptors that the owner's process left open across exec by accident must not reach the child.
fn keep_descriptors_from_children() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: the number was open a moment ago and nothing else runs in this process; one that
        // is closed by now, the listing's own, is answered with an error and passed over.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_without_end_is_read_in_parts() {
        let endless = fs::File::open("/dev/zero").unwrap();
        let mut tail = Tail {
            pipe: Some(endless.into()),
            kept: b"old".to_vec(),
        };
        tail.read();
        assert_eq!(tail.kept, [0; OUTPUT_TAIL]);
        assert!(tail.pipe.is_some());
    }
}
