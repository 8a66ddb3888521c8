//! A guest that lies. Each script speaks to a real session; the host's tree must stay as it was.

use std::path::PathBuf;

use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::fold::Folding;
use crate::protocol::{CHUNK, MESSAGE, Part, VERSION};
use crate::session::Session;
use crate::{Options, Report};

/// The lying side of a session.
struct Liar {
    stream: DuplexStream,
}

impl Liar {
    async fn say(&mut self, reply: &Reply) {
        // The host may have had enough.
        drop(protocol::write(&mut self.stream, reply).await);
    }

    async fn raw(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).await);
    }

    async fn piece(&mut self, item: u32, part: Part, bytes: &[u8]) {
        let piece = Piece {
            item,
            part,
            modified: None,
            bytes: bytes.into(),
            blocks: None,
        };
        drop(protocol::write_piece::<Reply>(&mut self.stream, &piece).await);
    }

    /// Reads until a request of this kind; `false` where the host hung up.
    async fn hears(&mut self, wanted: fn(&Request) -> bool) -> bool {
        loop {
            match protocol::read::<Request>(&mut self.stream).await {
                Ok(Received::Message(request)) if wanted(&request) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    async fn found(&mut self, entries: Vec<(RelPath, Option<Entry>)>) {
        self.say(&Reply::Found(entries)).await;
        self.say(&Reply::Scanned).await;
    }

    /// Sends an entry at a path that our own types refuse to express.
    async fn found_raw(&mut self, path: &[u8]) {
        let body = (2u8, 1u8, path.to_vec(), Some(Entry::Directory));
        self.raw(&sandbox_base::frame::encode(&body, MESSAGE).unwrap())
            .await;
        self.say(&Reply::Scanned).await;
    }
}

/// The host's folder of a test, with one file and one secret in it.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("root/d")).unwrap();
        std::fs::write(folder.path().join("root/d/file"), "mine").unwrap();
        std::fs::write(folder.path().join("root/.env"), "secret").unwrap();
        Self { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn assert_intact(&self) {
        let names = |path: PathBuf| {
            let entries = std::fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.root()), [".env", "d"]);
        assert_eq!(names(self.root().join("d")), ["file"]);
        assert_eq!(names(self.folder.path().into()), ["root"]);
        assert_eq!(std::fs::read(self.root().join("d/file")).unwrap(), b"mine");
        assert_eq!(std::fs::read(self.root().join(".env")).unwrap(), b"secret");
    }

    /// Runs a session against `lie`, which takes over once both have introduced themselves.
    async fn meets<F: Future<Output = ()> + Send + 'static>(
        &self,
        lie: impl FnOnce(Liar) -> F + Send + 'static,
    ) -> Result<Report, Error> {
        let (ours, theirs) = duplex(4096);
        let liar = tokio::spawn(async move {
            let mut liar = Liar { stream: theirs };
            assert!(
                liar.hears(|request| matches!(request, Request::Hello(_)))
                    .await
            );
            liar.say(&Reply::Hello {
                version: VERSION,
                folding: Folding::default(),
            })
            .await;
            lie(liar).await;
        });
        let limits = Limits::default()
            .with_entries(100)
            .with_silence(Duration::from_millis(500));
        let limits = limits.with_file_bytes(1 << 20);
        let hour = Duration::from_secs(3600);
        let options = Options::default()
            .with_limits(limits)
            .with_timing(hour, hour);
        let result = Session::start(&self.root(), Box::new(ours), options).await;
        liar.abort();
        result.map(|session| session.initial().clone())
    }

    async fn refuses<F: Future<Output = ()> + Send + 'static>(
        &self,
        lie: impl FnOnce(Liar) -> F + Send + 'static,
    ) {
        let error = self.meets(lie).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        self.assert_intact();
    }
}

