//! Two folders and the stream between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_sync::{Error, Options, Report, Session, guest};
use tempfile::TempDir;
use tokio::io::duplex;
use tokio::task::JoinHandle;

/// A host folder and a guest folder, on a file system in memory where there is one: what is tested here
/// flushes often, and that would flush everybody else's files too.
#[derive(Debug)]
pub(crate) struct Pair {
    folder: PathBuf,
    /// Removes the folder in the end, where this process made it.
    _guard: Option<TempDir>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let folder = tempfile::Builder::new()
            .prefix("sync-test-")
            .tempdir_in(parent)
            .unwrap();
        fs::create_dir(folder.path().join("host")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        Self {
            folder: folder.path().to_owned(),
            _guard: Some(folder),
        }
    }

    /// The pair in a folder that another process made.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self {
            folder,
            _guard: None,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.folder.join("host").join(path)
    }

    pub(crate) fn guest(&self, path: &str) -> PathBuf {
        self.folder.join("guest").join(path)
    }

    /// Something beside both roots.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.folder.join("outside").join(path)
    }

    /// Options under which nothing happens by itself, so that a test sees each cycle.
    pub(crate) fn options(&self) -> Options {
        Options::default()
            .with_guest_root(self.guest(""))
            .with_base_file(self.outside("base"))
            .with_timing(Duration::from_secs(3600), Duration::from_secs(3600))
    }

    pub(crate) async fn start(&self) -> Session {
        self.start_with(self.options()).await.unwrap()
    }

    pub(crate) async fn start_with(&self, options: Options) -> Result<Session, Error> {
        let (session, _guest) = self.start_both(options).await;
        session
    }

    pub(crate) async fn start_both(
        &self,
        options: Options,
    ) -> (Result<Session, Error>, JoinHandle<Result<(), Error>>) {
        let (ours, theirs) = duplex(64 * 1024);
        let guest = tokio::spawn(guest::serve(Box::new(theirs), guest::Options::default()));
        let session = Session::start(&self.host(""), Box::new(ours), options).await;
        (session, guest)
    }
}

/// Writes a file and the folders above it.
pub(crate) fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{:?}: {error}", path.as_ref()))
}

/// The names of the entries of a report's list.
pub(crate) fn names<'a, T: 'a>(
    items: impl IntoIterator<Item = &'a T>,
    path: impl Fn(&T) -> &sandbox_sync::RelPath,
) -> Vec<String> {
    items
        .into_iter()
        .map(|item| path(item).to_string())
        .collect()
}

#[track_caller]
pub(crate) fn assert_clean(report: &Report) {
    assert!(report.is_settled(), "{report:#?}");
}
