//! The arguments, and the options that they make.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use sandbox_sync::tree::Digest;
use sandbox_sync::{Lists, Mode, Options, Resolution};

use crate::Failure;

/// Keeps two folders the same, in both directions.
#[derive(Debug, Parser)]
#[command(name = "sync", version, max_term_width = 110)]
pub(crate) struct Arguments {
    /// The folder to keep
    #[arg(required_unless_present = "serve")]
    pub(crate) folder: Option<PathBuf>,
    /// The other folder; with a command, where that command's half shall keep it
    #[arg(required_unless_present_any = ["serve", "command"])]
    pub(crate) other: Option<PathBuf>,
    /// A command that runs `sync --serve`: its standard input and output lead to the other half
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "serve")]
    pub(crate) command: Vec<OsString>,
    /// Be the other half, on standard input and output, of this folder and no other
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["folder", "once", "base"])]
    pub(crate) serve: Option<PathBuf>,
    /// End once both sides agree; the exit status is 2 if they cannot
    #[arg(long)]
    pub(crate) once: bool,
    /// Which way changes go
    #[arg(long, value_name = "MODE", default_value = "two-way-safe")]
    mode: Way,
    /// Leave paths alone on either side, such as node_modules
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
    /// Keep paths from the other side, besides the keys and credentials that are kept anyway
    #[arg(long, value_name = "GLOB")]
    mask: Vec<String>,
    /// Hold nothing back, neither keys nor what runs without being asked: both sides are yours
    #[arg(long, conflicts_with = "mask")]
    trusted: bool,
    /// Where the tree that both agreed on is remembered; by default beneath $XDG_STATE_HOME/sandbox-sync
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Answer the stop that a large deletion led to the last time
    #[arg(long, value_name = "ANSWER")]
    deletions: Option<Answer>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// Both ways; of a conflict each side keeps its own
    TwoWaySafe,
    /// From the folder to the other one only
    ReadOnly,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Answer {
    /// They were meant: carry them out on the other side
    Propagate,
    /// They were not: bring back what is gone
    Restore,
}

impl Arguments {
    /// Returns how the session shall run.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        let mut options = Options::default()
            .with_base_file(self.base_file()?)
            .with_lists(self.lists())
            .with_mode(match self.mode {
                Way::TwoWaySafe => Mode::TwoWaySafe,
                Way::ReadOnly => Mode::ReadOnly,
            });
        if let Some(other) = &self.other {
            options = options.with_guest_root(match self.command.is_empty() {
                true => std::path::absolute(other)?,
                false => other.clone(),
            });
        }
        Ok(match self.deletions {
            None => options,
            Some(Answer::Propagate) => options.with_resolution(Resolution::Propagate),
            Some(Answer::Restore) => options.with_resolution(Resolution::Restore),
        })
    }

    fn lists(&self) -> Lists {
        let mut lists = Lists::default();
        if self.trusted {
            lists.mask.clear();
            lists.held.clear();
        }
        let lists = self.ignore.iter().fold(lists, Lists::with_ignore);
        self.mask.iter().fold(lists, Lists::with_mask)
    }

    /// The file of this pair of folders: what names the pair names the file.
    fn base_file(&self) -> Result<PathBuf, Failure> {
        if let Some(base) = &self.base {
            return Ok(base.clone());
        }
        let state = match std::env::var_os("XDG_STATE_HOME") {
            Some(state) if Path::new(&state).is_absolute() => PathBuf::from(state),
            _ => std::env::home_dir()
                .ok_or("no home folder: name a file with --base")?
                .join(".local/state"),
        };
        let folder = self.folder.as_deref().ok_or("no folder")?;
        let mut pair = vec![std::path::absolute(folder)?.into_os_string()];
        if let Some(other) = &self.other {
            pair.push(std::path::absolute(other)?.into_os_string());
        }
        pair.extend(self.command.iter().cloned());
        let pair: Vec<&[u8]> = pair.iter().map(|part| part.as_encoded_bytes()).collect();
        let name = Digest::of(&pair.join(&0)).to_string();
        Ok(state.join("sandbox-sync").join(name).join("base"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(["sync"].iter().chain(line))
    }

    #[test]
    fn a_pair_has_a_base_of_its_own() {
        let base = |line: &[&str]| read(line).unwrap().base_file().unwrap();
        assert_eq!(base(&["/a", "/b"]), base(&["/a", "/b"]));
        assert_ne!(base(&["/a", "/b"]), base(&["/a", "/c"]));
        assert_ne!(
            base(&["/a", "--", "ssh", "x"]),
            base(&["/a", "--", "ssh", "y"])
        );
        assert_eq!(base(&["/a", "/b", "--base", "/f"]), Path::new("/f"));
    }

    #[test]
    fn a_half_alone_has_no_partner_and_a_folder_alone_none_either() {
        assert!(read(&["--serve", "/a"]).is_ok());
        for bad in [
            &["/a"][..],
            &[],
            &["--serve", "/a", "/b"],
            &["--serve", "/a", "--", "ssh"],
            &["/a", "/b", "--trusted", "--mask", "*.key"],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_who_trusts_both_sides_lets_everything_through() {
        let held = |line: &[&str]| read(line).unwrap().options().unwrap().lists.held.len();
        assert!(held(&["/a", "/b"]) > 0);
        assert_eq!(held(&["/a", "/b", "--trusted"]), 0);
    }
}
