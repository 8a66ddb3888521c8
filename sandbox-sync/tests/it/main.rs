//! The integration tests of `sandbox-sync`: two folders, or a folder and a hostile peer, over an
//! in-memory stream. `tests/threats.md` says which test stands for which row of the threat model.

mod pair;
mod two_way;
