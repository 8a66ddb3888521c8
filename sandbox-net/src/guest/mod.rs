//! The half that runs inside the guest: what programs connect to becomes streams to the host.
//!
//! | module | holds |
//! |---|---|
//! | `forward` | the proxy's port, for programs that were told of it |
//! | [`capture`] | every other connection that leaves the machine, and name lookups |
//! | [`names`] | DNS messages and the synthetic addresses behind them; pure |
//!
//! It knows nothing of HTTP or of the policy, and nothing here has to be trusted: the guest could replace it, and
//! would reach the same proxy by the same streams.

pub mod capture;
mod forward;
pub mod names;

pub use forward::{LISTEN, proxy_environment, serve};
