//! The host's end of connections that a guest captured: no request for a tunnel, no answer to it.

use std::{net::SocketAddr, sync::Arc};

use sandbox_benches::Result;
use sandbox_core::net::{Limits, Proxy, policy::RuleSet};
use tokio::net::TcpListener;

/// Serves captured connections to a port of this machine until it is killed. The streams come over TCP, as requests for the
/// other proxies do.
pub(crate) async fn serve(address: SocketAddr, port: u16) -> Result<()> {
    let rules = RuleSet::deny().allow(&format!("127.0.0.0/8:{port}"))?;
    let limits = Limits::default()
        .with_connections(20_000)
        .with_requests_per_second(0)
        .with_lookups_per_second(0);
    let proxy = Proxy::builder(Arc::new(rules)).limits(limits).build();
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let proxy = proxy.clone();
        tokio::spawn(async move { proxy.serve_captured(stream).await });
    }
}
