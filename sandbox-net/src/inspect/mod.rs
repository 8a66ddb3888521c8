//! TLS opened on its way, for the hosts where a request itself has to be seen.
//!
//! ```text
//!   client ══ TLS: a leaf of the sandbox's authority ══► proxy ══ TLS: verified ══► origin
//!      └──────────── the same protocol on both sides (ALPN) ─────────────────┘
//! ```
//!
//! The origin is connected to first, with the protocols that the client offered, and verified; then the client gets a
//! certificate for that very host and the protocol that the origin chose. Where the origin cannot be verified, the
//! client is answered 502 on a connection that never leads anywhere. Everything else stays closed: a target that
//! is not listed, or for which no credential was granted, is carried as it is, and so is one whose clients know the
//! origin's own certificate ([`InspectorBuilder::bypass`]).
//!
//! [`trust`] is what makes clients inside believe in the authority.

mod authority;
pub mod trust;
mod truststore;
mod upstream;

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use sandbox_base::ByteStream;
use tokio_rustls::client::TlsStream;

pub use authority::Authority;
pub(crate) use upstream::{Roots, Upstream, server_name};

use crate::{
    Error,
    credentials::Credentials,
    fault::Fault,
    policy::{Carriage, EgressPolicy, Facts, Pattern, Reason, RuleSet, Target},
};

/// The port that is meant where none is named.
const TLS_PORT: u16 = 443;

/// The protocols that can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// RFC 7301, as registered with IANA.
    pub(crate) fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }

    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        [Self::Http1, Self::Http2]
            .into_iter()
            .find(|protocol| protocol.name() == name)
    }
}

/// What is inspected for one sandbox, by whom, and which secrets are put in. Cheap to clone.
///
/// ```
/// use sandbox_net::inspect::Inspector;
///
/// let inspector = Inspector::builder()
///     .inspect("*.example.com")?
///     .bypass("pinned.example.com")?
///     .build()?;
/// assert!(inspector.wants(&"www.example.com:443".parse()?));
/// assert!(!inspector.wants(&"pinned.example.com:443".parse()?));
/// # Ok::<(), sandbox_net::Error>(())
/// ```
#[derive(Clone)]
pub struct Inspector(Arc<Inner>);

struct Inner {
    authority: Authority,
    credentials: Option<Credentials>,
    inspect: RuleSet,
    bypass: RuleSet,
    upstream: Upstream,
}

impl Inspector {
    /// Begins an inspector that inspects nothing yet.
    pub fn builder() -> InspectorBuilder {
        InspectorBuilder::default()
    }

    /// Tells whether TLS to a target is opened: it is listed or a credential is granted to it, and it is no bypass.
    pub fn wants(&self, target: &Target) -> bool {
        let granted = || {
            self.0
                .credentials
                .as_ref()
                .is_some_and(|held| held.is_granted(target))
        };
        !self.is_bypassed(target) && (names(&self.0.inspect, target) || granted())
    }

    /// Tells whether connections to a target stay closed, whatever else says that they are to be opened.
    pub fn is_bypassed(&self, target: &Target) -> bool {
        names(&self.0.bypass, target)
    }

    /// Returns the authority that clients inside have to trust.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// Returns the credentials.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.0.credentials.as_ref()
    }

    /// Shakes hands with an origin.
    pub(crate) async fn connect<S: ByteStream>(
        &self,
        target: &Target,
        offer: &[Protocol],
        stream: S,
    ) -> Result<(TlsStream<S>, Option<Protocol>), Fault> {
        self.0.upstream.connect(target, offer, stream).await
    }

    /// Makes the configuration for one client, with a leaf for the target.
    ///
    /// Sessions are not resumed: inside, a handshake costs less than keeping apart whose session it is.
    pub(crate) fn server(
        &self,
        target: &Target,
        protocol: Option<Protocol>,
    ) -> Result<Arc<ServerConfig>, Error> {
        let leaf = self.0.authority.leaf(&target.host, SystemTime::now())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::invalid("set up TLS", error))?
            .with_no_client_auth()
            .with_cert_resolver(resolver(leaf));
        config.alpn_protocols = protocol
            .map(|protocol| protocol.name().to_vec())
            .into_iter()
            .collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn resolver(leaf: Arc<CertifiedKey>) -> Arc<dyn ResolvesServerCert> {
    Arc::new(SingleCertAndKey::from(leaf))
}

