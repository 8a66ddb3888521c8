//! Connections through the proxy that this host itself goes through.
//!
//! ```text
//!   judged addresses ──┬── not public, or excepted ──► dialled from here
//!                      └── public ──► CONNECT address / SOCKS5 address
//!   judged name ───────────────────► CONNECT name / SOCKS5 name / absolute form (plain HTTP)
//! ```
//!
//! [`crate::upstream`] says why.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sandbox_base::BoxStream;
use tokio::{sync::Mutex, time::timeout};

use super::{
    Connector, Judged, Link, Protocol,
    ask::{self, AbsoluteForm, Place, fault},
    dial::{Dialled, dial},
};
use crate::{
    policy::{Allowed, Carriage, Denial, Host, Reason, Target, classify},
    proxy::Way,
    upstream::{Endpoint, Login, Scheme, UpstreamProxy},
};

/// How long what was learned about a proxy's own name counts. Common time-to-live values are longer.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// The longest that a proxy's own name is looked up.
const LOOKUP: Duration = Duration::from_secs(5);
/// The most addresses of a proxy that are tried.
const MAX_ADDRESSES: usize = 8;

/// Goes through the proxies of this host.
pub(in crate::proxy) struct Via {
    config: UpstreamProxy,
    known: Vec<Known>,
    #[cfg(feature = "inspect")]
    tls: crate::inspect::Upstream,
}

/// A proxy, with what its name means now.
struct Known {
    endpoint: Arc<Endpoint>,
    /// Held while it is looked up, so that one lookup serves all who wait for it.
    addresses: Mutex<Option<(Vec<OfProxy>, Instant)>>,
}

/// An address of a proxy that the embedder named. Nothing that a sandbox says becomes one.
#[derive(Debug, Clone, Copy)]
struct OfProxy(SocketAddr);

impl Dialled for OfProxy {
    fn address(self) -> SocketAddr {
        self.0
    }
}

impl Via {
    pub(in crate::proxy) fn new(config: UpstreamProxy) -> Self {
        let mut known: Vec<Known> = Vec::new();
        for endpoint in config.endpoints() {
            if !known.iter().any(|one| Arc::ptr_eq(&one.endpoint, endpoint)) {
                known.push(Known {
                    endpoint: Arc::clone(endpoint),
                    addresses: Mutex::default(),
                });
            }
        }
        Self {
            known,
            #[cfg(feature = "inspect")]
            tls: crate::inspect::Upstream::new(config.roots.clone()),
            config,
        }
    }

    /// Whether a target's name is sent, so that the proxy looks it up for itself.
    pub(in crate::proxy) fn sends_name(&self, target: &Target, carriage: Carriage) -> bool {
        self.config.sends_name(target, carriage)
    }

    /// Denies a target that is one of the proxies themselves: by its name, by its address and port, and by any port of
    /// a public address. Of an address that is not public a rule opened the one port.
    pub(in crate::proxy) async fn refuse_itself(
        &self,
        target: &Target,
        addresses: &[Allowed<SocketAddr>],
    ) -> Result<(), Denial> {
        for known in &self.known {
            let Endpoint { host, .. } = &*known.endpoint;
            let is_name = match &target.host {
                Host::Name(name) => host
                    .trim_end_matches('.')
                    .eq_ignore_ascii_case(name.as_str()),
                Host::Address(_) => false,
            };
            if is_name {
                return Err(itself());
            }
            let own = known.addresses().await.map_err(|_| unknown())?;
            let is_own = |allowed: &Allowed<SocketAddr>| {
                let address = allowed.address();
                own.iter().any(|OfProxy(own)| {
                    own.ip().to_canonical() == address.ip()
                        && (own.port() == address.port() || classify(address.ip()).is_none())
                })
            };
            if addresses.iter().any(is_own) {
                return Err(itself());
            }
        }
        Ok(())
    }

    /// Says what would help where this host cannot look a name up that a proxy may know.
    pub(in crate::proxy) fn explain(
        &self,
        denial: Denial,
        (target, carriage): (&Target, Carriage),
    ) -> Denial {
        let is_proxied = self.config.for_target(target, carriage).is_some();
        match denial.reason {
            Reason::Unresolved if is_proxied && !self.config.sends_name(target, carriage) => denial
                .with_remedy(
                    "this host goes through a proxy that may know the name: have names sent to it",
                ),
            _ => denial,
        }
    }

    /// Tells which way [`connect`](Connector::connect) would take.
    pub(in crate::proxy) fn way(
        &self,
        (target, carriage): (&Target, Carriage),
        addresses: &[Allowed<SocketAddr>],
        by_name: bool,
    ) -> Way {
        let Some(endpoint) = self.config.for_target(target, carriage) else {
            return Way::Excepted;
        };
        let proxy = endpoint.to_string();
        match (near(addresses).next(), by_name) {
            (Some(_), _) => Way::Near,
            (None, true) => Way::ByName {
                proxy,
                judged: !addresses.is_empty(),
            },
            (None, false) => Way::ByAddress { proxy },
        }
    }

