//! The others, as a person would call them.

use std::path::Path;
use std::process::{Command, Stdio};

use sandbox_benches::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    Rsync,
    Unison,
    Cp,
    Git,
}

impl Rival {
    pub(crate) fn all() -> [Self; 4] {
        [Self::Rsync, Self::Unison, Self::Cp, Self::Git]
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rsync => "rsync -a",
            Self::Unison => "unison",
            Self::Cp => "cp -a",
            Self::Git => "git add -A",
        }
    }

    /// Tells whether a second run does less than the first.
    pub(crate) fn updates(self) -> bool {
        self != Self::Cp
    }

    pub(crate) fn is_installed(self) -> bool {
        let program = self.name().split(' ').next().unwrap_or_default();
        let asked = Command::new(program)
            .arg(if self == Self::Unison {
                "-version"
            } else {
                "--version"
            })
            .stdout(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// Makes `copy` what `tree` is; git puts it into a repository there.
    pub(crate) fn run(self, tree: &Path, copy: &Path) -> Result<()> {
        let mut command = match self {
            Self::Rsync => {
                let mut command = Command::new("rsync");
                command
                    .args(["-a", "--delete"])
                    .arg(tree.join(""))
                    .arg(copy);
                command
            }
            Self::Unison => {
                let mut command = Command::new("unison");
                command
                    .args(["-batch", "-auto", "-silent", "-confirmbigdel=false"])
                    .args([tree, copy])
                    .env("UNISON", copy.with_extension("unison"));
                command
            }
            Self::Cp => {
                let mut command = Command::new("cp");
                command.arg("-aT").args([tree, copy]);
                command
            }
            Self::Git => return git(tree, copy),
        };
        checked(&mut command)
    }
}

fn git(tree: &Path, copy: &Path) -> Result<()> {
    if !copy.join("HEAD").exists() {
        checked(
            Command::new("git")
                .args(["init", "--quiet", "--bare"])
                .arg(copy),
        )?;
    }
    let mut command = Command::new("git");
    command.arg("--git-dir").arg(copy);
    command.arg("--work-tree").arg(tree);
    checked(command.args(["add", "-A"]))
}

fn checked(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {status}").into()),
    }
}

/// What `sync -f` does.
pub(crate) fn flush(folder: &Path) -> Result<()> {
    checked(Command::new("sync").arg("-f").arg(folder))
}
