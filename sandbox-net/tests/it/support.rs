//! Origins, clients and proxies for the tests.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sandbox_net::{
    Error, Limits, Proxy,
    event::{Event, Kind, Subscription},
    policy::{
        Allow, Allowed, Candidate, EgressPolicy, Facts, Floor, HostName, Need, Opening, RuleSet,
        Verdict,
    },
    resolve::Resolver,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};

/// The bound on every wait: far above what anything here takes.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Fails instead of hanging.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future)
        .await
        .expect("did not end in time")
}

/// An origin that hands each connection to a handler.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Origin {
    pub(crate) async fn start<F, S>(handler: F) -> Self
    where
        F: Fn(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(handler(stream));
            }
        });
        Self {
            address,
            connections,
        }
    }

    /// An HTTP origin that answers every request with the head it received.
    pub(crate) async fn mirror() -> Self {
        Self::start(|mut stream| async move {
            let head = read_head(&mut stream).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\n\r\n{head}",
                head.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await
    }

    /// An origin that sends back whatever comes.
    pub(crate) async fn echo() -> Self {
        Self::start(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            drop(tokio::io::copy(&mut read, &mut write).await);
            drop(write.shutdown().await);
        })
        .await
    }

    /// An HTTP origin that answers with the body it receives, as it receives it. Lengths only.
    pub(crate) async fn echo_body() -> Self {
        Self::start(|mut stream| async move {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            let (_, rest) = head.split_once("content-length: ").unwrap();
            let length: u64 = rest.split("\r\n").next().unwrap().parse().unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (read, mut write) = stream.split();
            drop(tokio::io::copy(&mut read.take(length), &mut write).await);
        })
        .await
    }

    /// A rule for this origin, which opens its address.
    pub(crate) fn rule(&self) -> String {
        format!("127.0.0.1/32:{}", self.address.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A resolver whose answers are set per call, and which counts the calls.
#[derive(Debug, Default)]
pub(crate) struct Rebinding {
    answers: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl Rebinding {
    /// Gives one answer after the other, the last one for ever.
    pub(crate) fn new(answers: &[&str]) -> Arc<Self> {
        Arc::new(Self {
            answers: answers.iter().map(|text| text.parse().unwrap()).collect(),
            asked: AtomicUsize::new(0),
        })
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Resolver for Rebinding {
    async fn resolve(&self, _: &HostName) -> Result<Vec<IpAddr>, Error> {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        let last = self.answers.len().saturating_sub(1);
        Ok(self
            .answers
            .get(turn.min(last))
            .copied()
            .into_iter()
            .collect())
    }
}

/// The rules' own judgement, dialled at the port where a test's origin is: ports 80 and 443 are not for ordinary
/// users to listen on.
#[derive(Debug)]
pub(crate) struct Moved {
    rules: RuleSet,
    to: SocketAddr,
}

impl Moved {
    pub(crate) fn to(origin: &Origin, rules: &[&str]) -> Self {
        let open = ["127.0.0.1/32:80", "127.0.0.1/32:443"];
        Self {
            rules: allowing(&[rules, &open].concat()),
            to: origin.address,
        }
    }

    fn address(&self) -> Allowed<SocketAddr> {
        let opening = Opening::new(self.to.ip().into(), self.to.port());
        let floor = Floor::new().with_opening(opening);
        let candidate = Candidate::new(self.to.ip(), true);
        floor.admit(candidate, self.to.port()).unwrap()
    }
}

impl EgressPolicy for Moved {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        match self.rules.judge(facts) {
            Verdict::Allow(_) => Verdict::Allow(Allow::new(vec![self.address()])),
            Verdict::Need(Need::Hello { .. }) => Verdict::Need(Need::Hello {
                addresses: vec![self.address()],
            }),
            verdict => verdict,
        }
    }

    fn rules(&self) -> Option<&RuleSet> {
        None
    }
}

/// Rules that allow these patterns.
pub(crate) fn allowing<P: AsRef<str>>(patterns: &[P]) -> RuleSet {
    patterns
        .iter()
        .fold(RuleSet::deny(), |rules, p| rules.allow(p.as_ref()).unwrap())
}

/// A proxy in which every name means 127.0.0.1.
pub(crate) fn proxy(rules: RuleSet) -> Proxy {
    proxy_with(rules, Limits::default())
}

pub(crate) fn proxy_with(rules: RuleSet, limits: Limits) -> Proxy {
    Proxy::builder(Arc::new(rules))
        .resolver(Rebinding::new(&["127.0.0.1"]))
        .limits(limits)
        .build()
}

/// A client's connection to the proxy.
pub(crate) fn client(proxy: &Proxy) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let proxy = proxy.clone();
    tokio::spawn(async move { proxy.serve(server).await });
    client
}

/// Reads a head up to and with its empty line.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Sends a request and reads the answer to the end of the connection.
pub(crate) async fn ask(proxy: &Proxy, request: &str) -> String {
    let mut client = client(proxy);
    // The proxy may have answered and closed before it has read everything.
    drop(within(client.write_all(request.as_bytes())).await);
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// GETs a URL with a connection of its own.
pub(crate) async fn fetch(proxy: &Proxy, url: &str) -> String {
    ask(
        proxy,
        &format!("GET {url} HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n"),
    )
    .await
}

/// Opens a tunnel and returns the answer's head.
pub(crate) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &str,
) -> String {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    within(read_head(stream)).await
}

/// The JSON body of an answer.
pub(crate) fn body(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

/// The next event of a kind.
pub(crate) async fn next(events: &mut Subscription, kind: Kind) -> Event {
    within(async {
        loop {
            let event = events.next().await.expect("the proxy lives");
            if event.kind == kind {
                return event;
            }
        }
    })
    .await
}

/// A ClientHello in one record, with a name or without.
pub(crate) fn client_hello(name: Option<&str>) -> Vec<u8> {
    hello(&name.map_or_else(Vec::new, server_name))
}

/// A ClientHello that shows this name and hides another (RFC 9849, 5): the outer kind, with a key and a payload that
/// nobody here can open.
pub(crate) fn encrypted_hello(shown: &str) -> Vec<u8> {
    let mut hidden = vec![0, 0, 1, 0, 1, 7];
    hidden.extend(vector(vec![5; 32]));
    hidden.extend(vector(vec![6; 144]));
    hello(&[server_name(shown), vec![0xfe, 0x0d], vector(hidden)].concat())
}

/// Bytes behind their length.
fn vector(content: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&length[..], &content].concat()
}

/// The extension that names the server.
fn server_name(name: &str) -> Vec<u8> {
    let entry = [vec![0], vector(name.as_bytes().to_vec())].concat();
    [vec![0, 0], vector(vector(entry))].concat()
}

fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([9; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    hello.extend(vector(extensions.to_vec()));
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    let message = [&[1, length[1], length[2], length[3]][..], &hello].concat();
    [vec![22, 3, 1], vector(message)].concat()
}
