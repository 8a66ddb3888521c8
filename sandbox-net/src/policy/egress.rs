//! The seam: what an egress policy is.

use std::{collections::BTreeSet, fmt::Debug};

use crate::policy::{Facts, RuleSet, Verdict};

/// Judges connections as facts about them arrive.
///
/// [`RuleSet`] is the implementation that most embedders want; write your own to ask a person, a database or
/// another policy first. [`Allowed`](crate::policy::Allowed) addresses come from
/// [`Floor::admit`](crate::policy::Floor::admit) alone, so no implementation can let a connection through to an
/// address that the floor refuses and nobody opened.
///
/// # Guarantees asked of an implementation
///
/// - **Pure**: the answer depends on the facts and on the policy's own value. No lookups, no clock. A policy
///   that changes is replaced by a new value ([`Proxy::set_policy`](crate::Proxy::set_policy)).
/// - **Monotonic**: a later fact may turn a `Need` into anything, but asking again with the same facts gives the
///   same verdict. Live connections are judged again whenever the policy is replaced.
/// - **Quick**: it is called on the threads that move bytes. Well under a millisecond.
/// - **Total**: it does not panic. A policy that cannot decide denies.
pub trait EgressPolicy: Debug + Send + Sync + 'static {
    /// Judges what is known so far.
    ///
    /// Called first with target and carriage alone. A `Need` is answered by another call with that fact added;
    /// a policy that asks for a fact it was already given is taken to deny.
    fn judge(&self, facts: &Facts<'_>) -> Verdict;

    /// Returns the policy in the form that can be written down, `None` if it has none.
    ///
    /// A supervisor in another process can enforce only a policy that can be written down.
    fn rules(&self) -> Option<&RuleSet>;

    /// Returns the ports that its allow rules name, so that connections to them can be captured inside; without an
    /// answer of its own, those of [`rules`](Self::rules).
    fn named_ports(&self) -> BTreeSet<u16> {
        self.rules().map(RuleSet::named_ports).unwrap_or_default()
    }
}
