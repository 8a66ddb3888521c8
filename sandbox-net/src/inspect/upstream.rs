//! TLS towards origins: verified, always.
//!
//! Roots are those of this system, so that what a company trusts is trusted, and verification is webpki's on every
//! system: it gives the same verdict everywhere, never waits for the network, and is what the tests test. What it
//! leaves out is revocation lists, as most clients do.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::sync::OnceCell;
use tokio_rustls::{TlsConnector, client::TlsStream};

use sandbox_base::ByteStream;

use super::Protocol;
use crate::{
    Error,
    fault::Fault,
    policy::{Host, Target},
};

/// The sessions that are kept for resumption.
const SESSIONS: usize = 256;

/// Who vouches for origins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roots {
    pub(super) extra: Vec<CertificateDer<'static>>,
    pub(super) without_system: bool,
}

impl Roots {
    /// Adds the certificates of a PEM text.
    pub(crate) fn add_pem(&mut self, pem: &[u8]) -> Result<(), Error> {
        let wrong = |what: String| Error::invalid("add root certificates", what);
        let before = self.extra.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            RootCertStore::empty()
                .add(certificate.clone())
                .map_err(|error| wrong(error.to_string()))?;
            self.extra.push(certificate);
        }
        match self.extra.len() == before {
            true => Err(wrong("there is no certificate in the text".to_owned())),
            false => Ok(()),
        }
    }

    /// Reads the system's certificates, which takes some milliseconds and blocks.
    fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        if !self.without_system {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "some of the system's root certificates cannot be read");
            }
            // Some systems carry certificates that no longer parse.
            store.add_parsable_certificates(found.certs);
        }
        store.add_parsable_certificates(self.extra.iter().cloned());
        store
    }
}

/// Makes TLS connections to origins.
#[derive(Debug)]
pub(crate) struct Upstream {
    roots: Roots,
    config: OnceCell<ClientConfig>,
}

impl Upstream {
    pub(crate) fn new(roots: Roots) -> Self {
        Self {
            roots,
            config: OnceCell::new(),
        }
    }

    /// Shakes hands with an origin, offering these protocols; returns the stream and the one it chose.
    pub(super) async fn connect<S: ByteStream>(
        &self,
        target: &Target,
        offer: &[Protocol],
        stream: S,
    ) -> Result<(TlsStream<S>, Option<Protocol>), Fault> {
        let name = match &target.host {
            Host::Name(name) => server_name(name.as_str())?,
            Host::Address(address) => ServerName::IpAddress(address.to_canonical().into()),
        };
        self.shake_hands(name, offer, stream).await
    }

    /// Shakes hands with whoever is to have a certificate for this name.
    pub(crate) async fn shake_hands<S: ByteStream>(
        &self,
        name: ServerName<'static>,
        offer: &[Protocol],
        stream: S,
    ) -> Result<(TlsStream<S>, Option<Protocol>), Fault> {
        let mut config = self.config().await?.clone();
        config.alpn_protocols = offer
            .iter()
            .map(|protocol| protocol.name().to_vec())
            .collect();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| fault(&error))?;
        let chosen = stream.get_ref().1.alpn_protocol().and_then(Protocol::named);
        Ok((stream, chosen))
    }

    async fn config(&self) -> Result<&ClientConfig, Fault> {
        let make = || async {
            let roots = self.roots.clone();
            let store = tokio::task::spawn_blocking(move || roots.store()).await;
            let store =
                store.map_err(|_| Fault::new("tls", "the root certificates cannot be read"))?;
            if store.is_empty() {
                return Err(Fault::new(
                    "tls",
                    "there are no root certificates to verify the host by",
                ));
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|_| Fault::new("tls", "TLS cannot be set up"))?
                .with_root_certificates(store)
                .with_no_client_auth();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Ok(config)
        };
        self.config.get_or_try_init(make).await
    }
}

/// Reads a name, or an address, that a certificate may be for.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Fault::new("tls", "this name cannot stand in a certificate"))
}

/// Says what went wrong in words of our own: certificates are the origin's to write.
fn fault(error: &std::io::Error) -> Fault {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoApplicationProtocol};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(InvalidCertificate(error)) => Fault::new("certificate", certificate_fault(error)),
        Some(AlertReceived(alert)) => Fault::new(
            "tls",
            format!("the host refused the TLS handshake ({alert:?})"),
        ),
        Some(NoApplicationProtocol) => {
            Fault::new("tls", "the host speaks no protocol that was offered")
        }
        Some(_) => Fault::new("tls", "the TLS handshake with the host failed"),
        None => Fault::new("upstream", "the connection to the host broke"),
    }
}

fn certificate_fault(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the host's certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the host's certificate does not hold yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the host's certificate is for another name"
        }
        CertificateError::UnknownIssuer => {
            "nobody who is trusted vouches for the host's certificate"
        }
        CertificateError::Revoked => "the host's certificate was revoked",
        CertificateError::BadSignature => "the host's certificate is not signed by whom it names",
        _ => "the host's certificate is not valid",
    }
}
