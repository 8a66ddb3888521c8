//! The origin: small answers and large ones, over HTTP and over TLS.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sandbox_benches::Result;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::LARGE;

/// Its name in certificates. Tunnels go to its address, whose handshakes name nobody.
pub(crate) const NAME: &str = "127.0.0.1";

/// How much of a large body is handed over at a time.
const PIECE: usize = 64 * 1024;

/// A running origin.
pub(crate) struct Origin {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// What a client has to trust.
    pub(crate) certificate: CertificateDer<'static>,
}

impl Origin {
    pub(crate) async fn start() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let plain = TcpListener::bind("127.0.0.1:0").await?;
        let tls = TcpListener::bind("127.0.0.1:0").await?;
        let origin = Self {
            plain: plain.local_addr()?,
            tls: tls.local_addr()?,
            certificate,
        };
        drop(tokio::spawn(serve(plain, None)));
        drop(tokio::spawn(serve(tls, Some(acceptor))));
        Ok(origin)
    }
}

async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>) {
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