fn path(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

fn file(text: &[u8]) -> Option<Entry> {
    let digest = crate::tree::Digest::of(text);
    Some(Entry::File {
        digest,
        size: text.len() as u64,
        executable: true,
    })
}

fn scan(request: &Request) -> bool {
    matches!(request, Request::Scan(_))
}

#[tokio::test]
async fn s33_a_path_that_leaves_the_tree_ends_the_session() {
    for bytes in [
        &b"../x"[..],
        b"/x",
        b"a//b",
        b".",
        b"..",
        b"d/../../x",
        b"a\0b",
        b"",
        &[b'x'; 4096],
    ] {
        Host::new()
            .refuses(move |mut liar| async move {
                liar.hears(scan).await;
                liar.found_raw(bytes).await;
                liar.hears(|_| false).await;
            })
            .await;
    }
}

#[tokio::test]
async fn s34_a_tree_that_cannot_be_ends_the_session() {
    let link = |target: &str| {
        Some(Entry::Symlink {
            target: target.as_bytes().into(),
        })
    };
    for found in [
        vec![(path("a"), file(b"1")), (path("a/b"), file(b"1"))],
        vec![(path("a"), file(b"1")), (path("a"), Some(Entry::Directory))],
        vec![(path("no/parent"), file(b"1"))],
        vec![(path("never-was"), None)],
        vec![(path("s"), link("d")), (path("s/x"), file(b"1"))],
        // S30, S31
        vec![(path("s"), link("../out"))],
        vec![(path("s"), link("/etc/passwd"))],
        vec![
            (path("d"), Some(Entry::Directory)),
            (path("d/s"), link("x/../../..")),
        ],
        // S40
        vec![(
            path("huge"),
            Some(Entry::File {
                digest: crate::tree::Digest::of(b""),
                size: u64::MAX,
                executable: false,
            }),
        )],
    ] {
        Host::new()
            .refuses(move |mut liar| async move {
                liar.hears(scan).await;
                liar.found(found).await;
                liar.hears(|_| false).await;
            })
            .await;
    }
}

#[tokio::test]
async fn s40_an_endless_tree_ends_the_session() {
    Host::new()
        .refuses(|mut liar| async move {
            liar.hears(scan).await;
            for number in 0..1000 {
                liar.say(&Reply::Found(vec![(
                    path(&format!("f{number}")),
                    Some(Entry::Directory),
                )]))
                .await;
            }
        })
        .await;
}

#[tokio::test]
async fn s35_contents_that_are_not_what_was_promised_are_discarded() {
    let host = Host::new();
    let report = host
        .meets(|mut liar| async move {
            liar.hears(scan).await;
            liar.found(vec![(path("x"), file(b"good"))]).await;
            liar.hears(|request| matches!(request, Request::FetchEnd))
                .await;
            liar.piece(0, Part::Last, b"evil").await;
            liar.hears(|request| matches!(request, Request::OpsEnd))
                .await;
            liar.say(&Reply::NeedEnd).await;
            liar.say(&Reply::Outcome(vec![Some("no\u{1b}[2J".into()); 2]))
                .await;
            liar.say(&Reply::OutcomeEnd).await;
            liar.hears(|_| false).await;
        })
        .await
        .unwrap();
    host.assert_intact();
    assert_eq!(report.problems.len(), 3, "{report:#?}");
    assert!(
        report
            .problems
            .iter()
            .all(|problem| !problem.text.contains('\u{1b}'))
    );
}

#[tokio::test]
async fn contents_that_nobody_asked_for_end_the_session() {
    let lies: [(u32, Part, &[u8]); 4] = [
        (1, Part::Last, b"good"),
        (0, Part::Last, b"longer than promised"),
        (0, Part::More, b""),
        (0, Part::More, b"go"),
    ];
    for (item, part, bytes) in lies {
        Host::new()
            .refuses(move |mut liar| async move {
                liar.hears(scan).await;
                liar.found(vec![(path("x"), file(b"good"))]).await;
                liar.hears(|request| matches!(request, Request::FetchEnd))
                    .await;
                for _ in 0..10 {
                    liar.piece(item, part, bytes).await;
                }
                liar.hears(|_| false).await;
            })
            .await;
    }
}

#[tokio::test]
async fn needs_and_outcomes_are_bounded_by_what_was_offered() {
    // The operations are the folder `d` and the file in it.
    let answers: [Vec<Reply>; 8] = [
        // S36: it has nothing that the file would replace, did not need it, or there is no such operation.
        vec![Reply::Need(vec![1]), Reply::Have(1, vec![[0; 16]])],
        vec![Reply::Have(1, vec![[0; 16]])],
        vec![Reply::Have(u32::MAX, vec![[0; 16]])],
        vec![Reply::Need(vec![7])],
        vec![Reply::Need(vec![0])],
        vec![Reply::Need(vec![1, 1])],
        vec![Reply::NeedEnd, Reply::Outcome(vec![None; 3])],
        vec![Reply::NeedEnd, Reply::OutcomeEnd],
    ];
    for answers in answers {
        Host::new()
            .refuses(move |mut liar| async move {
                liar.hears(scan).await;
                liar.found(vec![]).await;
                liar.hears(|request| matches!(request, Request::OpsEnd))
                    .await;
                for answer in &answers {
                    liar.say(answer).await;
                }
                liar.hears(|_| false).await;
            })
            .await;
    }
}

#[test]
fn s36_no_more_blocks_are_believed_than_the_old_version_can_have() {
    let large = |size: u64| Entry::File {
        digest: crate::tree::Digest::of(b""),
        size,
        executable: false,
    };
    let op = |size: u64| Op {
        path: path("x"),
        old: Some(large(size)),
        new: Some(large(size)),
    };
    let most = u64::MAX / 2;
    let ops = [op(1 << 20), op(1 << 20), op(most)];
    let want = |item| Wanted {
        item,
        path: path("x"),
        size: 1 << 20,
        digest: None,
        index: None,
    };
    let needed = [want(1), want(2)];
    let marks = |count| vec![[0; 16]; count];
    let mut had = Had::default();
    assert!(had.add(&ops, &needed, (1, marks(257))).is_ok());
    assert!(had.add(&ops, &needed, (1, marks(1))).is_err(), "1 MiB");
    assert!(had.add(&ops, &needed, (0, marks(1))).is_err(), "not asked");
    assert!(had.add(&ops, &needed, (2, marks(0))).is_err(), "no end");
    let mut had = Had::default();
    assert!(had.add(&ops, &needed, (2, marks(delta::MOST))).is_ok());
    assert!(had.add(&ops, &needed, (2, marks(1))).is_err(), "in all");
}

#[tokio::test]
async fn masked_and_held_claims_change_nothing_on_the_host() {
    let host = Host::new();
    let found = vec![
        (path(".env"), file(b"mine now")),
        (path(".git"), Some(Entry::Directory)),
        (path(".git/hooks"), Some(Entry::Directory)),
        (path(".git/hooks/post-checkout"), file(b"evil")),
        (path(".sandbox-sync-staging"), file(b"evil")),
    ];
    let report = host
        .meets(|mut liar| async move {
            liar.hears(scan).await;
            liar.found(found).await;
            liar.hears(|request| matches!(request, Request::OpsEnd))
                .await;
            liar.say(&Reply::NeedEnd).await;
            liar.say(&Reply::Outcome(vec![Some(String::new()); 2]))
                .await;
            liar.say(&Reply::OutcomeEnd).await;
            liar.hears(|_| false).await;
        })
        .await
        .unwrap();
    assert_eq!(report.held.len(), 2);
    // An empty `.git` folder is all that flows.
    std::fs::remove_dir(host.root().join(".git")).unwrap();
    host.assert_intact();
}

#[tokio::test]
async fn s54_a_silent_guest_is_not_waited_for_without_end() {
    let host = Host::new();
    let silent = host
        .meets(|mut liar| async move { assert!(!liar.hears(|_| false).await) })
        .await;
    assert_eq!(silent.unwrap_err().kind(), ErrorKind::TimedOut);
    host.assert_intact();
}

#[tokio::test]
async fn i13_lengths_are_bounded_before_memory_is_reserved() {
    let header = |length: u32| {
        let (modified, blocks) = (None::<(i64, u32)>, None::<u8>);
        let body = (5u8, 0u32, Part::Last, modified, length, blocks);
        sandbox_base::frame::encode(&body, MESSAGE).unwrap()
    };
    for bytes in [vec![0xff; 4], header(u32::MAX), header(CHUNK as u32 + 1)] {
        Host::new()
            .refuses(move |mut liar| async move {
                liar.hears(scan).await;
                liar.raw(&bytes).await;
                liar.hears(|_| false).await;
            })
            .await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Twin of the fuzz target `guest`.
    #[test]
    fn arbitrary_bytes_end_the_session_and_change_nothing(bytes: Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let host = Host::new();
            let result = host.meets(move |mut liar| async move {
                liar.hears(scan).await;
                liar.raw(&bytes).await;
            }).await;
            assert!(result.is_err());
            host.assert_intact();
        });
    }
}
