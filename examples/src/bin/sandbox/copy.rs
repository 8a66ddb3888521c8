//! `cp`, with the rules of `docker cp`: into a folder that is there, else to that path; the contents of a
//! folder are meant by a source that ends in `/.`.

use std::path::{Path, PathBuf};

use sandbox_core::{Dirs, Sandbox, Stdio};

use crate::cli;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::progress::Waiting;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Here(&'a Path),
    Inside { name: &'a str, path: &'a Path },
}

/// Copies between this machine and a sandbox.
pub(crate) async fn copy(dirs: &Dirs, arguments: &cli::Copy) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let _waiting = Waiting::on("copying");
    let (from, to) = (side(&arguments.from), side(&arguments.to));
    interrupts
        .or(async {
            match (from, to) {
                (Side::Here(from), Side::Inside { name, path }) => {
                    copy_in(dirs, from, name, path).await
                }
                (Side::Inside { name, path }, Side::Here(to)) => {
                    copy_out(dirs, name, path, to).await
                }
                _ => Err(Failure::new(
                    "copy",
                    "one of the two must be in a sandbox, as NAME:PATH, and the other here",
                )),
            }
        })
        .await??;
    Ok(0)
}

/// Reads `NAME:PATH` or `PATH`: what has a slash before its colon is a path.
fn side(text: &str) -> Side<'_> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.contains(['/', '.']) => Side::Inside {
            name,
            path: Path::new(path),
        },
        _ => Side::Here(Path::new(text)),
    }
}

async fn copy_in(dirs: &Dirs, from: &Path, name: &str, to: &Path) -> Result<(), Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
    let found = from
        .canonicalize()
        .map_err(|error| Failure::new(format!("copy {}", from.display()), error))?;
    let into = is_folder_inside(&sandbox, to).await;
    let to = target(from, &found, to, into);
    Ok(sandbox.copy_in(found, to).await?)
}

async fn copy_out(dirs: &Dirs, name: &str, from: &Path, to: &Path) -> Result<(), Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
    let to = target(from, from, to, to.is_dir());
    Ok(sandbox.copy_out(from, to).await?)
}

/// Returns where a source comes to lie: below its own name in a folder that is there.
fn target(given: &Path, source: &Path, to: &Path, into: bool) -> PathBuf {
    let contents = given.as_os_str().as_encoded_bytes().ends_with(b"/.");
    match source.file_name() {
        Some(name) if (into || ends_in_slash(to)) && !contents => to.join(name),
        _ => to.to_owned(),
    }
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Asks inside. Where there is no `test` to ask, a path is taken as it stands.
async fn is_folder_inside(sandbox: &Sandbox, path: &Path) -> bool {
    let mut test = sandbox.command("test");
    test.arg("-d").arg(path).current_dir("/");
    test.stdout(Stdio::null()).stderr(Stdio::null());
    matches!(test.status().await, Ok(status) if status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_at_its_colon_and_a_path_has_slashes() {
        let inside = |name, path| Side::Inside {
            name,
            path: Path::new(path),
        };
        assert_eq!(side("lab:/tmp/a:b"), inside("lab", "/tmp/a:b"));
        assert_eq!(side("./lab:/tmp"), Side::Here(Path::new("./lab:/tmp")));
        assert_eq!(side("/a:b"), Side::Here(Path::new("/a:b")));
        assert_eq!(side("file"), Side::Here(Path::new("file")));
    }

    #[test]
    fn a_folder_that_is_there_is_copied_into() {
        let at = |from: &str, to: &str, into| {
            target(Path::new(from), Path::new(from), Path::new(to), into)
        };
        assert_eq!(at("a/b", "/tmp", true), Path::new("/tmp/b"));
        assert_eq!(at("a/b", "/tmp/c", false), Path::new("/tmp/c"));
        assert_eq!(at("a/b", "/new/", false), Path::new("/new/b"));
        assert_eq!(at("a/b/.", "/tmp", true), Path::new("/tmp"));
    }
}
