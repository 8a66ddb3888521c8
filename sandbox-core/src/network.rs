//! The egress of a sandbox: one proxy that outlives its machine, and a log of what it decided.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox_net::{Proxy, event::LogFile, policy::RuleSet};
use sandbox_vm::agent::GuestStreams;
use sandbox_vm::channel::protocol::Forward;
use tokio::task::AbortHandle;

/// The host's service that the guest's proxy port leads to.
pub(crate) const SERVICE: &str = "egress";

/// Where programs inside find the proxy.
pub(crate) const PROXY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);

/// How long a stream of the guest may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// The size at which the log begins anew; the one before is kept beside it.
const LOG_SIZE: u64 = 16 << 20;

/// What the agent is asked to do for egress.
pub(crate) fn forward() -> Forward {
    Forward {
        port: PROXY.port(),
        service: SERVICE.to_owned(),
    }
}

/// The variables that tell programs inside of the proxy.
pub(crate) fn environment() -> Vec<(String, String)> {
    sandbox_net::guest::proxy_environment(PROXY)
}

/// Makes the proxy of a sandbox and writes what it decides to a file.
pub(crate) fn proxy(policy: &RuleSet, log: PathBuf) -> (Proxy, AbortHandle) {
    let log = LogFile::at(log, LOG_SIZE);
    let proxy = Proxy::builder(Arc::new(policy.clone())).build();
    let task = tokio::spawn(log.follow(proxy.subscribe()));
    (proxy, task.abort_handle())
}

/// Serves the streams that a guest opens, until the guest is gone.
pub(crate) async fn serve(proxy: Proxy, mut streams: GuestStreams) {
    while let Some(mut stream) = streams.next().await {
        let proxy = proxy.clone();
        tokio::spawn(async move {
            let wanted = GuestStreams::service_of(&mut stream);
            match tokio::time::timeout(PATIENCE, wanted).await {
                Ok(Ok(name)) if name == SERVICE => proxy.serve(stream).await,
                // Nothing else is offered: the stream is dropped, which resets it.
                other => tracing::debug!(?other, "the guest wants what there is not"),
            }
        });
    }
}
