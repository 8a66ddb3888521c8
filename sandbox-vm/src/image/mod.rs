//! Root file systems: from a directory, a tar, an OCI image layout or the distribution's packages to one
//! read-only image per content.
//!
//! An [`Image`] says where the files come from. An [`ImageStore`] makes a [`RootImage`] of it, once: a
//! read-only EROFS file in the cache that any number of machines share, each with a writable layer of its
//! own over it (see [`crate::disk`]), and what the image's author wants to be run in it ([`ImageConfig`]).
//!
//! ```text
//! Directory ─┐
//! Tar ───────┤ entries, bounded      contents, streamed
//! OciLayout ─┼──────────────────▶ tree ──────▶ erofs ──────▶ <cache>/images/<key>/root.erofs
//! Default ───┘ mmdebstrap's tar                                                  config.json
//! ```
//!
//! Nothing of an image is ever created on the host's file system by the name that the image gives it:
//! entries go into a tree in memory and from there into the image. Owners, modes, times, hard links,
//! symbolic links, device nodes, `user.*` attributes and file capabilities are kept; POSIX access control
//! lists are not.
//!
//! The key tells whether an image has been made already. It is derived, cheaply, from:
//!
//! | source | key |
//! |---|---|
//! | OCI layout | the manifest's digest |
//! | directory | path, kind, mode, owner, size, times (of change too), device and inode numbers of each entry |
//! | tar | the file's path, size, times, device and inode number |
//! | default | distribution, release, architecture, package list and version of our customization |

mod builder;
mod compression;
#[cfg(unix)]
mod default;
#[cfg(unix)]
mod directory;
mod erofs;
mod oci;
mod store;
mod tar;
mod tree;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use store::ImageStore;

/// Where the files of a machine's root come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Image {
    /// A small system of the host's distribution with what builds of C and Python projects expect, made
    /// of the distribution's own packages on first use.
    #[default]
    Default,
    /// A folder of this host, with all below it that is on the same file system.
    Directory(PathBuf),
    /// A tar file, plain or compressed with gzip or zstd.
    Tar(PathBuf),
    /// A folder that follows the OCI image layout, as `skopeo copy`, `podman save` or `docker buildx`
    /// write it.
    #[non_exhaustive]
    OciLayout {
        /// The folder that holds `index.json`.
        path: PathBuf,
        /// Which image in it: the value of `org.opencontainers.image.ref.name`, or a digest. Without, the
        /// layout must hold one image for this host's architecture.
        reference: Option<String>,
    },
}

impl Image {
    /// Takes a folder of this host.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }

    /// Takes a tar file.
    pub fn tar(path: impl Into<PathBuf>) -> Self {
        Self::Tar(path.into())
    }

    /// Takes the only image of an OCI layout.
    pub fn oci_layout(path: impl Into<PathBuf>) -> Self {
        Self::OciLayout {
            path: path.into(),
            reference: None,
        }
    }

    /// Takes one image of an OCI layout by its reference name or digest.
    pub fn oci_layout_reference(path: impl Into<PathBuf>, reference: impl Into<String>) -> Self {
        Self::OciLayout {
            path: path.into(),
            reference: Some(reference.into()),
        }
    }
}

/// A root file system in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootImage {
    /// The read-only EROFS file. Shared: never write to it.
    pub path: PathBuf,
    /// What tells this image from all others, as `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// What the image's author wants to be run in it.
    pub config: ImageConfig,
}

/// What an image says about how it is used: a part of the OCI image specification's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Variables as `NAME=value`.
    pub env: Vec<String>,
    /// User name or number, perhaps with `:group`; `None` for root.
    pub user: Option<String>,
    /// The folder that commands start in; `None` for the root.
    pub working_dir: Option<String>,
    /// What is put before any command.
    pub entrypoint: Vec<String>,
    /// The command where none is given.
    pub cmd: Vec<String>,
    /// When the image was made, as its author says (RFC 3339).
    pub created: Option<String>,
    /// The manifest's digest, of an image that has one.
    pub manifest: Option<String>,
}
