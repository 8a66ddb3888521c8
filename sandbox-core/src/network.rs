//! The egress of a sandbox: one proxy that outlives its machine, and a log of what it decided.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox_base::{Error, ErrorKind};
use sandbox_net::approval::Approvals;
use sandbox_net::credentials::{Credential, Credentials};
use sandbox_net::guest::capture;
use sandbox_net::inspect::{Inspector, InspectorBuilder, trust};
use sandbox_net::{
    EgressPolicy, Proxy, UpstreamProxy, captured_ports, event::LogFile, resolve::Resolver,
};
use sandbox_vm::Agent;
use sandbox_vm::agent::{GuestStreams, NewFile};
use sandbox_vm::channel::protocol::{Capture, Forward, Link};
use serde::{Deserialize, Serialize};
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

/// What is looked at inside TLS, as it is written down: no secret but by reference.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Inspection {
    #[serde(default)]
    pub(crate) credentials: Vec<Credential>,
    /// Placeholders that are on their way to another host in a body are told of, and go on.
    #[serde(default)]
    pub(crate) report_bodies_only: bool,
    #[serde(default)]
    pub(crate) inspect: Vec<String>,
    #[serde(default)]
    pub(crate) bypass: Vec<String>,
    /// Certificates in PEM.
    #[serde(default)]
    pub(crate) roots: Vec<String>,
}

impl Inspection {
    /// Fetches the secrets, these values among them, and makes an authority; `None` if nothing is to be looked at, by
    /// the policy neither.
    pub(crate) async fn begin(
        &self,
        judges_requests: bool,
        values: Vec<Credential>,
    ) -> Result<Option<Inspector>, Error> {
        let credentials: Vec<_> = self.credentials.iter().cloned().chain(values).collect();
        if credentials.is_empty() && self.inspect.is_empty() && !judges_requests {
            return Ok(None);
        }
        let mut credentials = Credentials::load(credentials).await.map_err(unusable)?;
        if self.report_bodies_only {
            credentials = credentials.report_bodies_only();
        }
        let builder = self.builder()?.credentials(credentials);
        builder.build().map(Some).map_err(unusable)
    }

    /// Checks what needs no look at the host.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.builder().map(drop)
    }

    pub(crate) fn builder(&self) -> Result<InspectorBuilder, Error> {
        let mut builder = Inspector::builder();
        for pattern in &self.inspect {
            builder = builder.inspect(pattern).map_err(unusable)?;
        }
        for pattern in &self.bypass {
            builder = builder.bypass(pattern).map_err(unusable)?;
        }
        for pem in &self.roots {
            builder = builder
                .root_certificates(pem.as_bytes())
                .map_err(unusable)?;
        }
        Ok(builder)
    }
}

pub(crate) fn unusable(error: sandbox_net::Error) -> Error {
    Error::new(error.kind(), "set up the sandbox's secrets").with_source(error)
}

/// The variables that tell programs inside of the proxy, of what to trust, and their placeholders.
pub(crate) fn environment(inspector: Option<&Inspector>) -> Vec<(String, String)> {
    let mut environment = sandbox_net::guest::proxy_environment(PROXY);
    let credentials = inspector.and_then(Inspector::credentials);
    environment.extend(credentials.into_iter().flat_map(Credentials::environment));
    environment
}

/// Makes the guest trust the authority: files of its own, and the distribution's bundle where it can be written.
pub(crate) async fn install_trust(agent: &Agent, inspector: &Inspector) -> Result<(), Error> {
    let mut found = None;
    for path in trust::SYSTEM_BUNDLES {
        match agent.read(path.as_bytes(), trust::MAX_BUNDLE).await {
            Ok(bundle) => {
                found = Some((path, bundle));
                break;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, path, "a bundle of certificates is passed over"),
        }
    }
    let bundle = found.as_ref().map(|(_, bundle)| bundle.as_slice());
    let files = trust::files(inspector.authority().pem(), bundle);
    for (path, contents) in &files.own {
        let file = NewFile::at(path.as_bytes());
        agent.write(file, contents).await?;
    }
    if let (Some((path, _)), Some(bundle)) = (found, files.bundle)
        && let Err(error) = agent.write(NewFile::at(path.as_bytes()), &bundle).await
    {
        // A root that is read-only: the variables say the same to most.
        tracing::debug!(%error, path, "the bundle of certificates stays as it is");
    }
    Ok(())
}

/// Makes the proxy of a sandbox and writes what it decides to a file, under the sandbox's name.
pub(crate) fn proxy(
    (policy, approvals): (Arc<dyn EgressPolicy>, Option<Approvals>),
    (resolver, inspector, upstream): (
        Option<Arc<dyn Resolver>>,
        Option<&Inspector>,
        Option<UpstreamProxy>,
    ),
    (name, log): (&str, PathBuf),
) -> (Proxy, AbortHandle) {
    let mut proxy = Proxy::builder(policy).label(name);
    if let Some(resolver) = resolver {
        proxy = proxy.resolver(resolver);
    }
    if let Some(approvals) = approvals {
        proxy = proxy.approvals(approvals);
    }
    if let Some(inspector) = inspector {
        proxy = proxy.inspector(inspector.clone());
    }
    if let Some(upstream) = upstream {
        proxy = proxy.upstream_proxy(upstream);
    }
    let proxy = proxy.build();
    let log = LogFile::at(log, LOG_SIZE);
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
                Ok(Ok(name)) if name == CAPTURED => proxy.serve_captured(stream).await,
                // Nothing else is offered: the stream is dropped, which resets it.
                other => tracing::debug!(?other, "the guest wants what there is not"),
            }
        });
    }
}
