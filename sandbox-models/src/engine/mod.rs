//! The back ends, one folder each, and the only list of them.

#[cfg(feature = "endpoint")]
pub mod endpoint;
