//! The egress of a sandbox: one proxy that outlives its machine, and a log of what it decided.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_net::{
    Proxy, captured_ports, event::Subscription, guest::capture, policy::RuleSet, resolve::Resolver,
};
use sandbox_vm::agent::GuestStreams;
use sandbox_vm::channel::protocol::{Capture, Forward, Link};
use tokio::task::AbortHandle;

/// The host's service that the guest's proxy port leads to.
pub(crate) const SERVICE: &str = "egress";

/// The host's service that every other connection inside leads to.
pub(crate) const CAPTURED: &str = "egress-captured";

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

/// What the agent is asked to do for programs that know of no proxy.
pub(crate) fn capture(proxy: &Proxy) -> Capture {
    Capture {
        service: CAPTURED.to_owned(),
        link: Link {
            address: capture::ADDRESS,
            gateway: capture::RESOLVER,
            prefix: capture::PREFIX,
        },
        ports: captured_ports(&*proxy.policy()),
    }
}

/// The variables that tell programs inside of the proxy.
pub(crate) fn environment() -> Vec<(String, String)> {
    sandbox_net::guest::proxy_environment(PROXY)
}

/// Makes the proxy of a sandbox and writes what it decides to a file.
pub(crate) fn proxy(
    policy: &RuleSet,
    resolver: Option<Arc<dyn Resolver>>,
    log: PathBuf,
) -> (Proxy, AbortHandle) {
    let mut proxy = Proxy::builder(Arc::new(policy.clone()));
    if let Some(resolver) = resolver {
        proxy = proxy.resolver(resolver);
    }
    let proxy = proxy.build();
    let events = proxy.subscribe();
    let task = tokio::spawn(write_log(events, log));
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
                Ok(Ok(name)) if name == CAPTURED => proxy.serve_captured(stream).await,
                // Nothing else is offered: the stream is dropped, which resets it.
                other => tracing::debug!(?other, "the guest wants what there is not"),
            }
        });
    }
}

async fn write_log(mut events: Subscription, path: PathBuf) {
    while let Some(event) = events.next().await {
        let line = event.to_json_line();
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || append(&path, &line)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the egress log cannot be written");
        }
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    if file.metadata()?.len() > LOG_SIZE {
        fs::rename(path, path.with_extension("jsonl.1"))?;
        file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
    }
    file.write_all(format!("{}\n", line.trim_end()).as_bytes())
}
