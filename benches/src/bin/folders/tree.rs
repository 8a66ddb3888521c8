//! The tree that everybody copies: always the same one for the same number of files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sandbox_benches::Result;

/// Files of a folder, and folders of a folder.
const FILES: usize = 20;
const FOLDERS: usize = 16;

/// A tree with so many files, 3.85 KB long on average, in folders of twenty.
pub(crate) struct Spec {
    files: usize,
}

impl Spec {
    pub(crate) fn new(files: usize) -> Self {
        Self { files }
    }

    pub(crate) fn files(&self) -> usize {
        self.files
    }

    /// The length of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        (0..self.files).map(|file| length(file) as u64).sum()
    }

    /// Where a file is beneath the root.
    pub(crate) fn path(file: usize) -> PathBuf {
        let mut folder = file / FILES;
        let mut path = PathBuf::new();
        for _ in 0..3 {
            path.push(format!("folder-{:02}", folder % FOLDERS));
            folder /= FOLDERS;
        }
        path.push(format!("file-number-{file}-{folder}.txt"));
        path
    }

    /// Writes the tree and flushes it.
    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        let mut text = Vec::new();
        for file in 0..self.files {
            let path = root.join(Self::path(file));
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fill(&mut text, (file, length(file)))?;
            fs::write(path, &text)?;
        }
        rustix::fs::syncfs(fs::File::open(root)?)?;
        Ok(())
    }
}

/// Most files are short, a few long: of each twenty, the lengths add up to 77,000 bytes.
fn length(file: usize) -> usize {
    match file % 20 {
        0 => 40_000,
        1..4 => 6_000,
        4..10 => 2_200,
        _ => 580,
    }
}

/// Makes a text of words that do not repeat.
fn fill(text: &mut Vec<u8>, (seed, length): (usize, usize)) -> Result<()> {
    let mut word = seed as u64 * 0x9e37_79b9_7f4a_7c15 + 1;
    text.clear();
    while text.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        writeln!(text, "{word:016x}")?;
    }
    text.truncate(length);
    Ok(())
}

/// Changes so many files, spread over the tree, by adding a line to each.
pub(crate) fn edit(root: &Path, (spec, edits): (&Spec, usize)) -> Result<()> {
    for number in 0..edits {
        let file = number * spec.files() / edits;
        let path = root.join(Spec::path(file));
        let mut file = fs::File::options().append(true).open(path)?;
        file.write_all(b"one more line\n")?;
    }
    Ok(())
}

/// Asks for the facts of everything beneath `root` on all processors; returns how many files there are.
pub(crate) fn walk(root: &Path) -> Result<usize> {
    let files = AtomicUsize::new(0);
    let queue = std::sync::Mutex::new((vec![root.to_owned()], 0usize));
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let mut state = queue.lock().expect("no thread panics while it holds this");
                    let Some(folder) = state.0.pop() else {
                        if state.1 == 0 {
                            return;
                        }
                        drop(state);
                        std::thread::yield_now();
                        continue;
                    };
                    state.1 += 1;
                    drop(state);
                    let (found, below) = look(&folder).unwrap_or_default();
                    files.fetch_add(found, Ordering::Relaxed);
                    let mut state = queue.lock().expect("no thread panics while it holds this");
                    state.0.extend(below);
                    state.1 -= 1;
                }
            });
        }
    });
    Ok(files.into_inner())
}

fn look(folder: &Path) -> std::io::Result<(usize, Vec<PathBuf>)> {
    use rustix::fs::{AtFlags, FileType, Mode, OFlags};
    let opened = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let (mut files, mut below) = (0, Vec::new());
    for entry in rustix::fs::Dir::read_from(&opened)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let facts = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
            below.push(folder.join(name.to_string_lossy().as_ref()));
        } else {
            files += 1;
        }
    }
    Ok((files, below))
}
