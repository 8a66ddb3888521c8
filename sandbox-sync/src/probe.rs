//! Finds out which names the file system of a root takes for one.
//!
//! Folding is a property of each folder on ext4, f2fs and tmpfs (the attribute `F`, which a new folder takes
//! over from the one above it), and of the whole volume elsewhere (vfat, exFAT, NTFS, APFS, HFS+). The kernel
//! is asked for the attribute of the root; otherwise one file is made where staged files wait anyway, called by
//! other names, and removed: no scan looks there, and what a crash leaves is cleared like all else there. A
//! root that is not to be written to, or cannot be, is judged by a name that is there already.
//!
//! What is found for the root counts for everything beneath it. A folder of another kind beneath it, or one
//! whose attribute is changed while a session is open, is not noticed: there, as with anything that this does
//! not foresee, the second name of one file is refused when it is made.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::fold::Folding;
use crate::root::{Facts, Root};
use crate::scan::names;
use crate::stage::{PARTIAL, Staging};

/// So many names of a root that cannot be written to are looked at.
const LOOKS: usize = 64;

/// The name of the file that is made, a part of it by other names, and what is left out of them all.
const MADE: &str = "fold-a\u{e9}";
const OTHER_CASE: &str = "fold-A\u{e9}";
const OTHER_FORM: &str = "fold-ae\u{301}";

/// How the names of a root behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Names {
    pub(crate) folding: Folding,
    /// One rename leads from one name of a file to another one; otherwise the kernel sees nothing to do.
    pub(crate) renames: bool,
}

/// Looks how the names of a root behave; `staging` is where its staged files wait, `None` where nothing may be
/// written.
///
/// # Errors
///
/// When the root or what was made in staging cannot be read.
pub(crate) fn probe(root: &Root, staging: Option<Option<&Path>>) -> io::Result<Names> {
    if has_attribute(root.folder()) {
        let folding = Folding {
            case: true,
            form: true,
            rewrites: false,
        };
        // The kernel takes the two names for one entry of its cache.
        let renames = false;
        return Ok(Names { folding, renames });
    }
    let opened = staging.and_then(|outside| Staging::open_now(root, outside).ok());
    let tried = opened.map(|mut staging| {
        // It also holds what an earlier session received.
        staging.leave(true);
        by_trial(staging.folder())
    });
    match tried {
        Some(Ok(names)) => Ok(names),
        // A full disk, a volume that is read-only, a name that is not taken.
        Some(Err(error)) => {
            tracing::debug!(%error, "cannot try which names are one");
            by_what_is_there(root)
        }
        None => by_what_is_there(root),
    }
}

#[cfg(target_os = "linux")]
fn has_attribute(folder: &OwnedFd) -> bool {
    use rustix::fs::IFlags;
    /// `FS_CASEFOLD_FL` of `linux/fs.h`.
    const CASEFOLD: IFlags = IFlags::from_bits_retain(0x4000_0000);
    rustix::fs::ioctl_getflags(folder).is_ok_and(|flags| flags.contains(CASEFOLD))
}

#[cfg(not(target_os = "linux"))]
fn has_attribute(_: &OwnedFd) -> bool {
    false
}

fn by_trial(folder: &OwnedFd) -> io::Result<Names> {
    let [made, case, form] = [MADE, OTHER_CASE, OTHER_FORM].map(|name| format!("{PARTIAL}{name}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    drop(rustix::fs::openat(folder, &made, flags, mode)?);
    let is_there = |name: &str| Ok::<_, io::Error>(Facts::at(folder, name.as_bytes())?.is_some());
    let is_listed =
        |name: &str| Ok::<_, io::Error>(names(folder)?.iter().any(|one| *one == name.as_bytes()));
    let folding = Folding {
        case: is_there(&case)?,
        form: is_there(&form)?,
        rewrites: !is_listed(&made)?,
    };
    let other = if folding.case { &case } else { &form };
    let renames = !folding.is_none() && {
        rustix::fs::renameat(folder, &made, folder, other)?;
        folding.rewrites || is_listed(other)?
    };
    let last = if is_there(&made)? { &made } else { other };
    rustix::fs::unlinkat(folder, last, AtFlags::empty())?;
    Ok(Names { folding, renames })
}

/// Calls something in the root by its name in another case. Whoever folds case is taken to fold all there is.
fn by_what_is_there(root: &Root) -> io::Result<Names> {
    let folder = root.directory(None)?;
    let names = names(&folder)?;
    let lettered = |name: &&Vec<u8>| name.iter().any(u8::is_ascii_alphabetic);
    for name in names.iter().filter(lettered).take(LOOKS) {
        let turned: Vec<u8> = name.iter().map(|byte| turned(*byte)).collect();
        // Two that are both there tell nothing of either.
        if names.binary_search(&turned).is_err() {
            let folds = Facts::at(&folder, &turned)?.is_some();
            let folding = Folding {
                case: folds,
                form: folds,
                rewrites: false,
            };
            let renames = false;
            return Ok(Names { folding, renames });
        }
    }
    // Where nothing is and nothing can be made, no two names can become one.
    Ok(Names::default())
}

/// Returns a letter of ASCII in the other case.
fn turned(byte: u8) -> u8 {
    match byte.is_ascii_alphabetic() {
        true => byte ^ 0x20,
        false => byte,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn s10_a_trial_leaves_nothing_behind_and_a_root_that_folds_nothing_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let path = folder.path().join("root");
        std::fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        for staging in [None, Some(&*outside)] {
            assert_eq!(probe(&root, Some(staging)).unwrap(), Names::default());
            assert_eq!(left(&path), 0);
        }
        assert_eq!(left(&outside), 0);
        // What a process leaves that dies in the middle, the next one clears.
        std::fs::create_dir(path.join(".sandbox-sync-staging")).unwrap();
        let torn = format!(".sandbox-sync-staging/{PARTIAL}{MADE}");
        std::fs::write(path.join(torn), "").unwrap();
        assert_eq!(probe(&root, Some(None)).unwrap(), Names::default());
        assert_eq!(left(&path), 0);
    }

    #[test]
    fn s10_a_root_that_is_not_written_to_is_judged_by_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        assert_eq!(
            probe(&root, None).unwrap(),
            Names::default(),
            "nothing is there"
        );
        std::fs::write(folder.path().join("Name"), "").unwrap();
        assert_eq!(
            probe(&root, None).unwrap(),
            Names::default(),
            "another name is not there"
        );
        std::fs::write(folder.path().join("nAME"), "").unwrap();
        assert_eq!(
            probe(&root, None).unwrap(),
            Names::default(),
            "both are there"
        );
    }
}
