//! What a connection from the sandbox is to the code that judges and tells: its number, its proxy, and what of it
//! is under way.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    Shared,
    connection::Becoming,
    lease::{Cut, Lease, PolicyWatch},
    reply,
};
#[cfg(feature = "inspect")]
use crate::inspect::Inspector;
use crate::{
    decide::{Ask, Decision, Road, uninspected},
    event::{Event, Kind},
    pace::Paced,
    policy::{Allow, Allowed, Carriage, Denial, Hello, Need, RequestLine, Target, Verdict},
};

/// A connection from the sandbox, whatever it carries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    id: u64,
    live: Arc<Live>,
}

/// The sandbox asks for more than its limits allow.
#[derive(Debug)]
pub(super) struct TooMany;

/// The exchanges of a connection that are under way, which a new policy may end.
#[derive(Default)]
struct Live {
    leases: Mutex<Vec<(u64, Lease)>>,
    cut: OnceLock<Cut>,
    exchanges: AtomicU64,
    /// Set once an answer turns the connection into something else.
    successor: Mutex<Option<Becoming>>,
}

/// A target that may be dialled, with what was decided.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) policy: PolicyWatch,
    /// The policy that decided.
    pub(super) generation: u64,
    pub(super) decision: Decision,
    pub(super) addresses: Vec<Allowed<SocketAddr>>,
    /// `None` if the client's first bytes have to be seen before anything may be sent.
    pub(super) allow: Option<Allow>,
    /// What the client's first bytes said, if they were needed.
    pub(super) hello: Option<Hello>,
    /// The one request of an exchange.
    pub(super) request: Option<RequestLine>,
}

impl Passed {
    /// Turns into the lease of the connection to one of the addresses.
    pub(super) fn lease(
        self,
        target: Target,
        carriage: Carriage,
        address: Option<SocketAddr>,
    ) -> Lease {
        Lease {
            policy: self.policy,
            generation: self.generation,
            target,
            carriage,
            candidates: self.decision.candidates,
            name: self.decision.name,
            address,
            hello: self.hello,
            request: self.request,
            approved: self.decision.approved,
            opened: false,
            method: None,
        }
    }
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> Self {
        Self {
            shared,
            id,
            live: Arc::default(),
        }
    }

    /// Asks the policy whether a target may be dialled: for one request of plain HTTP, or for a tunnel.
    pub(super) async fn judge(
        &self,
        target: &Target,
        request: Option<RequestLine>,
    ) -> Result<Passed, Denial> {
        let mut watch = self.shared.policy.subscribe();
        let (policy, generation) = watch.borrow_and_update().clone().into_parts();
        let carriage = match request {
            Some(_) => Carriage::Http,
            None => Carriage::Tunnel,
        };
        let upstream = self.shared.upstream.as_deref();
        let road = Road {
            policy: &*policy,
            resolver: &self.shared.resolver,
            approvals: self.shared.approvals.as_ref(),
            lookups: Some(&self.shared.lookups),
            sends_name: upstream.is_some_and(|via| via.sends_name(target, carriage)),
        };
        let ask = Ask {
            target,
            carriage,
            request: request.as_ref(),
        };
        let decision = road.decide(ask).await;
        let (addresses, allow) = match &decision.verdict {
            Verdict::Allow(allow) => (allow.addresses.clone(), Some(allow.clone())),
            Verdict::Need(Need::Hello { addresses }) if carriage == Carriage::Tunnel => {
                (addresses.clone(), None)
            }
            Verdict::Need(Need::Request { .. }) => return Err(uninspected()),
            Verdict::Need(_) => return Err(crate::decide::undecided()),
            Verdict::Deny(denial) => {
                return Err(match upstream {
                    Some(via) => via.explain(denial.clone(), (target, carriage)),
                    None => denial.clone(),
                });
            }
        };
        if let Some(upstream) = upstream {
            upstream.refuse_itself(target, &addresses).await?;
        }
        Ok(Passed {
            policy: watch,
            generation,
            decision,
            addresses,
            allow,
            hello: None,
            request,
        })
    }

