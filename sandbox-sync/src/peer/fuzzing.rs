//! A host that hears whatever a guest may say.

use std::time::Duration;

use tokio::io::{join, sink};

use super::*;
use crate::fold::Folding;
use crate::reconcile::Op;
use crate::rules::Lists;
use crate::tree::Digest;

/// Hears a guest that says `bytes` when it is asked for its tree, and then what it needs and what came of it.
/// Each byte is the length of a message that follows, which no fuzzer would get right for long; what follows a
/// message that announces contents is read as contents.
pub fn hear(bytes: &[u8]) {
    let hello = Hello {
        version: protocol::VERSION,
        root: Vec::new(),
        owner: None,
        lists: Lists::default(),
        entries: 0,
        file_bytes: 0,
        watch: false,
    };
    let version = protocol::VERSION;
    let greeting = sandbox_base::frame::encode(
        &Reply::Hello {
            version,
            folding: Folding::default(),
        },
        protocol::MESSAGE,
    );
    let mut said = greeting.unwrap_or_default();
    let mut rest = bytes;
    while let Some((length, more)) = rest.split_first() {
        let length = usize::from(*length).min(more.len());
        let (message, more) = more.split_at(length);
        said.extend_from_slice(&(length as u32).to_le_bytes());
        said.extend_from_slice(message);
        rest = more;
    }
    block_on(async {
        let stream = Box::new(join(std::io::Cursor::new(said), sink()));
        let limits = Limits {
            entries: 50,
            file_bytes: 1 << 40,
            silence: Duration::from_secs(1),
            ..Limits::default()
        };
        let Ok(mut peer) = Peer::connect(stream, hello, limits).await else {
            return;
        };
        let base = Tree::default();
        while let Ok(Some(seen)) = peer.scan(true, &base).await {
            assert!(peer.tree().check().is_ok() && peer.tree().len() <= 50);
            assert!(seen.len() <= 100);
        }
        let ops = ops();
        if let Ok(needed) = peer.needed(&ops).await {
            let asked = |want: &Wanted| ops[want.item as usize].path == want.path;
            assert!(needed.iter().all(asked));
        }
        if let Ok(outcomes) = peer.outcomes(ops.len()).await {
            assert_eq!(outcomes.len(), ops.len());
        }
    });
}

fn ops() -> Vec<Op> {
    let file = |size| Entry::File {
        digest: Digest::of(b"contents"),
        size,
        executable: false,
    };
    let op = |name: &str, old, new| {
        let path = RelPath::new(name).ok()?;
        Some(Op { path, old, new })
    };
    let ops = [
        op("a", None, Some(file(8))),
        op("b", Some(file(1 << 20)), Some(file(1 << 21))),
        op("c", Some(file(8)), None),
        op("d", None, Some(Entry::Directory)),
    ];
    ops.into_iter().flatten().collect()
}

/// Runs something that reads from memory.
pub(crate) fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime
        .expect("a runtime of one thread can be made")
        .block_on(work);
}
