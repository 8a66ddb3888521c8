//! The memory of a machine that runs, read from outside.
//!
//! A restored machine maps the file that it was restored from privately: a page that the guest has written to
//! is a page of QEMU's own, every other one is the file's. `/proc/PID/pagemap` tells the two apart and
//! `/proc/PID/mem` reads the first kind (`man 5 proc`), so a copy of the file and QEMU's own pages over it are the
//! guest's memory. It is read twice: once while the guest runs, and once while it stands still, when only what is
//! different by then is written. So the guest stands still for as long as reading takes.
//!
//! QEMU can send its memory by itself, page after page while the guest runs. Version 7.2 loses pages of an
//! emulated guest on the way (decision record 0008).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sandbox_base::ErrorKind;

use crate::Error;

const PAGE: u64 = 4096;

/// The most that is read at once.
const PIECE: u64 = 512 << 10;

/// More threads than this wait for each other.
const MOST_THREADS: usize = 8;

/// Bits of an entry of `/proc/PID/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// The memory of one QEMU.
#[derive(Debug)]
pub(super) struct GuestMemory {
    contents: File,
    pagemap: File,
    areas: Vec<Area>,
    pages: usize,
}

/// A part of the memory file as it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    address: u64,
    offset: u64,
    length: u64,
}

/// What is done with pages that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// All are written.
    All,
    /// Those are that the target does not have so.
    Changed,
}

impl GuestMemory {
    /// Finds the memory that the process `pid` has mapped from `file`.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` where processes may not be looked into, `Unsupported` where it is not mapped as a whole.
    pub(super) fn of(pid: u32, file: &File) -> Result<Self, Error> {
        const OPERATION: &str = "look at a machine's memory";
        let failed = |error: io::Error| {
            let refused = error.kind() == io::ErrorKind::PermissionDenied;
            let error = Error::io(OPERATION, error);
            match refused {
                true => error.with_detail(
                    "this host lets no process look into its children (`man 2 ptrace`, `ptrace_scope`)",
                ),
                false => error,
            }
        };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let areas = areas(&maps, metadata.ino(), metadata.len()).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, OPERATION)
                .with_detail("it is not mapped as one file")
        })?;
        Ok(Self {
            contents: File::open(format!("/proc/{pid}/mem")).map_err(failed)?,
            pagemap: File::open(format!("/proc/{pid}/pagemap")).map_err(failed)?,
            areas,
            pages: usize::try_from(metadata.len() / PAGE).expect("memory fits the address space"),
        })
    }

    /// Tells which pages are the machine's own.
    pub(super) fn own(&self) -> io::Result<Vec<bool>> {
        let mut own = vec![false; self.pages];
        let mut entries = Vec::new();
        for area in &self.areas {
            entries.resize(index(area.length) * 8, 0);
            self.pagemap
                .read_exact_at(&mut entries, area.address / PAGE * 8)?;
            let (entries, _) = entries.as_chunks();
            let first = index(area.offset);
            for (own, entry) in own[first..].iter_mut().zip(entries) {
                *own = is_own(u64::from_ne_bytes(*entry));
            }
        }
        Ok(own)
    }

    /// Copies pages to their places in `target`, and returns how many bytes were written.
    pub(super) fn copy(&self, pages: &[bool], target: &File, writing: Writing) -> io::Result<u64> {
        let pieces = self.pieces(pages);
        let (next, written) = (AtomicUsize::new(0), AtomicU64::new(0));
        let work = || -> io::Result<()> {
            let mut buffers = [Vec::new(), Vec::new()];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let count = self.copy_piece(piece, target, (writing, &mut buffers))?;
                written.fetch_add(count, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MOST_THREADS).min(pieces.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut joined = threads.into_iter().map(|thread| thread.join());
            joined.try_for_each(|done| done.expect("no thread of a copy panics"))
        })?;
        Ok(written.into_inner())
    }

    fn copy_piece(
        &self,
        piece: &Area,
        target: &File,
        (writing, [read, there]): (Writing, &mut [Vec<u8>; 2]),
    ) -> io::Result<u64> {
        let length = piece.length as usize;
        read.resize(length, 0);
        self.contents.read_exact_at(read, piece.address)?;
        if writing == Writing::All {
            target.write_all_at(read, piece.offset)?;
            return Ok(piece.length);
        }
        there.resize(length, 0);
        target.read_exact_at(there, piece.offset)?;
        let mut written = 0;
        if read == there {
            return Ok(written);
        }
        let pages = read.chunks(PAGE as usize).zip(there.chunks(PAGE as usize));
        for (offset, (page, old)) in (piece.offset..).step_by(PAGE as usize).zip(pages) {
            if page != old {
                target.write_all_at(page, offset)?;
                written += PAGE;
            }
        }
        Ok(written)
    }

    /// Cuts runs of pages into what is read at once.
    fn pieces(&self, pages: &[bool]) -> Vec<Area> {
        let mut pieces: Vec<Area> = Vec::new();
        for area in &self.areas {
            let first = index(area.offset);
            let chosen = pages[first..first + index(area.length)].iter();
            for (number, _) in chosen.enumerate().filter(|(_, wanted)| **wanted) {
                let distance = number as u64 * PAGE;
                let page = Area {
                    address: area.address + distance,
                    offset: area.offset + distance,
                    length: PAGE,
                };
                match pieces.last_mut() {
                    Some(last) if last.is_before(&page) && last.length < PIECE => {
                        last.length += PAGE;
                    }
                    _ => pieces.push(page),
                }
            }
        }
        pieces
    }
}

