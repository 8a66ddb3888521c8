//! Decisions, each with what was weighed.

#[doc = include_str!("0001-helper-binary.md")]
pub mod helper_binary {}
