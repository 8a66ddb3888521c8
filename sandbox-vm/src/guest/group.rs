//! The control group of a command: who belongs to it, and what killed it.
//!
//! A guest has a kernel of its own and so the unified hierarchy (cgroup v2), whatever the host uses. One
//! group per command makes a time limit reach the processes that left its session, and lets the kernel
//! say whose process it killed when memory ran out. Where there is no such hierarchy (a container, a
//! test) commands are killed by process group, and memory exhaustion is not told apart.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::channel::protocol::{ExecId, Limits};

/// Where the groups of commands are.
const PARENT: &str = "/sys/fs/cgroup/sandbox";

/// One command's group. Removed when dropped, or, while processes of it live on, with the machine.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

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

impl Group {
    /// Makes a command's group and opens the file that a child joins it by; `None` without a hierarchy.
    pub(crate) fn create(id: ExecId) -> io::Result<Option<(Self, OwnedFd)>> {
        if !Path::new(PARENT).is_dir() {
            return Ok(None);
        }
        let path = Path::new(PARENT).join(format!("{:032x}", u128::from_be_bytes(id.0)));
        fs::create_dir(&path)?;
        let group = Self(path);
        let join = fs::OpenOptions::new()
            .write(true)
            .open(group.0.join("cgroup.procs"))?;
        Ok(Some((group, join.into())))
    }

    /// Kills every process in it, in one step that no fork can outrun (Linux 5.14 and later).
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")
    }

    /// Tells whether the kernel killed one of its processes because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        fs::read_to_string(self.0.join("memory.events"))
            .is_ok_and(|events| out_of_memory_kills(&events) > 0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while background processes of the command live on, which is theirs to decide.
        drop(fs::remove_dir(&self.0));
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
