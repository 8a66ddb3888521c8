//! The floor of all proxies: hyper reads CONNECT or an absolute URI, nothing is judged, bytes are copied.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{Either, Full};
use hyper::{body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use sandbox_benches::Result;
use tokio::net::{TcpListener, TcpStream};

type Body = Either<Full<Bytes>, Incoming>;

/// Serves until it is killed.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let serving = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                drop(serving.await);
            });
        }
    })
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Body>, Infallible> {
    let answered = match *request.method() {
        Method::CONNECT => connect(request).await,
        _ => forward(request).await,
    };
    Ok(answered.unwrap_or_else(|error| {
        let mut response = Response::new(Either::Left(Full::from(error.to_string())));
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    }))
}

async fn connect(request: Request<Incoming>) -> Result<Response<Body>> {
    let authority = request.uri().authority().ok_or("no authority")?.to_string();
    let mut upstream = TcpStream::connect(authority).await?;
    upstream.set_nodelay(true)?;
    tokio::spawn(async move {
        if let Ok(client) = hyper::upgrade::on(request).await {
            let mut client = TokioIo::new(client);
            drop(tokio::io::copy_bidirectional(&mut client, &mut upstream).await);
        }
    });
    Ok(Response::new(Either::Left(Full::default())))
}

async fn forward(mut request: Request<Incoming>) -> Result<Response<Body>> {
    let authority = request.uri().authority().ok_or("no authority")?.to_string();
    let upstream = TcpStream::connect(authority).await?;
    upstream.set_nodelay(true)?;
    let (mut sender, driver) = client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    drop(tokio::spawn(driver));
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.ok_or("no path")?);
    Ok(sender.send_request(request).await?.map(Either::Right))
}
