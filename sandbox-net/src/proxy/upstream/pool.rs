//! Origins that wait for another request.
//!
//! A connection is kept under the host it was made for, the address that was judged, and the policy that judged
//! it; so a request gets one only if the policy in force allowed that request, that address among others. One that
//! a client or an origin left in any but a plain state is not kept: see [`Origin::is_ready`].

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::Origin;
use crate::policy::Target;

/// How long a connection waits. Servers close theirs after 5 (Apache, Node) to 75 seconds (nginx), and a request that
/// meets a closing connection fails.
const KEPT: Duration = Duration::from_secs(4);

/// What a connection may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::proxy) struct Key {
    pub(in crate::proxy) target: Target,
    /// `None` if an upstream proxy looked the name up.
    pub(in crate::proxy) address: Option<SocketAddr>,
    pub(in crate::proxy) generation: u64,
    /// Whether it carries TLS, so that neither stands in for the other.
    pub(in crate::proxy) tls: bool,
}

/// The connections of one sandbox that wait.
#[derive(Debug)]
pub(in crate::proxy) struct Pool {
    most: usize,
    /// The longest waiting first. Few enough to look through.
    waiting: Mutex<VecDeque<Waiting>>,
    /// Whether a task looks after those that wait too long.
    sweeping: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    origin: Origin,
    since: Instant,
}

impl Pool {
    /// A pool for at most so many connections.
    pub(in crate::proxy) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
            sweeping: AtomicBool::new(false),
        }
    }

    /// Takes a connection out that can be used at once; the one that waited shortest.
    pub(in crate::proxy) fn take(&self, key: &Key) -> Option<Origin> {
        let mut waiting = self.waiting();
        let found = waiting
            .iter()
            .rposition(|kept| kept.key == *key && kept.is_usable())?;
        if let Some(shared) = waiting[found].origin.share() {
            waiting[found].since = Instant::now();
            return Some(shared);
        }
        waiting.remove(found).map(|kept| kept.origin)
    }

    /// Keeps a connection; if there are too many, the one that waited longest goes.
    pub(in crate::proxy) fn put(self: &Arc<Self>, key: Key, origin: Origin) {
        if self.most == 0 || origin.is_closed() {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.len() >= self.most {
            expire(&mut waiting);
        }
        if waiting.len() >= self.most {
            waiting.pop_front();
        }
        let since = Instant::now();
        waiting.push_back(Waiting { key, origin, since });
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            drop(tokio::spawn(sweep(Arc::downgrade(self))));
        }
    }

    /// Closes every connection that waits.
    pub(in crate::proxy) fn clear(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_usable(&self) -> bool {
        self.origin.is_ready() && self.since.elapsed() <= KEPT
    }
}

fn expire(waiting: &mut VecDeque<Waiting>) {
    waiting.retain(|kept| !kept.origin.is_closed() && kept.since.elapsed() <= KEPT);
}

/// Closes what waited too long, until nothing waits.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(KEPT).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        let mut waiting = pool.waiting();
        expire(&mut waiting);
        if waiting.is_empty() {
            // With the lock held, so that whoever puts one in next sees it.
            pool.sweeping.store(false, Ordering::Release);
            return;
        }
    }
}
