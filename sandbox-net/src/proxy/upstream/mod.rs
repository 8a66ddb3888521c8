//! The side of the world: connections to judged addresses, and HTTP over them.
//!
//! | module | holds |
//! |---|---|
//! | `dial` | TCP connections, to judged addresses only |
//! | `origin` | one HTTP connection to an origin, with a gate before its answers |
//! | `pool` | origins that wait for another request |

mod dial;
mod origin;
mod pool;

use std::{fmt::Debug, io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use sandbox_base::BoxStream;

pub(super) use origin::{Origin, Settings, Upload};
pub(super) use pool::{Key, Pool};

use crate::policy::{Allowed, Target};

/// Makes connections to targets that were judged: straight, through another proxy, with TLS on top.
#[async_trait]
pub(super) trait Connector: Debug + Send + Sync + 'static {
    /// Connects to one of a target's judged addresses, within the time limit.
    ///
    /// Dropping the future closes what was opened.
    ///
    /// # Errors
    ///
    /// What kept the last address that was tried from being reached.
    async fn connect(&self, to: Judged<'_>, limit: Duration) -> io::Result<Link>;
}

/// A target and those of its addresses that may be dialled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged<'a> {
    #[cfg_attr(
        not(feature = "inspect"),
        allow(dead_code, reason = "only TLS asks for the name")
    )]
    pub(super) target: &'a Target,
    pub(super) addresses: &'a [Allowed<SocketAddr>],
}

/// A connection that was made.
pub(super) struct Link {
    pub(super) stream: BoxStream,
    /// The judged address that it leads to.
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or anything in a tunnel.
    Http1,
    /// HTTP/2, agreed on in the TLS handshake.
    Http2,
}

/// Connects straight to the address.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Direct;

#[async_trait]
impl Connector for Direct {
    async fn connect(&self, to: Judged<'_>, limit: Duration) -> io::Result<Link> {
        let (stream, address) = dial::dial(to.addresses, limit).await?;
        Ok(Link {
            stream: Box::new(stream),
            address,
            protocol: Protocol::Http1,
        })
    }
}
