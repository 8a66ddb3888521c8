//! The origins: one server on ports 80 and 443 of every address, which remembers who reached it where.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};
use tokio_rustls::TlsAcceptor;

use super::Node;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) version: Version,
    pub(crate) secure: bool,
}

#[derive(Debug, Default)]
struct Log {
    reached: Vec<IpAddr>,
    requests: Vec<Seen>,
}

/// A running site.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// The certificate of those who signed the site's, in PEM.
    pub(crate) root: String,
    log: Arc<Mutex<Log>>,
}

impl Site {
    /// Serves a folder: `/git/` as repositories, the rest as files; what is no file is a greeting.
    pub(crate) fn start(node: &Node, hosts: &[&str], files: &Path) -> Self {
        let (root, config) = certificates(hosts);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let log: Arc<Mutex<Log>> = Arc::default();
        let [plain, secure] = [80, 443].map(|port| {
            node.run(async move {
                // Of both families.
                TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                    .await
                    .unwrap()
            })
        });
        for (listener, acceptor) in [(plain, None), (secure, Some(acceptor))] {
            let (log, files) = (Arc::clone(&log), files.to_owned());
            node.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    let local = stream.local_addr().unwrap().ip().to_canonical();
                    log.lock().unwrap().reached.push(local);
                    let (log, files) = (Arc::clone(&log), files.clone());
                    let Some(acceptor) = acceptor.clone() else {
                        tokio::spawn(serve(stream, false, (log, files)));
                        continue;
                    };
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, true, (log, files)).await;
                        }
                    });
                }
            });
        }
        Self { root, log }
    }

    /// The addresses that connections were made to since the last time.
    pub(crate) fn reached(&self) -> Vec<IpAddr> {
        std::mem::take(&mut self.log.lock().unwrap().reached)
    }

    /// The requests that came since the last time.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.log.lock().unwrap().requests)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    secure: bool,
    (log, files): (Arc<Mutex<Log>>, PathBuf),
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let authority = request.uri().host().map(str::to_owned);
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).map(str::to_owned);
        let seen = Seen {
            host: authority.or(host).unwrap_or_default(),
            path: request.uri().path().to_owned(),
            version: request.version(),
            secure,
        };
        log.lock().unwrap().requests.push(seen.clone());
        let files = files.clone();
        async move { Ok::<_, Infallible>(answer(request, (seen, &files)).await) }
    });
    let http = auto::Builder::new(TokioExecutor::new());
    let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    drop(serving.await);
}

async fn answer(request: Request<Incoming>, (seen, files): (Seen, &Path)) -> Response<Full<Bytes>> {
    let path = seen.path.trim_start_matches('/');
    let mut response = if let Some(to) = path.strip_prefix("to/") {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::FOUND;
        let to = HeaderValue::from_str(&format!("http://{to}")).unwrap();
        response.headers_mut().insert(header::LOCATION, to);
        response
    } else if path.starts_with("git/") {
        repository(request, files).await
    } else {
        // What asks is a program that a test starts.
        let file = std::fs::read(files.join(path)).ok();
        let exists = file.is_some() || !path.contains('/');
        let greeting = format!("hello from {}", seen.host).into_bytes();
        let mut response = Response::new(Full::from(file.unwrap_or(greeting)));
        if !exists {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    };
    let elsewhere = HeaderValue::from_static("h3=\":443\"; ma=86400");
    response.headers_mut().insert(header::ALT_SVC, elsewhere);
    response
}

/// Has git answer, by CGI (RFC 3875).
async fn repository(request: Request<Incoming>, files: &Path) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let field = |name: &str| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", files)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", field("content-type"))
        .env("HTTP_CONTENT_ENCODING", field("content-encoding"))
        .env("GIT_PROTOCOL", field("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let Ok(body) = body.collect().await else {
        return Response::new(Full::default());
    };
    drop(input.write_all(&body.to_bytes()).await);
    drop(input);
    let output = child.wait_with_output().await.unwrap().stdout;
    let end = output
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let mut response = Response::new(Full::from(output[end + 4..].to_vec()));
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            *response.status_mut() = value[..3].parse().unwrap();
        } else {
            let name: header::HeaderName = name.parse().unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    response
}

/// A certificate for these hosts, and the root that it is signed by.
fn certificates(hosts: &[&str]) -> (String, ServerConfig) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "root");
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let names = hosts.iter().map(|host| (*host).to_owned());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.into()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (root, config)
}
