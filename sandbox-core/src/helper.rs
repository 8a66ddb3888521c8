//! The helper binary: carried inside this crate, written to the cache once, found by its content.
//!
//! Decision record 0001 ([`crate::docs`]) says why it is carried this way.

use std::fs;
use std::path::{Path, PathBuf};

use sandbox_base::{Error, ErrorKind};

#[cfg(sandbox_helper)]
const COMPRESSED: Option<&[u8]> = Some(include_bytes!(env!("SANDBOX_HELPER_FILE")));
#[cfg(not(sandbox_helper))]
const COMPRESSED: Option<&[u8]> = None;

/// Returns the path of the helper binary in the cache, and puts it there when it is not yet.
pub(crate) fn path(cache: &Path) -> Result<PathBuf, Error> {
    const OPERATION: &str = "find the helper binary";
    let compressed = COMPRESSED.ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, OPERATION).with_detail(
            "this build carries none for its architecture; run scripts/build-helper and build again",
        )
    })?;
    let digest = blake3::hash(compressed).to_hex();
    let folder = cache.join("helper").join(&digest.as_str()[..16]);
    let path = folder.join("sandbox-helper");
    let io = |error| Error::io(OPERATION, error);
    // Named by its content and written at one stroke: what is there is whole.
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&folder).map_err(io)?;
    let mut program = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(compressed), &mut program)
        .map_err(io)?;
    // Two threads of one process may be here at once.
    let random = u128::from_be_bytes(sandbox_vm::agent::new_exec_id()?.0);
    let fresh = folder.join(format!(".{random:032x}"));
    fs::write(&fresh, &program).map_err(io)?;
    make_executable(&fresh).map_err(io)?;
    fs::rename(&fresh, &path).map_err(io)?;
    Ok(path)
}

fn make_executable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::File::open(path)?.sync_all()
}

#[cfg(all(test, sandbox_helper))]
mod tests {
    #[test]
    fn many_threads_find_it_at_once() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| super::path(cache.path())))
                .collect();
            for thread in threads {
                assert!(thread.join().unwrap().unwrap().is_file());
            }
        });
    }
}
