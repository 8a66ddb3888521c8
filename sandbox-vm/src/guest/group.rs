//! The control group of a command: who belongs to it, and what killed it.
//!
//! A guest has a kernel of its own and so the unified hierarchy (cgroup v2), whatever the host uses. One
//! group per command makes a time limit reach the processes that left its session, and lets the kernel
//! say whose process it killed when memory ran out. Where there is no such hierarchy (a container, a
//! test) commands are killed by process group, and memory exhaustion is not told apart.
//!
//! Removing a group keeps the kernel busy for longer than a short command runs. So a group that is empty
//! again waits for the next command, and only what is too many, or in doubt, is removed.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::channel::protocol::Limits;

/// Where the groups of commands are.
const PARENT: &str = "/sys/fs/cgroup/sandbox";

/// The most empty groups that wait for a command. More commands at once are rare.
const MOST_IDLE: usize = 8;

/// The groups of all commands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    made: u64,
    /// Empty groups, each with the kernel's count of kills so far.
    idle: Vec<(PathBuf, u64)>,
}

/// One command's group. When it is dropped it waits for the next command, or is removed; while processes
/// of the command live on it stays as it is.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    groups: Groups,
    /// The count of kills before the command.
    kills: u64,
    /// Whether that count is up to date, so that another command can begin from it.
    settled: bool,
}

/// Prepares the parent of all groups, with the limits on all commands together.
pub(crate) fn prepare(limits: &Limits) -> io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
    fs::create_dir_all(PARENT)?;
    if let Some(processes) = limits.processes {
        fs::write(Path::new(PARENT).join("pids.max"), processes.to_string())?;
    }
    fs::write(
        Path::new(PARENT).join("cgroup.subtree_control"),
        "+memory +pids",
    )
}

impl Groups {
    /// Takes an empty group for a command and opens the file that a child joins it by; `None` without a
    /// hierarchy.
    pub(crate) fn take(&self) -> io::Result<Option<(Group, OwnedFd)>> {
        let idle = self.lock().idle.pop();
        let (path, kills) = match idle {
            Some(idle) => idle,
            None if !Path::new(PARENT).is_dir() => return Ok(None),
            None => (self.make()?, 0),
        };
        let group = Group {
            path,
            groups: self.clone(),
            kills,
            settled: false,
        };
        let join = fs::OpenOptions::new()
            .write(true)
            .open(group.path.join("cgroup.procs"))?;
        Ok(Some((group, join.into())))
    }

    fn make(&self) -> io::Result<PathBuf> {
        let number = {
            let mut known = self.lock();
            known.made += 1;
            known.made
        };
        let path = Path::new(PARENT).join(number.to_string());
        fs::create_dir(&path)?;
        Ok(path)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Kills every process in it, in one step that no fork can outrun (Linux 5.14 and later).
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Tells whether the kernel killed one of its processes because memory ran out, since it was taken
    /// or this was last asked.
    pub(crate) fn ran_out_of_memory(&mut self) -> bool {
        let Ok(events) = fs::read_to_string(self.path.join("memory.events")) else {
            return false;
        };
        let before = std::mem::replace(&mut self.kills, out_of_memory_kills(&events));
        self.settled = true;
        self.kills > before
    }

    fn is_empty(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let reusable = self.settled && self.is_empty();
        let mut known = self.groups.lock();
        if reusable && known.idle.len() < MOST_IDLE {
            known
                .idle
                .push((std::mem::take(&mut self.path), self.kills));
        } else {
            // Fails while background processes of the command live on, which is theirs to decide.
            drop(fs::remove_dir(&self.path));
        }
    }
}

fn out_of_memory_kills(events: &str) -> u64 {
    let kills = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    kills
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_of_kills_is_read() {
        assert_eq!(
            out_of_memory_kills("low 0\nhigh 0\nmax 0\noom 3\noom_kill 2\n"),
            2
        );
        assert_eq!(out_of_memory_kills("oom_kill\n"), 0);
        assert_eq!(out_of_memory_kills(""), 0);
    }
}
