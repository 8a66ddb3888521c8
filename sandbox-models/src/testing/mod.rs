//! What embedders test with: a back end that answers from a script, and the contract of the seam.

mod contract;
mod scripted;

pub use contract::contract;
pub use scripted::{Reply, Scripted};
