//! How much of a copy has been sent, told now and then.

use crate::progress::{Copied, Progress, Step};
use crate::protocol::{Part, Piece};
use crate::replica::Wanted;

/// So many bytes are worth a report.
const REPORT_BYTES: u64 = 1 << 20;

/// So many files are worth a report, however small they are.
const REPORT_FILES: u64 = 64;

/// Counts what is sent and reports it now and then.
#[derive(Debug)]
pub(super) struct Meter<'a> {
    progress: &'a Progress,
    copied: Copied,
    told: Copied,
}

impl<'a> Meter<'a> {
    /// Begins a copy, and says how much there is to do.
    pub(super) fn start(progress: &'a Progress, wanted: &[Wanted]) -> Self {
        let copied = Copied {
            of_files: wanted.len() as u64,
            of_bytes: wanted.iter().map(|want| want.size).sum(),
            ..Copied::default()
        };
        if !wanted.is_empty() {
            progress.report(Step::Sending(copied));
        }
        Self {
            progress,
            copied,
            told: copied,
        }
    }

    /// Counts a piece that was sent.
    pub(super) fn sent(&mut self, piece: &Piece) {
        self.copied.bytes += piece.length();
        self.copied.files += u64::from(piece.part != Part::More);
        let due = self.copied.bytes >= self.told.bytes + REPORT_BYTES
            || self.copied.files >= self.told.files + REPORT_FILES;
        if due || self.copied.files == self.copied.of_files {
            self.told = self.copied;
            self.progress.report(Step::Sending(self.copied));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::path::RelPath;

    #[test]
    fn a_copy_is_told_from_its_beginning_to_its_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let progress = Progress::new(move |Step::Sending(copied)| {
            listener.lock().unwrap().push((copied.files, copied.bytes));
        });
        let wanted: Vec<Wanted> = (0..100)
            .map(|item| Wanted {
                item,
                path: RelPath::new(format!("file-{item}")).unwrap(),
                size: 10,
                digest: None,
                index: None,
            })
            .collect();
        let mut meter = Meter::start(&progress, &wanted);
        for item in 0..100 {
            meter.sent(&Piece {
                item,
                part: Part::Last,
                modified: None,
                bytes: vec![0; 10],
                blocks: None,
            });
        }
        assert_eq!(*told.lock().unwrap(), [(0, 0), (64, 640), (100, 1000)]);
    }
}
