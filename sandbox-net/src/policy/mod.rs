//! What may be reached: pure, without sockets, clock or environment.
//!
//! | module | holds |
//! |---|---|
//! | `egress` | [`EgressPolicy`], the seam |
//! | `verdict` | [`Facts`] in, [`Verdict`] out, [`Denial`] with its [`Reason`] |
//! | `name`, `target` | [`HostName`], [`Host`], [`Target`]: one canonical form |
//! | `floor` | [`Floor`]: addresses that are refused after resolution; sole maker of [`Allowed`] |
//! | `pattern`, `rules` | [`Pattern`], [`RuleSet`], [`Mode`]: rules as data |
//!
//! What the module ignores: what a connection carries once it is allowed. Plain HTTP inside an allowed host, or
//! another `Host` inside an allowed TLS connection, is not seen here.

mod egress;
mod floor;
mod index;
mod name;
mod pattern;
mod punycode;
mod rules;
mod target;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod verdict;

pub use egress::EgressPolicy;
pub use floor::{Allowed, Candidate, Class, Floor, Opening, classify};
pub use name::HostName;
pub use pattern::Pattern;
pub use rules::{Mode, RuleSet};
pub use target::{Host, Target};
#[cfg(any(test, feature = "testing"))]
pub use testing::{Asked, Scripted};
pub use verdict::{Allow, Carriage, Denial, Facts, Hello, Need, Reason, Rule, Verdict};
