//! Tunnels, by CONNECT or captured: bytes both ways, once the client's first bytes say where they go.
//!
//! The order is: judge, look up, judge, connect, answer, read the ClientHello, judge once more, and only then
//! send what was read. So an unreachable target is told at once, and a denied one never sees a byte.

use std::{fmt, io, sync::Arc, time::Instant};

use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use sandbox_base::{BoxStream, ByteStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    client::Client,
    connection::Successor,
    exchange::{unreachable, why},
    hello::HelloReader,
    lease::{Cut, Lease},
    meter::{Meter, Metered},
    pump::pump,
    reply::{self, Body},
    upstream::Judged,
};
use crate::{
    event::{Event, Kind},
    policy::{Allow, Carriage, Denial, Hello, Target},
};

/// A TLS alert, fatal, access_denied (RFC 8446, 6.2): what a client that began a handshake understands.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// A connected tunnel whose client's first bytes may still have to be judged.
pub(super) struct Tunnel {
    pub(super) lease: Lease,
    allow: Option<Allow>,
    pub(super) upstream: BoxStream,
    started: Instant,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum NotConnected {
    Denied(Denial),
    Unreachable(io::Error),
}

/// Opens a tunnel, as far as can be before the client has sent its first bytes, and answers CONNECT.
pub(super) async fn open(client: &Client, target: Target, upgrade: OnUpgrade) -> Response<Body> {
    match Tunnel::to(client, &target, Some("CONNECT")).await {
        Ok(tunnel) => {
            client.set_successor((upgrade, Successor::Tunnel(Box::new(tunnel))));
            reply::established()
        }
        Err(NotConnected::Denied(denial)) => reply::denied(&target, &denial),
        Err(NotConnected::Unreachable(error)) => unreachable(&target, &error),
    }
}

/// The status for a connection that could not be made.
pub(super) fn gateway(error: &io::Error) -> StatusCode {
    match error.kind() {
        io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

pub(super) fn about(event: Event, target: &Target, method: Option<&str>) -> Event {
    let event = event.with_target(target);
    match method {
        Some(method) => event.with_request(method, None),
        None => event,
    }
}

impl Tunnel {
    /// Judges a target and connects to it. What is decided already is told.
    pub(super) async fn to(
        client: &Client,
        target: &Target,
        method: Option<&'static str>,
    ) -> Result<Self, NotConnected> {
        let started = Instant::now();
        let passed = match client.judge(target, None).await {
            Ok(passed) => passed,
            Err(denial) => {
                client.emit(Kind::Decision, |event| {
                    about(event, target, method).with_denial(&denial)
                });
                return Err(NotConnected::Denied(denial));
            }
        };
        let to = Judged {
            target,
            addresses: &passed.addresses,
            name: passed.decision.name.as_ref(),
            carriage: Carriage::Tunnel,
            upgrade: false,
        };
        let limit = client.shared.limits.connect_timeout;
        let link = match client.shared.connector.connect(to, limit).await {
            Ok(link) => link,
            Err(error) => {
                client.emit(Kind::Decision, |event| {
                    let event = about(event, target, method).with_allow(None);
                    event.with_reason(why(&error), &error.to_string())
                });
                return Err(NotConnected::Unreachable(error));
            }
        };
        let allow = passed.allow.clone();
        let mut lease = passed.lease(target.clone(), Carriage::Tunnel, link.address);
        lease.method = method;
        Ok(Self {
            lease,
            allow,
            upstream: link.stream,
            started,
        })
    }

    /// Carries the tunnel to its end. Some of the client's bytes may have come already.
    pub(super) async fn run<S: ByteStream>(
        mut self,
        client: &Client,
        stream: &mut S,
        early: Vec<u8>,
    ) {
        let first = match self.admit(client, stream, early).await {
            Ok(first) => first,
            Err(denial) => {
                client.emit(Kind::Decision, |event| {
                    let event = about(event, &self.lease.target, self.lease.method);
                    event.with_address(self.lease.address).with_denial(&denial)
                });
                return;
            }
        };
        let meter = Arc::new(Meter::default());
        let mut upstream = Metered::new(self.upstream, Arc::clone(&meter));
        let idle = client.shared.limits.idle_timeout;
        let carried = tokio::select! {
            carried = carry(stream, &mut upstream, first) => carried.map(|()| None),
            cut = self.lease.ends(&meter, idle) => Ok(Some(cut)),
        };
        client.emit(Kind::End, |event| {
            let event = event.with_target(&self.lease.target);
            let event = event.with_address(self.lease.address).with_traffic(
                meter.up(),
                meter.down(),
                self.started.elapsed(),
            );
            ended(event, carried)
        });
    }

    /// Learns what is missing and judges; returns the bytes that the client has sent already.
    async fn admit<S: ByteStream>(
        &mut self,
        client: &Client,
        stream: &mut S,
        mut first: Vec<u8>,
    ) -> Result<Vec<u8>, Denial> {
        if self.allow.is_none() {
            let (hello, read) = read_hello(client, stream, &first).await;
            self.lease.hello = Some(hello);
            first = read;
        }
        // Asked again in any case: the policy may be another one by now.
        match self.lease.judge() {
            Ok(allow) => {
                client.emit(Kind::Decision, |event| {
                    let event = about(event, &self.lease.target, self.lease.method);
                    let event = event.with_address(self.lease.address);
                    event.with_allow(allow.rule.as_ref())
                });
                Ok(first)
            }
            Err(denial) => {
                alert(stream, &first).await;
                Err(denial)
            }
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Reads the client's hello within its time; returns it with all the bytes that came.
pub(super) async fn read_hello<S: ByteStream>(
    client: &Client,
    stream: &mut S,
    early: &[u8],
) -> (Hello, Vec<u8>) {
    let limit = client.shared.limits.hello_timeout;
    let mut reader = HelloReader::default();
    let hello = match timeout(limit, push_hello(stream, &mut reader, early)).await {
        Ok(hello) => hello,
        Err(_) => Hello::Unreadable("the tunnel's TLS handshake did not begin in time"),
    };
    (hello, reader.into_bytes())
}

async fn push_hello<S: ByteStream>(
    stream: &mut S,
    reader: &mut HelloReader,
    early: &[u8],
) -> Hello {
    if let Some(hello) = reader.push(early) {
        return hello;
    }
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                return Hello::Unreadable("the tunnel was closed before its TLS handshake began");
            }
            Ok(count) => {
                if let Some(hello) = reader.push(&buffer[..count]) {
                    return hello;
                }
            }
        }
    }
}

/// Tells a client that speaks TLS that it is denied. One that is gone already does not matter.
pub(super) async fn alert<S: ByteStream>(stream: &mut S, first: &[u8]) {
    if first.first() == Some(&22) {
        drop(stream.write_all(&ALERT).await);
    }
    drop(stream.shutdown().await);
}

async fn carry<S: ByteStream>(
    client: &mut S,
    upstream: &mut Metered<BoxStream>,
    first: Vec<u8>,
) -> io::Result<()> {
    upstream.write_all(&first).await?;
    drop(first);
    pump(client, upstream).await
}

fn ended(event: Event, carried: io::Result<Option<Cut>>) -> Event {
    match carried {
        Ok(None) => event,
        Ok(Some(cut)) => end_of_cut(event, &cut),
        Err(error) => event.with_reason("broken", &error.to_string()),
    }
}

/// Says in an event why the proxy ended a live connection.
pub(super) fn end_of_cut(event: Event, cut: &Cut) -> Event {
    match cut {
        Cut::Revoked(denial) => event.with_denial(denial),
        Cut::Idle => event.with_reason("idle", "no byte passed for too long"),
    }
}
