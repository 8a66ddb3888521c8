//! Origins with certificates of their own, and clients that trust a sandbox's authority.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use sandbox_net::{
    Proxy,
    credentials::{Credential, Credentials, Grant, Place, Secret, Source},
    inspect::Inspector,
    policy::RuleSet,
};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client::TlsStream, server::TlsStream as ServerStream,
};

use crate::support::{Rebinding, client, connect, within};

/// The value that must never be seen anywhere but at the origin.
pub(crate) const VALUE: &str = "the-real-value/+==";

pub(crate) type Body = BoxBody<Bytes, Infallible>;
type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// A body from bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// What an origin's certificate is like.
#[derive(Clone, Copy)]
pub(crate) enum Flaw {
    None,
    Expired,
    OtherName,
    UnknownIssuer,
}

/// An origin that speaks TLS.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) root: String,
    /// Every head that it received, as text.
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// Serves a handler over TLS for api.test, with these protocols.
    pub(crate) async fn start<S>(
        protocols: &[&str],
        flaw: Flaw,
        handler: impl Fn(Request<Incoming>) -> S + Send + Sync + 'static,
    ) -> Self
    where
        S: Future<Output = Response<Body>> + Send + 'static,
    {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let seen = Arc::clone(&heads);
        let serve = move |stream| {
            let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
            let service = service_fn(move |request: Request<Incoming>| {
                let text = format!(
                    "{} {} {:?}",
                    request.method(),
                    request.uri(),
                    plain(&request)
                );
                seen.lock().unwrap().push(text);
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            async move {
                let http = auto::Builder::new(TokioExecutor::new());
                drop(
                    http.serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await,
                );
            }
        };
        let site = Self::listen((protocols, flaw), serve).await;
        Self { heads, ..site }
    }

    /// Hands each connection to a handler, decrypted.
    pub(crate) async fn raw<S>(
        protocols: &[&str],
        handler: impl Fn(ServerStream<TcpStream>) -> S + Send + Sync + 'static,
    ) -> Self
    where
        S: Future<Output = ()> + Send + 'static,
    {
        Self::listen((protocols, Flaw::None), handler).await
    }

    async fn listen<S>(
        (protocols, flaw): (&[&str], Flaw),
        handler: impl Fn(ServerStream<TcpStream>) -> S + Send + Sync + 'static,
    ) -> Self
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let (root, config) = certificates(flaw, protocols);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let handler = Arc::new(handler);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        handler(stream).await;
                    }
                });
            }
        });
        Self {
            address,
            root,
            heads: Arc::default(),
        }
    }

    /// Answers with the request's headers and body as text.
    pub(crate) async fn mirror(protocols: &[&str], flaw: Flaw) -> Self {
        Self::start(protocols, flaw, |request| async move {
            let head = format!("{} {:?}\n", request.uri(), plain(&request));
            let Ok(body) = request.into_body().collect().await else {
                return Response::new(full("broken"));
            };
            Response::new(full([head.as_bytes(), &body.to_bytes()].concat()))
        })
        .await
    }

    pub(crate) fn host(&self) -> String {
        format!("api.test:{}", self.address.port())
    }

    pub(crate) fn rules(&self) -> RuleSet {
        let port = self.address.port();
        crate::support::allowing(&[
            format!("127.0.0.1/32:{port}"),
            format!("plain.test:{port}"),
            format!("api.test:{port}"),
        ])
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// A request's headers with their values, sensitive ones too.
fn plain(request: &Request<Incoming>) -> Vec<(String, String)> {
    let headers = request.headers().iter();
    headers
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into(),
            )
        })
        .collect()
}

fn certificates(flaw: Flaw, protocols: &[&str]) -> (String, ServerConfig) {
    let make = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = params.self_signed(&key).unwrap();
        (root.pem(), Issuer::new(params, key))
    };
    let (root, issuer) = make("root");
    let (_, stranger) = make("stranger");
    let name = match flaw {
        Flaw::OtherName => "other.test",
        _ => "api.test",
    };
    let names = [name, "api.example.com", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).unwrap();
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    (params.not_before, params.not_after) = match flaw {
        Flaw::Expired => ((now - 2 * day).into(), (now - day).into()),
        _ => ((now - day).into(), (now + day).into()),
    };
    let key = KeyPair::generate().unwrap();
    let issuer = match flaw {
        Flaw::UnknownIssuer => stranger,
        _ => issuer,
    };
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.into()], key)
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    (root, config)
}

/// A sandbox with one credential for an origin.
pub(crate) struct Sandbox {
    pub(crate) proxy: Proxy,
    pub(crate) inspector: Inspector,
    pub(crate) credentials: Credentials,
    pub(crate) placeholder: String,
    pub(crate) target: String,
}

impl Sandbox {
    /// Grants `ours` to the origin: header `x-key`, bearer, and whatever else is named.
    pub(crate) async fn new(site: &Site, more: &[Place]) -> Self {
        let places = [Place::Header("x-key".into()), Place::Bearer]
            .into_iter()
            .chain(more.iter().cloned());
        let grant = Grant::new(&site.host(), places).unwrap();
        let secret = |value: &str| Source::Value(Secret::new(value).unwrap());
        let elsewhere = Grant::new("elsewhere.test", [Place::Bearer]).unwrap();
        let credentials = Credentials::load([
            Credential::new("ours", secret(VALUE)).grant(grant).scrub(),
            Credential::new("other", secret("another-value")).grant(elsewhere),
        ])
        .await
        .unwrap();
        Self::with(site, credentials)
    }

    pub(crate) fn with(site: &Site, credentials: Credentials) -> Self {
        let builder = Inspector::builder().credentials(credentials.clone());
        let builder = builder.root_certificates(site.root.as_bytes()).unwrap();
        let inspector = builder.without_system_roots().build().unwrap();
        Self {
            proxy: Proxy::builder(Arc::new(site.rules()))
                .resolver(Rebinding::new(&["127.0.0.1"]))
                .inspector(inspector.clone())
                .build(),
            inspector,
            placeholder: credentials.placeholder("ours").unwrap().to_string(),
            credentials,
            target: site.host(),
        }
    }

    /// TLS through the proxy, as a client that trusts the sandbox's authority.
    pub(crate) async fn tls(
        &self,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<DuplexStream>> {
        let mut stream = client(&self.proxy);
        let head = connect(&mut stream, &self.target).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let config = trusting(self.inspector.authority().pem(), protocols);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    pub(crate) async fn http1(&self) -> TlsStream<DuplexStream> {
        self.tls("api.test", &["http/1.1"]).await.unwrap()
    }

    /// An HTTP/2 client through the proxy.
    pub(crate) async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Body> {
        let stream = self.tls("api.test", &["h2"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let shaken =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, driver) = shaken.await.unwrap();
        tokio::spawn(driver);
        sender
    }
}

/// A client's configuration.
pub(crate) fn trusting(root: &str, protocols: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    config
}
