//! Where tests keep their sandboxes: state of their own, images and kernels shared.

use std::io::Write;
use std::path::PathBuf;

use sandbox_core::{Dirs, Sandbox, SandboxBuilder};

/// A temporary place for sandboxes.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) dirs: Dirs,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sb").tempdir().unwrap();
        let dirs = Dirs::beneath(folder.path()).with_cache(cache());
        Self { folder, dirs }
    }

    /// Begins a sandbox that boots a real microVM, and counts it.
    pub(crate) fn microvm(&self) -> SandboxBuilder {
        count_microvm();
        Sandbox::builder().dirs(self.dirs.clone())
    }

    /// Makes a folder with files, to be a workspace.
    pub(crate) fn project(&self, files: &[(&str, &str)]) -> PathBuf {
        let project = self.folder.path().join("project");
        for (name, text) in files {
            let path = project.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        project.canonicalize().unwrap()
    }
}

/// Kernels and images take minutes to make and are the same for all tests.
fn cache() -> PathBuf {
    match std::env::var_os("SANDBOX_TEST_CACHE") {
        Some(cache) => cache.into(),
        None => std::env::temp_dir().join("sandbox-test-cache"),
    }
}

fn count_microvm() {
    if let Some(log) = std::env::var_os("SANDBOX_MICROVM_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        log.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
}
