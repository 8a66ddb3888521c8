//! The end of a log that grows and is begun anew.
//!
//! Who writes it sets a full file aside under its name with `.1` behind it, in place of the one before, and never
//! writes to that again. So a file is read to its end before the next one; of a log that is begun anew twice
//! between two looks, the file in between is read from where it was set aside.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells a file from another of its name.
type Identity = (u64, u64);

/// A log that is read as it grows, from the oldest line that is there.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    /// The folder that the log is in, as long as it is the same.
    folder: Option<Identity>,
    current: Option<Current>,
}

/// A file with what was read of it.
#[derive(Debug)]
struct Current {
    file: File,
    identity: Identity,
    /// Where the next line begins. One without its end is read again: it may be cut off and written anew.
    at: u64,
}

impl Tail {
    /// A log that need not be there yet. Its folder is.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self {
            folder: folder_of(&path),
            path,
            current: None,
        }
    }

    /// Whether the folder is gone, and with it whatever would come.
    pub(crate) fn is_removed(&self) -> bool {
        self.folder.is_none() || folder_of(&self.path) != self.folder
    }

    /// Returns the whole lines that were added since the last call.
    pub(crate) fn more(&mut self) -> io::Result<String> {
        let mut lines = Vec::new();
        // In this order: should the log be begun anew in between, both are one file.
        let present = Current::open(&self.path)?;
        let aside = Current::open(&set_aside(&self.path))?;
        if let Some(current) = &mut self.current {
            current.read(&mut lines)?;
        }
        let Some(mut present) = present else {
            // Not begun yet, or set aside a moment ago.
            return Ok(String::from_utf8_lossy(&lines).into_owned());
        };
        let known = self.current.as_ref().map(|current| current.identity);
        if known != Some(present.identity) {
            if let Some(mut aside) = aside
                && ![known, Some(present.identity)].contains(&Some(aside.identity))
            {
                aside.read(&mut lines)?;
            }
            present.read(&mut lines)?;
            self.current = Some(present);
        }
        Ok(String::from_utf8_lossy(&lines).into_owned())
    }
}

impl Current {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self {
            identity: identity(&file.metadata()?),
            file,
            at: 0,
        }))
    }

    /// Appends the whole lines that are new.
    fn read(&mut self, lines: &mut Vec<u8>) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        // What could not be written whole was cut off again.
        self.at = self.at.min(length);
        self.file.seek(SeekFrom::Start(self.at))?;
        let before = lines.len();
        self.file.read_to_end(lines)?;
        let end = lines[before..].iter().rposition(|byte| *byte == b'\n');
        lines.truncate(before + end.map_or(0, |end| end + 1));
        self.at += (lines.len() - before) as u64;
        Ok(())
    }
}

fn identity(data: &Metadata) -> Identity {
    (data.dev(), data.ino())
}

fn folder_of(path: &Path) -> Option<Identity> {
    let data = fs::metadata(path.parent()?).ok()?;
    Some(identity(&data))
}

fn set_aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    fn append(path: &Path, text: &str) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_come_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::of(path.clone());
        assert_eq!(tail.more().unwrap(), "");
        append(&path, "one\ntw");
        assert_eq!(tail.more().unwrap(), "one\n");
        assert_eq!(tail.more().unwrap(), "");
        append(&path, "o\nthree\n");
        assert_eq!(tail.more().unwrap(), "two\nthree\n");
        append(&path, "hal");
        assert_eq!(tail.more().unwrap(), "");
        // The disk was full, and the half was cut off again.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len("one\ntwo\nthree\n".len() as u64).unwrap();
        append(&path, "four\n");
        assert_eq!(tail.more().unwrap(), "four\n");
    }

    #[test]
    fn no_line_is_lost_where_a_log_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let begin_anew = || fs::rename(&path, set_aside(&path)).unwrap();
        append(&path, "0\n");
        begin_anew();
        append(&path, "1\n");
        let mut tail = Tail::of(path.clone());
        assert_eq!(tail.more().unwrap(), "0\n1\n", "the older file comes first");
        append(&path, "2\n");
        begin_anew();
        assert_eq!(tail.more().unwrap(), "2\n", "there is no new file yet");
        append(&path, "3\n");
        assert_eq!(tail.more().unwrap(), "3\n");
        append(&path, "4\n");
        begin_anew();
        append(&path, "5\n");
        begin_anew();
        append(&path, "6\n");
        assert_eq!(tail.more().unwrap(), "4\n5\n6\n", "twice between two looks");
        assert_eq!(tail.more().unwrap(), "");
    }

    #[test]
    fn every_event_of_a_log_that_is_often_begun_anew_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::of(path.clone());
        let mut read = String::new();
        let mut length = 0;
        for number in 0..1000 {
            let line = format!("{number}\n");
            if length + line.len() > 64 {
                fs::rename(&path, set_aside(&path)).unwrap();
                length = 0;
            }
            append(&path, &line);
            length += line.len();
            if number % 7 == 0 {
                read += &tail.more().unwrap();
            }
        }
        read += &tail.more().unwrap();
        let all: String = (0..1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(read, all);
    }

    #[test]
    fn a_folder_that_is_gone_or_another_ends_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("lab");
        fs::create_dir(&folder).unwrap();
        let tail = Tail::of(folder.join("log"));
        assert!(!tail.is_removed());
        fs::rename(&folder, place.path().join("old")).unwrap();
        assert!(tail.is_removed());
        fs::create_dir(&folder).unwrap();
        assert!(tail.is_removed());
    }
}
