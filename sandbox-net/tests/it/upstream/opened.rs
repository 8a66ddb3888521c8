//! TLS that is opened on its way through the proxy of this host.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use sandbox_net::{
    Proxy, UpstreamProxy,
    credentials::{Credential, Credentials, Grant, Place, Secret, Source},
    event::Kind,
    inspect::Inspector,
    resolve::FixedResolver,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{
    socks,
    support::{Company, PUBLIC},
};
use crate::{
    inspect::support::{Flaw, Site, VALUE, trusting},
    support::{allowing, body, client, connect, next, within},
};

const HOST: &str = "api.example.com";
const TARGET: &str = "api.example.com:7000";

/// A sandbox that has a key for the target, on a host behind a proxy.
struct Sandbox {
    proxy: Proxy,
    inspector: Inspector,
    placeholder: String,
}

impl Sandbox {
    async fn behind(upstream: UpstreamProxy, site: &Site) -> Self {
        let grant = Grant::new(TARGET, [Place::Header("x-key".into())]).unwrap();
        let secret = Source::Value(Secret::new(VALUE).unwrap());
        let credential = Credential::new("ours", secret).grant(grant).scrub();
        let credentials = Credentials::load([credential]).await.unwrap();
        let placeholder = credentials.placeholder("ours").unwrap().to_string();
        let builder = Inspector::builder().credentials(credentials);
        let builder = builder.inspect("other.example.com:7000").unwrap();
        let builder = builder.root_certificates(site.root.as_bytes()).unwrap();
        let inspector = builder.without_system_roots().build().unwrap();
        let public = PUBLIC.parse().unwrap();
        let names = FixedResolver::new().with(HOST.parse().unwrap(), [public]);
        let proxy = Proxy::builder(Arc::new(allowing(&["*.example.com:7000"])))
            .resolver(Arc::new(names))
            .inspector(inspector.clone())
            .upstream_proxy(upstream)
            .build();
        Self {
            proxy,
            inspector,
            placeholder,
        }
    }

    /// Sends the placeholder inside TLS; returns the whole answer, or why there was no TLS.
    async fn ask(&self) -> std::io::Result<String> {
        let mut stream = client(&self.proxy);
        let head = connect(&mut stream, TARGET).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let config = trusting(self.inspector.authority().pem(), &["http/1.1"]);
        let name = ServerName::try_from(HOST).unwrap();
        let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let mut stream = within(shaking).await?;
        let request = format!(
            "GET /x HTTP/1.1\r\nHost: {TARGET}\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
            self.placeholder
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        drop(within(stream.read_to_end(&mut answer)).await);
        Ok(String::from_utf8(answer).unwrap())
    }
}

/// What both kinds of proxy are asked for, and whether names are sent.
const ASKED: [(bool, &str); 2] = [(false, "8.8.8.8:7000"), (true, TARGET)];

#[tokio::test]
async fn e34_e72_a_secret_reaches_its_origin_through_http_and_not_the_upstream_proxy() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    for (names, expected) in ASKED {
        let company = Company::http_at("127.0.0.1:0", site.address).await;
        let login = UpstreamProxy::at(&company.url("http", "me:pass@")).unwrap();
        let upstream = if names { login.names() } else { login };
        let sandbox = Sandbox::behind(upstream, &site).await;
        let mut events = sandbox.proxy.subscribe();
        let answer = sandbox.ask().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("****") && !answer.contains(VALUE),
            "{answer}"
        );
        let heads = site.heads();
        let head = heads.last().unwrap();
        assert!(head.contains(VALUE), "{head}");
        assert!(!head.to_ascii_lowercase().contains("proxy-"), "{head}");
        let asked = company.asked();
        let line = format!("CONNECT {expected} HTTP/1.1\r\n");
        assert!(asked[0].starts_with(&line), "{asked:?}");
        assert!(!asked[0].contains(VALUE) && !asked[0].contains(&sandbox.placeholder));
        let used = next(&mut events, Kind::Credential).await;
        assert_eq!(used.credential.as_deref(), Some("ours"));
    }
}

#[tokio::test]
async fn e34_e72_a_secret_reaches_its_origin_through_socks() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    for (names, expected) in ASKED {
        let server = socks::server(site.address, Some(("me", "pass"))).await;
        let upstream = UpstreamProxy::at(&server.url("socks5", "me:pass@")).unwrap();
        let upstream = if names { upstream.names() } else { upstream };
        let sandbox = Sandbox::behind(upstream, &site).await;
        let answer = sandbox.ask().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(site.heads().last().unwrap().contains(VALUE));
        drop(sandbox);
        assert_eq!(socks::asked(&server).await, [expected]);
    }
}

/// An upstream proxy that opens TLS itself shows a certificate that nobody here trusts for the host.
#[tokio::test]
async fn e73_an_upstream_proxy_that_stands_in_for_the_origin_gets_no_secret() {
    for flaw in [Flaw::UnknownIssuer, Flaw::Expired] {
        let site = Site::mirror(&["http/1.1"], flaw).await;
        let company = Company::http_at("127.0.0.1:0", site.address).await;
        let socks = socks::server(site.address, None).await;
        let upstreams = [
            company.at(),
            company.at().names(),
            UpstreamProxy::at(&socks.url("socks5", "")).unwrap(),
        ];
        for upstream in upstreams {
            let sandbox = Sandbox::behind(upstream, &site).await;
            let answer = sandbox.ask().await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
            assert_eq!(body(&answer)["reason"], "certificate", "{answer}");
        }
        assert!(site.heads().is_empty());
    }
}

#[tokio::test]
async fn e34_e86_the_upstream_proxy_may_have_an_ipv6_address_alone() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let company = Company::http_at("[::1]:0", site.address).await;
    let sandbox = Sandbox::behind(company.at(), &site).await;
    let answer = sandbox.ask().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(company.asked()[0].starts_with("CONNECT 8.8.8.8:7000 "));
    assert_eq!(
        company.at().locations(),
        [format!("http://[::1]:{}", company.address.port())]
    );
    // By its address it is no target, though a rule opens that.
    let port = company.address.port();
    let rules = allowing(&[format!("[::1/128]:{port}")]);
    sandbox.proxy.set_policy(Arc::new(rules));
    let head = connect(&mut client(&sandbox.proxy), &company.address.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert_eq!(company.asked().len(), 1);
}
