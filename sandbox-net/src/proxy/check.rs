//! What a proxy would do about a target, without connecting.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Proxy;
use crate::{
    Error,
    decide::{Asked, Road},
    policy::{EgressPolicy, Target, Verdict},
};

/// What would be decided, and what would come of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Checked {
    /// What would be decided: never [`Verdict::Need`].
    pub verdict: Verdict,
    /// Which way the connection would take; `None` if it is denied.
    pub way: Option<Way>,
}

/// The way to a target that is allowed. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Way {
    /// From this host, which goes through no proxy.
    Direct,
    /// From this host, which goes through a proxy, but not for this target.
    Excepted,
    /// From this host, although it goes through a proxy: the address is not a public one.
    Near,
    /// Through the proxy of this host, which is asked for the address that was judged.
    ByAddress {
        /// Where the proxy is, without a login.
        proxy: String,
    },
    /// Through the proxy of this host, which is sent the name and looks it up for itself.
    ByName {
        /// Where the proxy is, without a login.
        proxy: String,
        /// Whether addresses of the name are known here, so that they were judged. The proxy may find others.
        judged: bool,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("from this host"),
            Self::Excepted => f.write_str("from this host, whose proxy is not for this target"),
            Self::Near => f.write_str("from this host, since the address is not a public one"),
            Self::ByAddress { proxy } => {
                write!(
                    f,
                    "through {proxy}, which is asked for the address that was judged"
                )
            }
            Self::ByName { proxy, judged } => {
                let unknown = match judged {
                    true => "it may find other addresses than those that were judged here",
                    false => {
                        "no address is known here, so rules about networks say nothing, and one beyond the proxy \
                         that is not public is not noticed"
                    }
                };
                write!(
                    f,
                    "through {proxy}, which is sent the name and looks it up for itself: {unknown}"
                )
            }
        }
    }
}

impl Proxy {
    /// Tells what the proxy would decide now about a target and which way it would go there, without connecting and
    /// without asking anybody for approval.
    ///
    /// The text is as for [`check`](crate::check), and what that says of clients and names holds here, too. That a rule
    /// has to see requests inside TLS is a denial where nobody here would open it.
    ///
    /// # Errors
    ///
    /// `Invalid` if the text names no target that the proxy would accept.
    pub async fn check(&self, text: &str) -> Result<Checked, Error> {
        self.check_by(&*self.policy(), text).await
    }

    /// As [`check`](Self::check), by a policy that may not be in force.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn check_by(&self, policy: &dyn EgressPolicy, text: &str) -> Result<Checked, Error> {
        let asked = Asked::read(text)?;
        let Asked {
            target, carriage, ..
        } = &asked;
        let upstream = self.0.upstream.as_deref();
        let road = Road {
            policy,
            resolver: &self.0.resolver,
            approvals: None,
            lookups: None,
            sends_name: upstream.is_some_and(|via| via.sends_name(target, *carriage)),
        };
        let decision = road.check(&asked, self.opens(target)).await;
        let verdict = match (decision.verdict, upstream) {
            (Verdict::Allow(allow), Some(via)) => {
                let itself = via.refuse_itself(target, &allow.addresses).await;
                itself.map_or_else(Verdict::Deny, |()| Verdict::Allow(allow))
            }
            (Verdict::Deny(denial), Some(via)) => {
                Verdict::Deny(via.explain(denial, (target, *carriage)))
            }
            (verdict, _) => verdict,
        };
        let way = match (&verdict, upstream) {
            (Verdict::Allow(allow), Some(via)) => Some(via.way(
                (target, *carriage),
                &allow.addresses,
                decision.name.is_some(),
            )),
            (Verdict::Allow(_), None) => Some(Way::Direct),
            _ => None,
        };
        Ok(Checked { verdict, way })
    }

    /// Whether the TLS of a tunnel to a target is opened where a rule has to see inside.
    #[cfg(feature = "inspect")]
    fn opens(&self, target: &Target) -> bool {
        let inspector = self.0.inspector.as_ref();
        inspector.is_some_and(|inspector| !inspector.is_bypassed(target))
    }

    #[cfg(not(feature = "inspect"))]
    fn opens(&self, _: &Target) -> bool {
        false
    }
}
