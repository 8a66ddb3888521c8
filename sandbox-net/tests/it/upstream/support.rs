//! Upstream proxies for the tests: whatever they are asked for, they lead to one origin.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use sandbox_net::{Limits, Proxy, UpstreamProxy, policy::RuleSet, resolve::FixedResolver};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Origin, read_head};

/// A public address: nothing listens there for these tests.
pub(crate) const PUBLIC: &str = "8.8.8.8";

/// A proxy of a company.
pub(crate) struct Company {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Company {
    /// Hands each connection to a handler, which returns what it was asked.
    pub(crate) async fn start<S>(handler: impl Fn(TcpStream) -> S + Send + 'static) -> Self
    where
        S: Future<Output = String> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0", handler).await
    }

    /// As [`Self::start`], at an address.
    async fn start_at<S>(at: &str, handler: impl Fn(TcpStream) -> S + Send + 'static) -> Self
    where
        S: Future<Output = String> + Send + 'static,
    {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (served, heard) = (handler(stream), Arc::clone(&heard));
                tokio::spawn(async move {
                    let asked = served.await;
                    heard.lock().unwrap().push(asked);
                });
            }
        });
        Self { address, asked }
    }

    /// Speaks HTTP: tunnels and requests in absolute form, until its first head is read.
    pub(crate) async fn http(origin: &Origin) -> Self {
        Self::http_at("127.0.0.1:0", origin.address).await
    }

    /// As [`Self::http`], at an address, leading to another.
    pub(crate) async fn http_at(at: &str, to: SocketAddr) -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);
        let company = Self::start_at(at, move |mut stream| {
            let heard = Arc::clone(&heard);
            async move {
                let head = read_head(&mut stream).await;
                heard.lock().unwrap().push(head.clone());
                let mut up = TcpStream::connect(to).await.unwrap();
                if head.starts_with("CONNECT ") {
                    let agreed = b"HTTP/1.1 200 Connection established\r\n\r\n";
                    stream.write_all(agreed).await.unwrap();
                } else {
                    up.write_all(head.as_bytes()).await.unwrap();
                }
                drop(tokio::io::copy_bidirectional(&mut stream, &mut up).await);
                head
            }
        })
        .await;
        Self { asked, ..company }
    }

    /// Answers every connection with the same bytes, once it was asked for something.
    pub(crate) async fn saying(answer: Vec<u8>) -> Self {
        let answer: Arc<[u8]> = answer.into();
        Self::start(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move {
                let mut first = [0; 4096];
                let count = stream.read(&mut first).await.unwrap_or(0);
                drop(stream.write_all(&answer).await);
                drop(stream.shutdown().await);
                String::from_utf8_lossy(&first[..count]).into_owned()
            }
        })
        .await
    }

    /// What it was asked so far: request heads, or places of SOCKS.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, scheme: &str, login: &str) -> String {
        format!("{scheme}://{login}{}", self.address)
    }

    pub(crate) fn at(&self) -> UpstreamProxy {
        UpstreamProxy::at(&self.url("http", "")).unwrap()
    }
}

/// Names as this host knows them: `www.example.com` is public, `inside.example.com` is not, `mixed.example.com` is
/// both, and `proxied.example.com` has no address here.
pub(crate) fn names() -> FixedResolver {
    let public = PUBLIC.parse().unwrap();
    let private = "10.0.0.1".parse().unwrap();
    FixedResolver::new()
        .with("www.example.com".parse().unwrap(), [public])
        .with("inside.example.com".parse().unwrap(), [private])
        .with("mixed.example.com".parse().unwrap(), [public, private])
        .with("wiki.corp".parse().unwrap(), [public])
}

/// A sandbox's proxy behind a company's.
pub(crate) fn behind(upstream: UpstreamProxy, rules: RuleSet) -> Proxy {
    let limits = Limits::default().with_connect_timeout(std::time::Duration::from_secs(5));
    Proxy::builder(Arc::new(rules))
        .resolver(Arc::new(names()))
        .upstream_proxy(upstream)
        .limits(limits)
        .build()
}