/// Whether a list names a target. The lists are kept as blocks, which cover any depth below `*.`.
fn names(list: &RuleSet, target: &Target) -> bool {
    let verdict = list.judge(&Facts::new(target, Carriage::Tunnel));
    verdict
        .denial()
        .is_some_and(|denial| denial.reason == Reason::Blocked)
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector")
            .field("credentials", &self.0.credentials)
            .field("inspect", &self.0.inspect.blocked())
            .field("bypass", &self.0.bypass.blocked())
            .finish_non_exhaustive()
    }
}

/// An inspector to be.
#[derive(Debug, Default)]
#[must_use]
pub struct InspectorBuilder {
    credentials: Option<Credentials>,
    inspect: RuleSet,
    bypass: RuleSet,
    roots: Roots,
}

impl InspectorBuilder {
    /// Sets the credentials; the targets that they are granted to are inspected.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Inspects the hosts of a pattern as well, on port 443 unless it names one.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern.
    pub fn inspect(mut self, pattern: &str) -> Result<Self, Error> {
        self.inspect = self.inspect.block(&with_port(pattern)?)?;
        Ok(self)
    }

    /// Leaves the hosts of a pattern closed, whatever else says so: for clients that know the origin's certificate, or
    /// have one of their own. No credential is put in there.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern.
    pub fn bypass(mut self, pattern: &str) -> Result<Self, Error> {
        self.bypass = self.bypass.block(pattern)?;
        Ok(self)
    }

    /// Trusts the certificates of a PEM text to vouch for origins, beside the system's.
    ///
    /// # Errors
    ///
    /// `Invalid` if there is none in it, or one that cannot be read.
    pub fn root_certificates(mut self, pem: &[u8]) -> Result<Self, Error> {
        self.roots.add_pem(pem)?;
        Ok(self)
    }

    /// Does not trust the system's certificates: only those that were added.
    pub fn without_system_roots(mut self) -> Self {
        self.roots.without_system = true;
        self
    }

    /// Makes the inspector, with a new authority.
    ///
    /// # Errors
    ///
    /// `Io` if the system has no random numbers.
    pub fn build(self) -> Result<Inspector, Error> {
        Ok(Inspector(Arc::new(Inner {
            authority: Authority::new(SystemTime::now())?,
            credentials: self.credentials,
            inspect: self.inspect,
            bypass: self.bypass,
            upstream: Upstream::new(self.roots),
        })))
    }
}

fn with_port(pattern: &str) -> Result<String, Error> {
    let read = Pattern::parse(pattern)?;
    Ok(match read.port {
        Some(_) => read.to_string(),
        None => format!("{read}:{TLS_PORT}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e76_a_bypass_wins_over_everything() {
        let inspector = Inspector::builder()
            .inspect("*.a.test")
            .and_then(|builder| builder.inspect("b.test:8443"))
            .and_then(|builder| builder.bypass("x.a.test"))
            .and_then(InspectorBuilder::build)
            .unwrap();
        let wants = |text: &str| inspector.wants(&text.parse().unwrap());
        assert!(wants("www.a.test:443"));
        assert!(!wants("www.a.test:8443"));
        assert!(wants("b.test:8443"));
        assert!(!wants("b.test:443"));
        assert!(!wants("x.a.test:443"));
        assert!(!wants("c.test:443"));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for pem in [
            &b""[..],
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(Inspector::builder().root_certificates(pem).is_err());
        }
    }
}
