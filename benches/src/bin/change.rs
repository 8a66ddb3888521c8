//! How long does it take until a new policy holds?
//!
//! Ours: from `set_policy` to the client's end of a live tunnel that the new policy denies, to the end of the last of
//! 400 of them, and to the 403 of a connection that is made right after, with and without them; each by a policy of
//! 10 rules and by one of 100,000, made before. The floor: one byte through such a tunnel and back. Everything is one
//! process on loopback; clients speak to the proxy over pipes in memory, as the stream of a machine's channel is one.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sandbox_benches::options::Options;
use sandbox_benches::report::{self, Aim, Row};
use sandbox_benches::{Failure, Result};
use sandbox_core::net::policy::RuleSet;
use sandbox_core::net::{EgressPolicy, Limits, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SIZES: [usize; 2] = [10, 100_000];

/// How many tunnels are many: with both ends in one process, below the usual limit of open files.
const MANY: usize = 400;

/// A change takes effect within this, in milliseconds.
const MOST: f64 = 50.0;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 50)?;
    let origin = echo().await?;
    let mut rows = Vec::new();
    for size in SIZES {
        let bench = Bench::new(size, origin)?;
        for tunnels in [1, MANY] {
            rows.extend(bench.measure(tunnels, options.rounds).await?);
            eprintln!("{size} rules, {tunnels} tunnels");
        }
    }
    report::print("A change of policy", &rows, options.json);
    Ok(())
}

/// A proxy with a policy that allows the origin and one that does not, of as many rules.
struct Bench {
    size: usize,
    origin: SocketAddr,
    proxy: Proxy,
    open: Arc<dyn EgressPolicy>,
    closed: Arc<dyn EgressPolicy>,
}

impl Bench {
    fn new(size: usize, origin: SocketAddr) -> Result<Self> {
        let mut closed = RuleSet::deny();
        for number in 1..size {
            closed = closed.allow(&format!("host{number}.example{}.com", number % 97))?;
        }
        let rule = format!("{}/32:{}", origin.ip(), origin.port());
        let open: Arc<dyn EgressPolicy> = Arc::new(closed.clone().allow(&rule)?);
        Ok(Self {
            size,
            origin,
            proxy: Proxy::builder(Arc::clone(&open))
                // A round opens as many tunnels as it can.
                .limits(Limits::default().with_requests_per_second(0))
                .build(),
            open,
            closed: Arc::new(closed),
        })
    }

    async fn measure(&self, tunnels: usize, rounds: usize) -> Result<[Row; 2]> {
        let rules = self.size;
        let row = |what: &str| Row::new(what, "ms", Aim::Below(MOST));
        let mut rows = [
            row(&format!(
                "the last of {tunnels} tunnels ends, {rules} rules"
            )),
            row(&format!("a denial beside {tunnels} tunnels, {rules} rules")),
        ];
        for round in 0..=rounds {
            let (floor, measured) = self.round(tunnels).await?;
            // The first round warms up.
            if round > 0 {
                for (row, ours) in rows.iter_mut().zip(measured) {
                    row.floor.push(floor);
                    row.ours.push(ours);
                }
            }
        }
        Ok(rows)
    }

    /// Milliseconds of a byte there and back, and until the last tunnel has ended and until the first denial.
    async fn round(&self, tunnels: usize) -> Result<(f64, [f64; 2])> {
        self.proxy.set_policy(Arc::clone(&self.open));
        let mut open = Vec::new();
        for _ in 0..tunnels {
            let (mut client, head) = self.connect().await?;
            if !head.starts_with(b"HTTP/1.1 200") {
                return Err("a tunnel that is allowed was refused".into());
            }
            echoed(&mut client).await?;
            open.push(client);
        }
        let start = Instant::now();
        echoed(&mut open[0]).await?;
        let floor = since(start);

        let mut ends = JoinSet::new();
        let ready = Arc::new(tokio::sync::Barrier::new(tunnels + 1));
        for mut client in open {
            let ready = Arc::clone(&ready);
            ends.spawn(async move {
                ready.wait().await;
                let ended = client.read(&mut [0]).await.unwrap_or(0) == 0;
                (ended, Instant::now())
            });
        }
        ready.wait().await;
        let start = Instant::now();
        self.proxy.set_policy(Arc::clone(&self.closed));
        let (_, head) = self.connect().await?;
        let denied = since(start);
        if !head.starts_with(b"HTTP/1.1 403") {
            return Err("what is denied by now was let through".into());
        }
        let mut last = start;
        while let Some(ended) = ends.join_next().await {
            match ended? {
                (true, at) => last = last.max(at),
                (false, _) => return Err("a tunnel went on".into()),
            }
        }
        let cut = last.duration_since(start).as_secs_f64() * 1e3;
        Ok((floor, [cut, denied]))
    }

    /// Asks for a tunnel; returns it with the head of the answer.
    async fn connect(&self) -> Result<(DuplexStream, Vec<u8>)> {
        let (mut client, server) = tokio::io::duplex(16 * 1024);
        let proxy = self.proxy.clone();
        tokio::spawn(async move { proxy.serve(server).await });
        let origin = self.origin;
        let request = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n");
        client.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        Ok((client, head))
    }
}

/// An origin that sends back what comes.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(address)
}

async fn echoed(client: &mut DuplexStream) -> Result<()> {
    client.write_all(b"x").await?;
    match client.read_u8().await? {
        b'x' => Ok(()),
        other => Err(Failure::from(format!("{other} came back"))),
    }
}

fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
