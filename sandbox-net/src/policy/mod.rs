//! What may be reached: pure, without sockets, clock or environment.
//!
//! | module | holds |
//! |---|---|
//! | `egress` | [`EgressPolicy`], the seam |
//! | `verdict` | [`Facts`] in, [`Verdict`] out, [`Denial`] with its [`Reason`] |
//! | `name`, `target` | [`HostName`], [`Host`], [`Target`]: one canonical form |
//! | `floor` | [`Floor`]: addresses that are refused after resolution; sole maker of [`Allowed`] |
//! | `pattern`, `request`, `clause` | [`Pattern`] for hosts, [`Requests`] for methods and paths, [`Clause`]: one rule |
//! | `rules`, `layers` | [`RuleSet`], [`Mode`]; [`Layers`]: rules of several authors |
//! | `file` | rules as TOML and JSON |
//! | `preset` | [`Preset`]: rules that are ready made; [`Registries`]: what package managers are configured for |
//! | `index`, `judge` | how they are matched, and the decision itself |
//!
//! What the module ignores: what a request carries besides its method and path. A policy that names neither does
//! not see requests at all, nor another `Host` inside an allowed TLS connection.

mod clause;
mod egress;
mod file;
mod floor;
mod index;
mod judge;
mod layers;
mod name;
mod pattern;
mod preset;
mod punycode;
mod request;
mod rules;
mod target;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod verdict;

pub use clause::Clause;
pub use egress::EgressPolicy;
pub use floor::{Allowed, Candidate, Class, Floor, Opening, classify};
pub(crate) use judge::remedy_pattern;
pub use layers::{Layer, Layers};
pub use name::HostName;
pub use pattern::Pattern;
pub(crate) use preset::default_of_help;
pub use preset::{CURATED, CURATED_VERSION, Manager, Note, Preset, Registries, Registry};
pub use request::{OVERRIDES, PathPattern, RequestLine, RequestPath, Requests};
pub use rules::{Mode, RuleSet};
pub use target::{Host, Target};
#[cfg(any(test, feature = "testing"))]
pub use testing::{Asked, Scripted};
pub use verdict::{Allow, Carriage, Denial, Facts, Hello, Need, Reason, Rule, Verdict};
