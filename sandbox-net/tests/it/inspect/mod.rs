//! TLS that is opened, and the secrets that are put in there.

pub(crate) mod support;

mod bodies;
mod clients;
mod requests;
mod trust;
