//! hudsucker as a forward proxy, for the `egress` benchmark.
//!
//! usage: rival-hudsucker ADDRESS [intercept]
//!
//! Without `intercept` it only splices tunnels.

use hudsucker::{
    Body, HttpContext, HttpHandler, Proxy,
    certificate_authority::RcgenAuthority,
    hyper::Request,
    rcgen::{CertificateParams, Issuer, KeyPair},
    rustls::crypto::aws_lc_rs,
};

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
    let intercept = arguments.next().is_some_and(|word| word == "intercept");
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate()?);
    let authority = RcgenAuthority::new(issuer, 1_000, aws_lc_rs::default_provider());
    Proxy::builder()
        .with_addr(address)
        .with_ca(authority)
        .with_rustls_connector(aws_lc_rs::default_provider())
        .with_http_handler(Handler { intercept })
        .build()?
        .start()
        .await?;
    Ok(())
}
