//! The origin: small answers and large ones, over HTTP and over TLS.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use sandbox_benches::Result;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tokio_rustls::TlsAcceptor;

use crate::LARGE;

/// The network whose addresses are the names of hosts: all of them lead to this machine. Tunnels go to addresses,
/// whose handshakes name nobody.
pub(crate) const HOSTS: u8 = 100;

/// How much of a large body is handed over at a time.
const PIECE: usize = 64 * 1024;

/// A running origin; dropped, it is killed.
pub(crate) struct Origin {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    folder: TempDir,
    _child: Child,
}

impl Origin {
    /// Starts one in a process of its own, as origins are.
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("origin")
            .arg(folder.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let mut address = async || -> Result<SocketAddr> {
            let line = lines.next_line().await?;
            Ok(line.ok_or("the origin does not start")?.parse()?)
        };
        let (plain, tls) = (address().await?, address().await?);
        Ok(Self {
            plain,
            tls,
            folder,
            _child: child,
        })
    }

    /// Returns the file with what a proxy has to trust that looks into TLS.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.folder.path().join(CERTIFICATE)
    }
}

const CERTIFICATE: &str = "origin.pem";

/// Is the origin: writes its certificate into `folder`, its addresses to standard output, and serves until it is killed.
pub(crate) async fn serve(folder: &Path) -> Result<()> {
    let names: Vec<String> = (1..=HOSTS).map(|host| format!("127.0.0.{host}")).collect();
    let made = rcgen::generate_simple_self_signed(names)?;
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    std::fs::write(folder.join(CERTIFICATE), made.cert.pem())?;
    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let tls = TcpListener::bind("0.0.0.0:0").await?;
    println!("{}", plain.local_addr()?);
    println!("127.0.0.1:{}", tls.local_addr()?.port());
    tokio::join!(accept(plain, None), accept(tls, Some(acceptor)));
    Ok(())
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).ok();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let http = http1::Builder::new();
            match acceptor {
                None => drop(
                    http.serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await,
                ),
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        drop(
                            http.serve_connection(TokioIo::new(stream), service_fn(answer))
                                .await,
                        );
                    }
                }
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
) -> std::result::Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let body = match request.uri().path() {
        "/large" => large(),
        _ => Full::new(Bytes::from_static(&[b'x'; 128])).boxed_unsync(),
    };
    let length = if request.uri().path() == "/large" {
        LARGE
    } else {
        128
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_LENGTH, length.into());
    Ok(response)
}

fn large() -> UnsyncBoxBody<Bytes, Infallible> {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let pieces = (0..LARGE / PIECE as u64).map(move |_| Ok(Frame::data(piece.clone())));
    StreamBody::new(futures::stream::iter(pieces)).boxed_unsync()
}