    fn known(&self, endpoint: &Arc<Endpoint>) -> io::Result<&Known> {
        let mut known = self.known.iter();
        known
            .find(|known| Arc::ptr_eq(&known.endpoint, endpoint))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Connects to a proxy, with TLS if it wants it.
    async fn reach(&self, endpoint: &Arc<Endpoint>, limit: Duration) -> io::Result<BoxStream> {
        let unreachable = |_| fault("upstream-proxy", "the upstream proxy does not answer");
        let addresses = self.known(endpoint)?.addresses().await?;
        let (stream, _) = dial(&addresses, limit).await.map_err(unreachable)?;
        if endpoint.scheme != Scheme::Https {
            return Ok(Box::new(stream));
        }
        self.secure(endpoint, stream).await
    }

    #[cfg(feature = "inspect")]
    async fn secure(
        &self,
        endpoint: &Endpoint,
        stream: tokio::net::TcpStream,
    ) -> io::Result<BoxStream> {
        let wrong = |what: crate::fault::Fault| {
            // Written about hosts in general; this one is the proxy.
            fault(
                "upstream-proxy",
                format!("TLS to the upstream proxy: {what}"),
            )
        };
        let name = crate::inspect::server_name(&endpoint.host).map_err(wrong)?;
        let offer = [crate::inspect::Protocol::Http1];
        let shaken = self.tls.shake_hands(name, &offer, stream).await;
        let (stream, _) = shaken.map_err(wrong)?;
        Ok(Box::new(stream))
    }

    #[cfg(not(feature = "inspect"))]
    async fn secure(&self, _: &Endpoint, _: tokio::net::TcpStream) -> io::Result<BoxStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has a proxy open a tunnel.
    async fn tunnel(
        &self,
        endpoint: &Arc<Endpoint>,
        (place, limit): (Place<'_>, Duration),
    ) -> io::Result<BoxStream> {
        let opening = async {
            let stream = self.reach(endpoint, limit).await?;
            let login = endpoint.login.as_ref();
            match endpoint.scheme {
                Scheme::Socks5 => ask::socks(stream, place, login).await,
                Scheme::Http | Scheme::Https => {
                    ask::connect(stream, place, login.map(Login::basic)).await
                }
            }
        };
        let late = || {
            fault(
                "upstream-proxy",
                "the upstream proxy does not answer in time",
            )
        };
        timeout(limit, opening)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// Asks for one address after the other, each in its share of the time. A login that is refused for one is
    /// refused for all.
    async fn pinned(
        &self,
        endpoint: &Arc<Endpoint>,
        (addresses, limit): (&[Allowed<SocketAddr>], Duration),
    ) -> io::Result<Link> {
        let deadline = Instant::now() + limit;
        let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (tried, allowed) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match self
                .tunnel(endpoint, (Place::Address(*allowed), share))
                .await
            {
                Ok(stream) => return Ok(link(stream, Some(allowed.address()))),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Has a proxy look a name up.
    async fn named(
        &self,
        (endpoint, place): (&Arc<Endpoint>, Place<'_>),
        (messages, limit): (bool, Duration),
    ) -> io::Result<Link> {
        if !messages || endpoint.scheme == Scheme::Socks5 {
            let stream = self.tunnel(endpoint, (place, limit)).await?;
            return Ok(link(stream, None));
        }
        let late = || {
            fault(
                "upstream-proxy",
                "the upstream proxy does not answer in time",
            )
        };
        let reached = timeout(limit, self.reach(endpoint, limit)).await;
        let stream = reached.unwrap_or_else(|_| Err(late()))?;
        let mut link = link(stream, None);
        link.absolute = Some(AbsoluteForm(endpoint.login.as_ref().map(Login::basic)));
        Ok(link)
    }
}

/// The addresses that are not public: they mean other machines to a proxy than to this host.
fn near(addresses: &[Allowed<SocketAddr>]) -> impl Iterator<Item = &Allowed<SocketAddr>> {
    let is_near = |allowed: &&Allowed<SocketAddr>| classify(allowed.address().ip()).is_some();
    addresses.iter().filter(is_near)
}

fn link(stream: BoxStream, address: Option<SocketAddr>) -> Link {
    Link {
        stream,
        address,
        protocol: Protocol::Http1,
        absolute: None,
    }
}

#[async_trait]
impl Connector for Via {
    async fn connect(&self, to: Judged<'_>, limit: Duration) -> io::Result<Link> {
        let near: Vec<_> = near(to.addresses).copied().collect();
        let endpoint = self.config.for_target(to.target, to.carriage);
        let Some(endpoint) = endpoint.filter(|_| near.is_empty()) else {
            let direct = if near.is_empty() { to.addresses } else { &near };
            let (stream, address) = dial(direct, limit).await?;
            return Ok(link(Box::new(stream), Some(address)));
        };
        match to.name {
            Some(name) => {
                let place = Place::Name(name, to.target.port);
                let messages = to.carriage == Carriage::Http && !to.upgrade;
                self.named((endpoint, place), (messages, limit)).await
            }
            None => self.pinned(endpoint, (to.addresses, limit)).await,
        }
    }
}

impl Known {
    /// Returns the proxy's own addresses.
    async fn addresses(&self) -> io::Result<Vec<OfProxy>> {
        let mut known = self.addresses.lock().await;
        if let Some((addresses, since)) = &*known
            && since.elapsed() < KNOWN_FOR
        {
            return Ok(addresses.clone());
        }
        let Endpoint { host, port, .. } = &*self.endpoint;
        // As other programs do: with search domains and the hosts file.
        let found = timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), *port))).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let unknown = |_| fault("upstream-proxy", "the upstream proxy's name has no address");
        let found = found.map_err(unknown)?.map(OfProxy).take(MAX_ADDRESSES);
        let addresses: Vec<_> = found.collect();
        *known = Some((addresses.clone(), Instant::now()));
        Ok(addresses)
    }
}

fn itself() -> Denial {
    Denial::new(
        Reason::UpstreamProxy,
        "this is the proxy that the sandbox's host goes through, which judges nothing",
    )
}

fn unknown() -> Denial {
    Denial::new(
        Reason::Unresolved,
        "the upstream proxy's own addresses could not be learned",
    )
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Via").field(&self.config).finish()
    }
}
