//! What keeps a live connection allowed.
//!
//! An allowed connection holds the facts that it was allowed for. Whenever the policy is replaced they are judged
//! again; a connection that the new policy would not have made is cut at once. The lease is taken on the policy
//! *before* the first question is asked, so that a replacement in between is never missed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::meter::Meter;
#[cfg(feature = "inspect")]
use crate::policy::Host;
use crate::{
    decide::{judge_all, undecided, uninspected},
    policy::{
        Allow, Allowed, Candidate, Carriage, Denial, EgressPolicy, Facts, Hello, HostName, Need,
        RequestLine, Target, Verdict,
    },
};

/// The policy in force, with the number of policies that were in force before it.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    pub(crate) policy: Arc<dyn EgressPolicy>,
    pub(crate) generation: u64,
}

impl InForce {
    pub(crate) fn into_parts(self) -> (Arc<dyn EgressPolicy>, u64) {
        (self.policy, self.generation)
    }
}

/// The policy in force, and notice of the next one.
pub(crate) type PolicyWatch = watch::Receiver<InForce>;

/// Why a live connection was ended by the proxy.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The policy that is in force now denies it.
    Revoked(Denial),
    /// No byte passed for the time that is allowed.
    Idle,
}

/// The facts that a connection was allowed for.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) policy: PolicyWatch,
    /// The policy that judged it last.
    pub(crate) generation: u64,
    pub(crate) target: Target,
    pub(crate) carriage: Carriage,
    /// All that the target resolved to.
    pub(crate) candidates: Vec<Candidate>,
    /// The name, if an upstream proxy looked it up.
    pub(crate) name: Option<Allowed<HostName>>,
    /// The one that was dialled, if that is known.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) hello: Option<Hello>,
    /// The one request of an exchange.
    pub(crate) request: Option<RequestLine>,
    pub(crate) approved: bool,
    /// Whether the tunnel is opened, so that each of its requests is judged.
    pub(crate) opened: bool,
    /// How the client asked for a tunnel; `None` if it was captured, or is none.
    pub(crate) method: Option<&'static str>,
}

impl Lease {
    /// Tells whether the policy in force judges the requests of this tunnel, once its handshake names the target.
    #[cfg(feature = "inspect")]
    pub(crate) fn needs_requests(&self) -> bool {
        let hello = match &self.target.host {
            Host::Name(name) => Hello::Named(name.clone()),
            Host::Address(_) => Hello::Unnamed,
        };
        let facts = Facts::new(&self.target, self.carriage).with_hello(&hello);
        let policy = Arc::clone(&self.policy.borrow().policy);
        let verdict = judge_all(&*policy, facts, self.known());
        matches!(verdict, Verdict::Need(Need::Request { .. }))
    }

    /// Judges the connection by the policy that is in force now. It is allowed only with the address it has.
    pub(crate) fn judge(&mut self) -> Result<Allow, Denial> {
        let (policy, generation) = self.policy.borrow_and_update().clone().into_parts();
        self.generation = generation;
        let mut facts = Facts::new(&self.target, self.carriage);
        if let Some(hello) = &self.hello {
            facts = facts.with_hello(hello);
        }
        if let Some(request) = &self.request {
            facts = facts.with_request(request);
        }
        if self.approved {
            facts = facts.with_approval();
        }
        match judge_all(&*policy, facts, self.known()) {
            Verdict::Allow(allow) if self.holds(&allow) => Ok(allow),
            Verdict::Allow(_) | Verdict::Need(Need::Addresses | Need::Hello { .. }) => {
                Err(undecided())
            }
            Verdict::Need(Need::Request { addresses }) if self.opened && self.request.is_none() => {
                let allow = Allow::new(addresses);
                self.holds(&allow).then_some(allow).ok_or_else(undecided)
            }
            Verdict::Need(Need::Request { .. }) => Err(uninspected()),
            Verdict::Deny(denial) => Err(denial),
        }
    }

    /// Whether another policy is in force than the one that judged it last.
    pub(crate) fn is_stale(&self) -> bool {
        self.policy.borrow().generation != self.generation
    }

    /// Waits until the connection has to end.
    pub(crate) async fn ends(&mut self, meter: &Meter, idle: Duration) -> Cut {
        tokio::select! {
            denial = self.revoked() => Cut::Revoked(denial),
            () = silence(meter, idle) => Cut::Idle,
        }
    }

    /// The addresses, and whether the name is looked up elsewhere, too.
    fn known(&self) -> (&[Candidate], bool) {
        (&self.candidates, self.name.is_some())
    }

    fn holds(&self, allow: &Allow) -> bool {
        let mut addresses = allow.addresses.iter();
        match self.address {
            Some(address) => addresses.any(|allowed| allowed.address() == address),
            // Each was judged, or there is none.
            None => self.name.is_some(),
        }
    }

    async fn revoked(&mut self) -> Denial {
        while self.policy.changed().await.is_ok() {
            if let Err(denial) = self.judge() {
                return denial;
            }
        }
        // The proxy is gone, and its policy can no longer change; the connection belongs to whoever serves it.
        std::future::pending().await
    }
}

/// Waits until no byte has passed for this long, or up to twice as long.
pub(super) async fn silence(meter: &Meter, idle: Duration) {
    loop {
        let before = meter.total();
        tokio::time::sleep(idle).await;
        if meter.total() == before {
            return;
        }
    }
}
