//! Decisions, each with what was weighed.

#[doc = include_str!("0001-helper-binary.md")]
pub mod helper_binary {}

#[doc = include_str!("0002-one-channel.md")]
pub mod one_channel {}

#[doc = include_str!("0003-ownership.md")]
pub mod ownership {}

#[doc = include_str!("0004-images.md")]
pub mod images {}

#[doc = include_str!("0005-qemu.md")]
pub mod qemu {}

#[doc = include_str!("0006-capture.md")]
pub mod capture {}

#[doc = include_str!("0007-templates.md")]
pub mod templates {}

#[doc = include_str!("0008-running-snapshots.md")]
pub mod running_snapshots {}

#[doc = include_str!("0009-clones.md")]
pub mod clones {}

#[doc = include_str!("0010-forks.md")]
pub mod forks {}