impl Area {
    fn is_before(&self, next: &Self) -> bool {
        self.address + self.length == next.address && self.offset + self.length == next.offset
    }
}

fn index(bytes: u64) -> usize {
    (bytes / PAGE) as usize
}

fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
}

/// Finds the private mappings of a file in `/proc/PID/maps`; `None` where they are not all of its `length`, once
/// and in order.
fn areas(maps: &str, inode: u64, length: u64) -> Option<Vec<Area>> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut areas = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, mode) = (fields.next()?, fields.next()?);
        let offset = hex(fields.next()?)?;
        if fields.nth(1)?.parse() != Ok(inode) || !mode.ends_with('p') {
            continue;
        }
        let (start, end) = range.split_once('-')?;
        let (address, end) = (hex(start)?, hex(end)?);
        areas.push(Area {
            address,
            offset,
            length: end.checked_sub(address)?,
        });
    }
    areas.sort_by_key(|area| area.offset);
    let mut covered = 0u64;
    for area in &areas {
        let aligned = [area.address, area.offset, area.length].map(|n| n % PAGE) == [0; 3];
        if !aligned || area.offset != covered {
            return None;
        }
        covered = covered.checked_add(area.length)?;
    }
    (covered == length && length > 0).then_some(areas)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8000000-55d0c8400000 r-xp 00000000 fe:00 77        /usr/bin/qemu-system-x86_64
7f1d47fff000-7f1d57fff000 rw-p 00000000 fe:00 10092551  /t/a b/memory (deleted)
7f1d57fff000-7f1d67fff000 rw-p 10000000 fe:00 10092551  /t/a b/memory (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0         [stack]
";

    #[test]
    fn the_memory_is_found_by_its_file_whatever_its_name() {
        let found = areas(MAPS, 10_092_551, 0x2000_0000).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].address, 0x7f1d_47ff_f000);
        assert_eq!(found[1].offset, 0x1000_0000);
    }

    #[test]
    fn r13_memory_that_is_mapped_in_part_twice_or_shared_is_not_read() {
        assert_eq!(areas(MAPS, 10_092_551, 0x3000_0000), None);
        assert_eq!(areas(MAPS, 10_092_551, 0x1000_0000), None);
        assert_eq!(areas(MAPS, 5, 0x2000_0000), None);
        assert_eq!(areas("", 5, 0), None);
        let shared = MAPS.replace("rw-p 10000000", "rw-s 10000000");
        assert_eq!(areas(&shared, 10_092_551, 0x2000_0000), None);
        let twice = format!("{MAPS}{}", MAPS.lines().nth(1).unwrap());
        assert_eq!(areas(&twice, 10_092_551, 0x2000_0000), None);
        assert_eq!(areas("no maps at all", 5, 4096), None);
    }

    #[test]
    fn a_page_is_the_machines_own_when_it_is_there_and_not_the_files() {
        for (entry, own) in [
            (0, false),
            (PRESENT, true),
            (SWAPPED, true),
            (PRESENT | OF_A_FILE, false),
            (PRESENT | 0x1234, true),
        ] {
            assert_eq!(is_own(entry), own, "{entry:#x}");
        }
    }
}
