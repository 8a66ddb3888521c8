//! The side of the world: connections to judged addresses, and HTTP over them.
//!
//! | module | holds |
//! |---|---|
//! | `dial` | TCP connections, to judged addresses only |
//! | `via`, `ask` | connections through the proxy of this host; what it is asked and what it answers |
//! | `origin` | one HTTP connection to an origin, with a gate before its answers |
//! | `pool` | origins that wait for another request |

mod ask;
mod dial;
mod origin;
mod pool;
mod via;

use std::{fmt::Debug, io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use sandbox_base::BoxStream;

pub(super) use ask::{AbsoluteForm, UNAUTHORIZED, unauthorized};
pub(super) use origin::{Origin, Settings, Upload};
pub(super) use pool::{Key, Pool};
pub(super) use via::Via;

use crate::policy::{Allowed, Carriage, HostName, Target};

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
    pub(super) target: &'a Target,
    pub(super) addresses: &'a [Allowed<SocketAddr>],
    /// The target's name, if an upstream proxy is to look it up.
    pub(super) name: Option<&'a Allowed<HostName>>,
    pub(super) carriage: Carriage,
    /// Whether a request of plain HTTP asks for another protocol.
    pub(super) upgrade: bool,
}

/// A connection that was made.
pub(super) struct Link {
    pub(super) stream: BoxStream,
    /// The judged address that it leads to; `None` if an upstream proxy looked the name up.
    pub(super) address: Option<SocketAddr>,
    pub(super) protocol: Protocol,
    /// How requests are written on it, if it leads to an upstream proxy that forwards them.
    pub(super) absolute: Option<AbsoluteForm>,
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
            address: Some(address),
            protocol: Protocol::Http1,
            absolute: None,
        })
    }
}
