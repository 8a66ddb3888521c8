//! What the benchmarks share. One binary per question; every figure stands beside the bare floor of the
//! same machine, measured in turns in the same run, because a figure alone says more about the host than
//! about the sandbox.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | the few options that all have |
//! | [`place`] | folders of its own for every run, kernels and images shared |
//! | [`floor`] | a bare QEMU with the same command line and the least possible first process |
//! | [`report`] | medians, ratios, the table and its JSON |
//! | [`process`] | what a process holds and uses, as `/proc` says |
//! | [`marks`] | when the stages of a start were reached, as the libraries' own diagnostics say |

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what benchmarks do"
)]

#[cfg(target_os = "linux")]
pub mod floor;
pub mod marks;
pub mod options;
pub mod place;
pub mod process;
pub mod report;

/// What goes wrong is told to the person who started the benchmark.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Failure>;
