//! The trees: always the same one for the same number of files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sandbox_benches::Result;

/// Returns where a file is beneath the root: in folders of twenty, three deep.
pub(crate) fn path(file: usize) -> PathBuf {
    let folder = file / 20;
    let [one, two] = [folder / 256, folder / 16 % 16];
    format!(
        "f{one}/folder-{two}/folder-{}/file-number-{file}.txt",
        folder % 16
    )
    .into()
}

/// Writes a tree of so many files, 3.85 KB long on average: most are short, a few long.
pub(crate) fn write(root: &Path, files: usize) -> Result<()> {
    let mut text = Vec::new();
    for file in 0..files {
        let length = match file % 20 {
            0 => 40_000,
            1..4 => 6_000,
            4..10 => 2_200,
            _ => 580,
        };
        noise(&mut text, (file, length))?;
        let path = root.join(path(file));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, &text)?;
    }
    Ok(())
}

/// Makes a text of words that do not repeat.
pub(crate) fn noise(text: &mut Vec<u8>, (seed, length): (usize, usize)) -> Result<()> {
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
