//! hudsucker as a forward proxy, for the `egress` benchmark.
//!
//! usage: rival-hudsucker ADDRESS [ROOTS]
//!
//! With ROOTS, a file of certificates that vouch for origins, it looks into TLS; without it splices tunnels.

use hudsucker::{
    Body, HttpContext, HttpHandler, Proxy,
    certificate_authority::RcgenAuthority,
    hyper::Request,
    rcgen::{CertificateParams, Issuer, KeyPair},
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer},
};
use hyper_rustls::HttpsConnectorBuilder;
use rustls_pki_types::pem::PemObject;

#[derive(Clone)]
struct Handler {
    intercept: bool,
}

impl HttpHandler for Handler {
    async fn should_intercept_connect(&mut self, _: &HttpContext, _: &Request<Body>) -> bool {
        self.intercept
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("an address is needed")?.parse()?;
    let trusted = arguments.next();
    let mut roots = RootCertStore::empty();
    if let Some(file) = &trusted {
        for certificate in CertificateDer::pem_file_iter(file)? {
            roots.add(certificate?)?;
        }
    }
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // As `with_rustls_connector` makes it, but for the roots.
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate()?);
    let authority = RcgenAuthority::new(issuer, 1_000, aws_lc_rs::default_provider());
    Proxy::builder()
        .with_addr(address)
        .with_ca(authority)
        .with_http_connector(connector)
        .with_http_handler(Handler {
            intercept: trusted.is_some(),
        })
        .build()?
        .start()
        .await?;
    Ok(())
}
