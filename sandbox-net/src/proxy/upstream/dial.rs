//! Connections to judged addresses, and to the proxy that an embedder named; nothing else can be dialled, by type.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::policy::Allowed;

/// What may be dialled.
pub(super) trait Dialled: Copy {
    fn address(self) -> SocketAddr;
}

impl Dialled for Allowed<SocketAddr> {
    fn address(self) -> SocketAddr {
        Allowed::address(self)
    }
}

/// Connects to the first address that answers, one after the other. Each gets an equal share of the time that is
/// left, so that one address that swallows packets cannot use it up.
pub(super) async fn dial<A: Dialled>(
    addresses: &[A],
    limit: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let deadline = Instant::now() + limit;
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (tried, allowed) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(share, connect(allowed.address())).await {
            Ok(Ok(stream)) => return Ok((stream, allowed.address())),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Small writes must not wait for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok(stream)
}
