//! CONNECT: bytes both ways, once the client's first bytes say where they go.
//!
//! The order is: judge, look up, judge, connect, answer 200, read the ClientHello, judge once more, and only then
//! send what was read. So an unreachable target is told by a 502, and a denied one never sees a byte.

use std::{io, sync::Arc, time::Instant};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

#[cfg(feature = "inspect")]
use super::inspected;
use super::{
    connection::Connection,
    dial::dial,
    hello::HelloReader,
    lease::{Cut, Lease},
    meter::{Meter, Metered},
    reply::{self, Body},
};
use crate::{
    event::{Event, Kind},
    policy::{Allow, Carriage, Denial, Hello, Target},
};

/// A TLS alert, fatal, access_denied (RFC 8446, 6.2): what a client that began a handshake understands.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// A connected tunnel whose client's first bytes may still have to be judged.
#[derive(Debug)]
pub(super) struct Tunnel {
    lease: Lease,
    allow: Option<Allow>,
    client: OnUpgrade,
    upstream: TcpStream,
    started: Instant,
}

/// Answers CONNECT. An answer other than 200 closes the connection, since what the client sent behind its request
/// was meant for the tunnel and is no HTTP.
pub(super) async fn open(
    connection: &Connection,
    target: Target,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut response = prepare(connection, target, request).await;
    if response.status() != StatusCode::OK {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Opens a tunnel, as far as can be before the client has sent its first bytes.
async fn prepare(
    connection: &Connection,
    target: Target,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let passed = match connection.judge(&target, Carriage::Tunnel).await {
        Ok(passed) => passed,
        Err(denial) => {
            connection.emit(decided(connection, &target).with_denial(&denial));
            return reply::denied(&target, &denial);
        }
    };
    let limit = connection.shared.limits.connect_timeout;
    let (upstream, address) = match dial(&passed.addresses, limit).await {
        Ok(dialled) => dialled,
        Err(error) => {
            let event = decided(connection, &target).with_reason("connect", &error.to_string());
            connection.emit(event.with_allow(None));
            return reply::unreachable(&target, gateway(&error), "the host does not answer");
        }
    };
    let allow = passed.allow.clone();
    connection.set_tunnel(Tunnel {
        lease: passed.lease(target, Carriage::Tunnel, address),
        allow,
        client: hyper::upgrade::on(request),
        upstream,
        started,
    });
    reply::established()
}

/// The status for a connection that could not be made.
pub(super) fn gateway(error: &io::Error) -> StatusCode {
    match error.kind() {
        io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

fn decided(connection: &Connection, target: &Target) -> Event {
    let event = connection.event(Kind::Decision).with_target(target);
    event.with_request("CONNECT", None)
}

impl Tunnel {
    /// Carries the tunnel to its end.
    pub(super) async fn run(mut self, connection: &Arc<Connection>) {
        #[cfg(feature = "inspect")]
        if let Some(inspector) = connection.inspector(&self.lease.target) {
            let opened = inspected::Opened {
                lease: self.lease,
                client: self.client,
                upstream: self.upstream,
                started: self.started,
            };
            // Boxed: it is larger than all that a plain tunnel needs.
            return Box::pin(inspected::run(opened, connection, inspector)).await;
        }
        let Ok(client) = (&mut self.client).await else {
            return; // the client was gone before it had its answer
        };
        let mut client = TokioIo::new(client);
        let first = match self.admit(connection, &mut client).await {
            Ok(first) => first,
            Err(denial) => {
                let event = decided(connection, &self.lease.target);
                let event = event.with_address(self.lease.address);
                connection.emit(event.with_denial(&denial));
                return;
            }
        };
        let meter = Arc::new(Meter::default());
        let mut upstream = Metered::new(self.upstream, Arc::clone(&meter));
        let idle = connection.shared.limits.idle_timeout;
        let carried = tokio::select! {
            carried = carry(&mut client, &mut upstream, &first) => carried.map(|_| None),
            cut = self.lease.ends(&meter, idle) => Ok(Some(cut)),
        };
        let event = connection.event(Kind::End).with_target(&self.lease.target);
        let event = event.with_address(self.lease.address).with_traffic(
            meter.up(),
            meter.down(),
            self.started.elapsed(),
        );
        connection.emit(ended(event, carried));
    }

    /// Learns what is missing and judges; returns the bytes that the client has sent already.
    async fn admit(
        &mut self,
        connection: &Connection,
        client: &mut TokioIo<Upgraded>,
    ) -> Result<Vec<u8>, Denial> {
        let mut first = Vec::new();
        if self.allow.is_none() {
            let limit = connection.shared.limits.hello_timeout;
            let mut reader = HelloReader::default();
            let hello = match timeout(limit, read_hello(client, &mut reader)).await {
                Ok(hello) => hello,
                Err(_) => Hello::Unreadable("the tunnel's TLS handshake did not begin in time"),
            };
            self.lease.hello = Some(hello);
            first = reader.into_bytes();
        }
        // Asked again in any case: the policy may be another one by now.
        match self.lease.judge() {
            Ok(allow) => {
                let event = decided(connection, &self.lease.target);
                let event = event.with_address(self.lease.address);
                connection.emit(event.with_allow(allow.rule.as_ref()));
                Ok(first)
            }
            Err(denial) => {
                alert(client, &first).await;
                Err(denial)
            }
        }
    }
}

pub(super) async fn read_hello(client: &mut TokioIo<Upgraded>, reader: &mut HelloReader) -> Hello {
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer).await {
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
pub(super) async fn alert(client: &mut TokioIo<Upgraded>, first: &[u8]) {
    if first.first() == Some(&22) {
        drop(client.write_all(&ALERT).await);
    }
    drop(client.shutdown().await);
}

async fn carry(
    client: &mut TokioIo<Upgraded>,
    upstream: &mut Metered<TcpStream>,
    first: &[u8],
) -> io::Result<(u64, u64)> {
    upstream.write_all(first).await?;
    copy_bidirectional(client, upstream).await
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
