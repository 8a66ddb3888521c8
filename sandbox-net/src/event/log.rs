//! Events as JSON lines in a file, which never loses one silently.
//!
//! When a line cannot be written (a full disk, a folder that is gone) it is counted, what was written of it is cut
//! off again, and the first line that fits afterwards is a [`Kind::Gap`] with the number of those that are missing.
//! A file that has grown too large is set aside under its name with `.1` behind it, in place of the one before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Event, Kind, Subscription, unix_millis};
use crate::Error;

/// The most events that are written in one go.
const BATCH: usize = 256;

/// A file of JSON lines.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// Gone after a failure, until it can be opened again.
    file: Option<File>,
    length: u64,
    limit: u64,
    lost: Lost,
}

/// What could not be written.
#[derive(Debug, Default)]
struct Lost {
    count: u64,
    /// The number of the first.
    first: u64,
}

impl LogFile {
    /// Opens a file to append to, and makes it if it is not there (for its owner alone). At `limit` bytes a new one
    /// is begun.
    ///
    /// # Errors
    ///
    /// What the file system answers.
    pub fn open(path: impl Into<PathBuf>, limit: u64) -> Result<Self, Error> {
        let mut log = Self::at(path, limit);
        let opened = log.opened();
        let path = log.path.display();
        opened.map_err(|source| Error::io(format!("open event log {path}"), source))?;
        Ok(log)
    }

    /// Names a file that is opened with the first event; a failure then is told as any later one.
    pub fn at(path: impl Into<PathBuf>, limit: u64) -> Self {
        Self {
            path: path.into(),
            file: None,
            length: 0,
            limit,
            lost: Lost::default(),
        }
    }

    /// Writes every event down until there are no more. Dropping the future loses what was not written.
    pub async fn follow(mut self, mut events: Subscription) {
        while let Some(event) = events.next().await {
            let mut batch = vec![event];
            while batch.len() < BATCH
                && let Some(event) = events.try_next()
            {
                batch.push(event);
            }
            let writing = tokio::task::spawn_blocking(move || {
                self.append(&batch);
                self
            });
            match writing.await {
                Ok(log) => self = log,
                Err(_) => return, // the runtime ends
            }
        }
    }

    /// Writes events; those that cannot be written are told of by the next call that can write.
    pub fn append(&mut self, events: &[Event]) {
        let mut lines = String::new();
        if self.lost.count > 0 {
            lines.push_str(&self.gap().to_json_line());
            lines.push('\n');
        }
        for event in events {
            lines.push_str(&event.to_json_line());
            lines.push('\n');
        }
        match self.write(lines.as_bytes()) {
            Ok(()) => self.lost = Lost::default(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, lost = events.len(), "events could not be written");
                if self.lost.count == 0 {
                    self.lost.first = events.first().map_or(0, |event| event.seq);
                }
                self.lost.count += events
                    .iter()
                    .map(|event| event.missed.unwrap_or(1))
                    .sum::<u64>();
            }
        }
    }

    fn gap(&self) -> Event {
        let text = "the event log could not be written";
        let mut gap = Event::new(Kind::Gap, 0).with_reason("log", text);
        gap.seq = self.lost.first;
        gap.time_ms = unix_millis(SystemTime::now());
        gap.missed = Some(self.lost.count);
        gap
    }

    fn opened(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let (file, length) = open(&self.path)?;
            self.length = length;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Writes whole lines or nothing.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(is_removed) {
            self.file = None;
        }
        self.opened()?;
        if self.length > 0 && self.length + lines.len() as u64 > self.limit {
            self.file = None;
            fs::rename(&self.path, set_aside(&self.path))?;
        }
        self.opened()?;
        let (length, Some(file)) = (self.length, &mut self.file) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Err(error) = file.write_all(lines) {
            // Half a line would spoil the next one. Should this fail too, the file is opened anew.
            let cut = file.set_len(length);
            if cut.is_err() {
                self.file = None;
            }
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }
}

/// Whether a file has no name any more, so that what is written to it is lost.
#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|data| data.nlink() == 0)
}

/// An open file cannot be removed there.
#[cfg(not(unix))]
fn is_removed(_: &File) -> bool {
    false
}

/// Returns where the file before this one is.
fn set_aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> Event {
        let mut event = Event::new(Kind::Decision, 0);
        event.seq = seq;
        event
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_file_that_is_too_large_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = LogFile::open(&path, 200).unwrap();
        for seq in 0..10 {
            log.append(&[event(seq)]);
        }
        let (old, new) = (lines(&set_aside(&path)), lines(&path));
        assert_eq!(new.last().unwrap()["seq"], 9);
        let last_of_old = old.last().unwrap()["seq"].as_u64().unwrap();
        assert_eq!(new[0]["seq"], last_of_old + 1);
    }

    /// `/dev/full` answers every write with ENOSPC.
    #[cfg(target_os = "linux")]
    #[test]
    fn e82_what_a_full_disk_swallowed_is_told_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = LogFile::open(&path, 1 << 20).unwrap();
        log.append(&[event(0)]);
        log.file = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
        log.append(&[event(1), event(2)]);
        // Room again.
        log.append(&[event(3)]);
        log.append(&[event(4)]);
        let lines = lines(&path);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[1]["kind"], "gap");
        assert_eq!(
            (&lines[1]["seq"], &lines[1]["missed"]),
            (&1.into(), &2.into())
        );
        assert_eq!((&lines[2]["seq"], &lines[3]["seq"]), (&3.into(), &4.into()));
    }

    #[cfg(unix)]
    #[test]
    fn e82_what_was_decided_while_the_folder_was_gone_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("log.jsonl");
        assert!(LogFile::open(&path, 100).is_err());
        fs::create_dir(path.parent().unwrap()).unwrap();
        let mut log = LogFile::open(&path, 1 << 20).unwrap();
        log.append(&[event(0)]);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        log.append(&[event(1)]);
        fs::create_dir(path.parent().unwrap()).unwrap();
        log.append(&[event(2)]);
        let lines = lines(&path);
        assert_eq!(lines[0]["kind"], "gap");
        assert_eq!(lines[1]["seq"], 2);
    }
}
