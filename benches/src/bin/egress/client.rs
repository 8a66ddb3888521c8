//! The load: requests over kept-alive tunnels, over new ones, large ones, plain ones.
//!
//! Requests are written and answers read by hand, so that the client costs as little as it can.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sandbox_benches::Result;
use sandbox_core::net::guest::capture::announce;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    LARGE,
    origin::{HOSTS, Origin},
};

/// How a client reaches an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It asks a proxy for a tunnel, if there is a proxy.
    Asking,
    /// As one that knows of no proxy: the guest's half adds where it was going.
    Captured,
}

/// Makes load through a proxy, or straight where there is none.
#[derive(Clone)]
pub(crate) struct Client {
    proxy: Option<SocketAddr>,
    way: Way,
    plain: SocketAddr,
    tls: SocketAddr,
    connector: TlsConnector,
}

/// What a load came to.
#[derive(Default)]
pub(crate) struct Load {
    /// Milliseconds each.
    times: Vec<f64>,
    took: Duration,
}

impl Load {
    pub(crate) fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let at = (times.len() as f64 * part) as usize;
        times
            .get(at.min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    }
}

impl Client {
    /// Trusts whoever answers, like for all: checking the authorities of many proxies is not what is measured.
    pub(crate) fn new(origin: &Origin, (proxy, way): (Option<SocketAddr>, Way)) -> Result<Self> {
        let mut config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        // Whole handshakes, every time.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            proxy,
            way,
            plain: origin.plain,
            tls: origin.tls,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Connects to the origin's TLS port.
    pub(crate) async fn tunnel(&self) -> Result<TlsStream<TcpStream>> {
        self.tunnel_to(self.tls).await
    }

    async fn tunnel_to(&self, host: SocketAddr) -> Result<TlsStream<TcpStream>> {
        let stream = self.connect(host).await?;
        let name = ServerName::IpAddress(host.ip().into());
        Ok(self.connector.connect(name, stream).await?)
    }

    async fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.proxy.unwrap_or(to)).await?;
        stream.set_nodelay(true)?;
        if self.proxy.is_none() {
            return Ok(stream);
        }
        if self.way == Way::Captured {
            announce(&mut stream, &to.ip().to_string(), to.port()).await?;
            return Ok(stream);
        }
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut stream, &mut Vec::new()).await?;
        match head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200") {
            true => Ok(stream),
            false => Err(head.into()),
        }
    }

    /// Connects for plain requests.
    pub(crate) async fn plain_connection(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.proxy.unwrap_or(self.plain)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Returns the request for plain HTTP: an absolute URI for a proxy.
    pub(crate) fn plain_request(&self) -> String {
        let plain = self.plain;
        let target = match self.proxy {
            Some(_) => format!("http://{plain}/"),
            None => "/".to_owned(),
        };
        format!("GET {target} HTTP/1.1\r\nHost: {plain}\r\n\r\n")
    }

    pub(crate) fn tunnel_request(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.tls)
    }

    /// Requests one after the other over a tunnel each.
    pub(crate) async fn tunnels(&self, clients: usize, time: Duration) -> Result<Load> {
        let mut streams = Vec::new();
        for _ in 0..clients {
            streams.push(self.tunnel().await?);
        }
        load(streams, &self.tunnel_request("/"), time).await
    }

    /// Plain requests one after the other over a connection each.
    pub(crate) async fn plain(&self, clients: usize, time: Duration) -> Result<Load> {
        let mut streams = Vec::new();
        for _ in 0..clients {
            streams.push(self.plain_connection().await?);
        }
        load(streams, &self.plain_request(), time).await
    }

    /// A new connection, TLS handshake and request each.
    pub(crate) async fn connections(&self, time: Duration) -> Result<Load> {
        let request = self.tunnel_request("/");
        let (mut times, start) = (Vec::new(), Instant::now());
        while start.elapsed() < time {
            let began = Instant::now();
            let mut stream = self.tunnel().await?;
            exchange(&mut stream, &request, &mut Vec::new()).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let took = start.elapsed();
        Ok(Load { times, took })
    }

    /// A connection, TLS handshake and request to each of many hosts, but for the one that the others use.
    pub(crate) async fn first_connections(&self) -> Result<Load> {
        let request = self.tunnel_request("/");
        let (mut times, start) = (Vec::new(), Instant::now());
        for host in 2..=HOSTS {
            let began = Instant::now();
            let host = SocketAddr::from(([127, 0, 0, host], self.tls.port()));
            let mut stream = self.tunnel_to(host).await?;
            let request = request.replace(&self.tls.to_string(), &host.to_string());
            exchange(&mut stream, &request, &mut Vec::new()).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let took = start.elapsed();
        Ok(Load { times, took })
    }

    /// Returns MB/s of large answers, one after the other.
    pub(crate) async fn large(&self, count: u32) -> Result<f64> {
        let mut stream = self.tunnel().await?;
        let mut buffer = vec![0; 256 * 1024];
        let start = Instant::now();
        for _ in 0..count {
            stream
                .write_all(self.tunnel_request("/large").as_bytes())
                .await?;
            let mut rest = Vec::new();
            read_head(&mut stream, &mut rest).await?;
            let mut left = LARGE - rest.len() as u64;
            while left > 0 {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    return Err("a large answer was cut".into());
                }
                left -= read as u64;
            }
        }
        let bytes = LARGE as f64 * f64::from(count);
        Ok(bytes / 1e6 / start.elapsed().as_secs_f64())
    }
}

/// Whoever answers is believed.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn load<S>(streams: Vec<S>, request: &str, time: Duration) -> Result<Load>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for mut stream in streams {
        let request = request.to_owned();
        clients.spawn(async move {
            let (mut times, mut rest) = (Vec::new(), Vec::new());
            while start.elapsed() < time {
                let began = Instant::now();
                exchange(&mut stream, &request, &mut rest).await?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Result::<_>::Ok(times)
        });
    }
    let mut load = Load::default();
    while let Some(times) = clients.join_next().await {
        load.times.extend(times??);
    }
    load.took = start.elapsed();
    Ok(load)
}

/// One request and its answer, which has to be a 200 of 128 bytes.
pub(crate) async fn exchange<S>(stream: &mut S, request: &str, rest: &mut Vec<u8>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let head = read_head(stream, rest).await?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.into());
    }
    while rest.len() < 128 {
        if stream.read_buf(rest).await? == 0 {
            return Err("an answer was cut".into());
        }
    }
    rest.clear();
    Ok(())
}

/// Reads a head; what came behind it is left in `rest`.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, rest: &mut Vec<u8>) -> Result<String> {
    rest.reserve(1024);
    loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end + 4]).into_owned();
            rest.drain(..end + 4);
            return Ok(head);
        }
        if stream.read_buf(rest).await? == 0 {
            return Err(format!("closed after: {}", String::from_utf8_lossy(rest)).into());
        }
    }
}