    /// Returns who opens a tunnel's TLS, if it is to be opened: for a secret, by configuration, or because the
    /// policy judges requests.
    #[cfg(feature = "inspect")]
    pub(super) fn inspector(&self, tunnel: &Lease) -> Option<Inspector> {
        let inspector = self.shared.inspector.as_ref()?;
        let target = &tunnel.target;
        let wanted =
            inspector.wants(target) || (tunnel.needs_requests() && !inspector.is_bypassed(target));
        wanted.then(|| inspector.clone())
    }

    /// Counts a request.
    ///
    /// # Errors
    ///
    /// If it is one too many for now; that is told of, once in a while.
    pub(super) fn take_turn(&self) -> Result<(), TooMany> {
        let requests = self.shared.requests.lock();
        let paced = requests
            .unwrap_or_else(PoisonError::into_inner)
            .take(Instant::now());
        let Paced::Excess { tell } = paced else {
            return Ok(());
        };
        if tell {
            self.emit(Kind::Refused, |event| {
                event.with_reason("busy", reply::TOO_MANY)
            });
        }
        Err(TooMany)
    }

    /// Tells of this connection, if anybody listens; the event is made only then.
    pub(super) fn emit(&self, kind: Kind, fill: impl FnOnce(Event) -> Event) {
        let begin = || Event::new(kind, self.id).with_sandbox(self.shared.label.as_ref());
        self.shared.events.emit_with(|| fill(begin()));
    }

    /// Keeps a lease until it is released, so that a new policy ends the connection. Returns its number.
    ///
    /// # Errors
    ///
    /// Why the policy denies it that has come into force since the lease was granted.
    pub(super) fn hold(&self, mut lease: Lease) -> Result<u64, Denial> {
        let number = self.live.exchanges.fetch_add(1, Relaxed);
        let mut leases = self.leases();
        // Looked at with the lock held: a policy that comes later finds the lease in the list.
        if lease.is_stale() {
            drop(lease.judge()?);
        }
        leases.push((number, lease));
        Ok(number)
    }

    /// Gives up a lease.
    pub(super) fn release(&self, lease: u64) {
        self.leases().retain(|(number, _)| *number != lease);
    }

    /// Waits until a new policy denies one of the exchanges under way, and notes it.
    pub(super) async fn revoked(&self) {
        let mut watch = self.shared.policy.subscribe();
        while watch.changed().await.is_ok() {
            if let Some(denial) = self.judge_again() {
                self.cut(Cut::Revoked(denial));
                return;
            }
        }
        // The proxy is gone, and its policy can no longer change.
        std::future::pending().await
    }

    fn judge_again(&self) -> Option<Denial> {
        let mut leases = self.leases();
        leases.iter_mut().find_map(|(_, lease)| lease.judge().err())
    }

    /// Waits until the proxy takes no more requests.
    pub(super) async fn closing(&self) {
        let mut closing = self.shared.closing.subscribe();
        // The sender lives as long as the proxy does.
        drop(closing.wait_for(|closing| *closing).await);
    }

    /// Notes why the proxy ends this connection.
    pub(super) fn cut(&self, cut: Cut) {
        drop(self.live.cut.set(cut));
    }

    /// Returns why the proxy ended this connection, if it did.
    pub(super) fn why_cut(&self) -> Option<&Cut> {
        self.live.cut.get()
    }

    /// Says what the connection becomes when hyper has let go of it.
    pub(super) fn set_successor(&self, becoming: Becoming) {
        let successor = self.live.successor.lock();
        *successor.unwrap_or_else(PoisonError::into_inner) = Some(becoming);
    }

    pub(super) fn take_successor(&self) -> Option<Becoming> {
        let successor = self.live.successor.lock();
        successor.unwrap_or_else(PoisonError::into_inner).take()
    }

    fn leases(&self) -> MutexGuard<'_, Vec<(u64, Lease)>> {
        let leases = self.live.leases.lock();
        leases.unwrap_or_else(PoisonError::into_inner)
    }
}
