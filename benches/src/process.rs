//! What a process holds and uses, as `/proc` says (`man 5 proc`).

use std::time::Duration;

use crate::Result;

/// The resident memory of a process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Memory {
    /// Pages that no other process maps.
    pub private: f64,
    /// Pages that others map too: programs, libraries.
    pub shared: f64,
}

/// Returns the resident memory of a process.
///
/// # Errors
///
/// When it is gone or belongs to another user.
pub fn memory(pid: u32) -> Result<Memory> {
    Ok(parse_rollup(&std::fs::read_to_string(format!(
        "/proc/{pid}/smaps_rollup"
    ))?))
}

fn parse_rollup(text: &str) -> Memory {
    let mib = |names: [&str; 2]| {
        let kib: f64 = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<f64>().ok())
            .sum();
        kib / 1024.0
    };
    Memory {
        private: mib(["Private_Clean", "Private_Dirty"]),
        shared: mib(["Shared_Clean", "Shared_Dirty"]),
    }
}

/// Returns the processor time that all threads of a process have used, to the nanosecond where the
/// kernel counts so. Threads that have ended are not in it.
///
/// # Errors
///
/// When it is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().unwrap_or("0");
        total += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_shared_pages_are_told_apart() {
        let text = "Rss:  9 kB\nShared_Clean:  1024 kB\nShared_Dirty:  0 kB\n\
                    Private_Clean:  512 kB\nPrivate_Dirty:  512 kB\nPrivate_Hugetlb: 7 kB\n";
        let memory = parse_rollup(text);
        assert_eq!((memory.private, memory.shared), (1.0, 1.0));
    }
}
