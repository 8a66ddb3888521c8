//! Tunnels that are opened: TLS to the client on one side, to the origin on the other, requests in between.
//!
//! The order is: the client's hello, judged as for any tunnel; TLS to the origin, with the protocols that the client
//! offers; TLS to the client, with the one that the origin chose; then requests, each checked for its host (`head`),
//! its credentials swapped (`site`), its bytes let through the same [gate](super::gate) as plain ones. What cannot be
//! opened is denied: no hello, another name, no HTTP.
//!
//! | module | holds |
//! |---|---|
//! | `head` | what a request must look like |
//! | `site` | what becomes of a request |
//! | `origin` | connections to the origin |
//! | `body` | bodies that are looked through, or scrubbed, as they stream |
//! | `tasks` | what runs beside, and ends with the connection |

mod body;
mod head;
mod origin;
mod site;
mod tasks;

use std::{
    convert::Infallible,
    io::Cursor,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{Response, request::Parts};
use http_body_util::Either;
use hyper::{
    server::conn::http2,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Chain, Join, ReadHalf, WriteHalf, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};

use self::{
    body::Answer,
    origin::{Origin, Settings},
    site::Site,
    tasks::{Ends, Tasks},
};
use super::{
    connection::Connection,
    gate::{Gated, Stopped},
    hello::HelloReader,
    lease::{Cut, Lease},
    meter::Meter,
    reply,
    tunnel::{alert, end_of_cut, read_hello},
};
use crate::{
    event::{Event, Kind},
    inspect::{Fault, Inspector, Protocol},
    policy::{Denial, Hello, Host, Reason, Target},
};

/// The most requests at a time on one HTTP/2 connection, as most servers have it.
const STREAMS: u32 = 100;

/// A tunnel to open, as CONNECT left it.
pub(super) struct Opened {
    pub(super) lease: Lease,
    pub(super) client: OnUpgrade,
    pub(super) upstream: TcpStream,
    pub(super) started: Instant,
}

/// The client's bytes from the first one on.
type Inside =
    Join<Chain<Cursor<Vec<u8>>, ReadHalf<TokioIo<Upgraded>>>, WriteHalf<TokioIo<Upgraded>>>;

/// Carries a tunnel to its end, request by request.
pub(super) async fn run(opened: Opened, connection: &Arc<Connection>, inspector: Inspector) {
    let Ok(client) = opened.client.await else {
        return; // the client was gone before it had its answer
    };
    let mut lease = opened.lease;
    let mut client = TokioIo::new(client);
    let first = match admit(connection, &mut lease, &mut client).await {
        Ok(first) => first,
        Err(denial) => return emit_denial(connection, &lease, &denial),
    };
    let Some((start, offered)) = accept(connection, &lease, (first, client)).await else {
        return;
    };
    let (tasks, meter) = (Tasks::default(), Arc::new(Meter::default()));
    let _ends = Ends(tasks.clone());
    let settings = Settings {
        inspector: inspector.clone(),
        lease: lease.clone(),
        offer: offered.clone().unwrap_or_else(|| vec![Protocol::Http1]),
        meter: Arc::clone(&meter),
        connect_timeout: connection.shared.limits.connect_timeout,
        head_bytes: connection.head_bytes(),
    };
    let origin = Origin::first(settings, tasks.clone(), opened.upstream).await;
    let protocol = protocol(&origin, offered.as_deref());
    let Some(stream) = shake_hands(connection, (&inspector, &lease.target), start, protocol).await
    else {
        return;
    };
    let site = Arc::new(Site {
        connection: Arc::clone(connection),
        target: lease.target.clone(),
        credentials: inspector.credentials().cloned(),
        origin,
        stopped: Stopped::default(),
        upgrade: Mutex::new(None),
    });
    let idle = connection.shared.limits.idle_timeout;
    let cut = tokio::select! {
        () = serve(site, stream, (protocol, tasks)) => None,
        cut = lease.ends(&meter, idle) => Some(cut),
    };
    emit_end(connection, &lease, (&meter, opened.started, cut));
}

/// Learns the client's hello and judges the tunnel by it; returns the bytes that were read for it.
async fn admit(
    connection: &Connection,
    lease: &mut Lease,
    client: &mut TokioIo<Upgraded>,
) -> Result<Vec<u8>, Denial> {
    let mut reader = HelloReader::default();
    let limit = connection.shared.limits.hello_timeout;
    let hello = match timeout(limit, read_hello(client, &mut reader)).await {
        Ok(hello) => hello,
        Err(_) => Hello::Unreadable("the tunnel's TLS handshake did not begin in time"),
    };
    let first = reader.into_bytes();
    let named = check_hello(&lease.target, &hello);
    lease.hello = Some(hello);
    match named.and_then(|()| lease.judge()) {
        Ok(allow) => {
            let event = decided(connection, lease);
            connection.emit(event.with_allow(allow.rule.as_ref()));
            Ok(first)
        }
        Err(denial) => {
            alert(client, &first).await;
            Err(denial)
        }
    }
}

/// A tunnel that has to be opened has to begin with TLS for its own target, whatever port it leads to.
fn check_hello(target: &Target, hello: &Hello) -> Result<(), Denial> {
    match (&target.host, hello) {
        (Host::Name(asked), Hello::Named(named)) if asked == named => Ok(()),
        (Host::Address(_), Hello::Unnamed) => Ok(()),
        (_, Hello::Named(_)) => Err(Denial::new(
            Reason::TlsName,
            "the TLS handshake names another host than the tunnel was asked for",
        )),
        (_, Hello::Unnamed) => Err(Denial::new(
            Reason::NotTls,
            "the TLS handshake names no host",
        )),
        (_, Hello::Unreadable(what)) => Err(Denial::new(Reason::NotTls, *what)),
    }
}

/// Reads the hello once more, as TLS; returns the protocols that it offers, `None` if it offers none.
async fn accept(
    connection: &Connection,
    lease: &Lease,
    (first, client): (Vec<u8>, TokioIo<Upgraded>),
) -> Option<(StartHandshake<Inside>, Option<Vec<Protocol>>)> {
    let (read, write) = tokio::io::split(client);
    let stream = tokio::io::join(Cursor::new(first).chain(read), write);
    let accepting = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let limit = connection.shared.limits.hello_timeout;
    let Ok(Ok(start)) = timeout(limit, accepting).await else {
        let denial = Denial::new(Reason::NotTls, "the TLS handshake cannot be read");
        emit_denial(connection, lease, &denial);
        return None;
    };
    let offered = start
        .client_hello()
        .alpn()
        .map(|names| names.filter_map(Protocol::named).collect::<Vec<_>>());
    if offered.as_ref().is_some_and(Vec::is_empty) {
        let text = "the client offers no protocol that can be inspected";
        emit_denial(connection, lease, &Denial::new(Reason::NotTls, text));
        let (_, mut write) = start.io.into_inner();
        drop(write.shutdown().await);
        return None;
    }
    Some((start, offered))
}

/// What the client is told: what the origin chose; without an origin, what it can read an answer in.
fn protocol(origin: &Result<Origin, Fault>, offered: Option<&[Protocol]>) -> Option<Protocol> {
    let offered = offered?;
    Some(match origin {
        Ok(origin) => origin.protocol,
        Err(_) if offered.contains(&Protocol::Http1) => Protocol::Http1,
        Err(_) => Protocol::Http2,
    })
}

async fn shake_hands(
    connection: &Connection,
    (inspector, target): (&Inspector, &Target),
    start: StartHandshake<Inside>,
    protocol: Option<Protocol>,
) -> Option<TlsStream<Inside>> {
    let failed = |reason: &str, text: &str| {
        let event = connection.event(Kind::Refused).with_target(target);
        connection.emit(event.with_reason(reason, text));
    };
    let config = match inspector.server(target, protocol) {
        Ok(config) => config,
        Err(error) => {
            failed("certificate", &error.to_string());
            return None;
        }
    };
    let limit = connection.shared.limits.hello_timeout;
    match timeout(limit, start.into_stream(config)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(_)) | Err(_) => {
            let text = "the client broke off the TLS handshake: it does not trust the sandbox's authority, or \
                        expects the host's own certificate, for which there is a bypass";
            failed("tls-client", text);
            None
        }
    }
}

async fn serve(
    site: Arc<Site>,
    stream: TlsStream<Inside>,
    (protocol, tasks): (Option<Protocol>, Tasks),
) {
    let answering = Arc::clone(&site);
    let service = service_fn(move |request| {
        let site = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    let connection = &site.connection;
    let served = match protocol {
        Some(Protocol::Http2) => {
            let limit = u32::try_from(connection.head_bytes()).unwrap_or(u32::MAX);
            http2::Builder::new(tasks)
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(limit)
                .serve_connection(TokioIo::new(stream), service)
                .await
        }
        _ => {
            let gated = Gated::new(stream, connection.head_bytes(), Arc::clone(&site.stopped));
            let serving = connection
                .http()
                .serve_connection(TokioIo::new(gated), service);
            serving.with_upgrades().await
        }
    };
    if let Err(error) = served {
        connection.report_broken(&error);
    }
    let upgrade = site
        .upgrade
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(sides) = upgrade {
        carry(sides).await;
    }
}

/// Carries a WebSocket: bytes as they come, counted as all others. Placeholders in them are neither seen nor replaced.
async fn carry((client, upstream): (OnUpgrade, OnUpgrade)) {
    let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else {
        return; // one of them is gone already
    };
    // Past the gate, which would take frames for requests.
    let Ok(parts) = client.downcast::<TokioIo<Gated<TlsStream<Inside>>>>() else {
        return;
    };
    let (mut client, unread) = parts.io.into_inner().into_parts();
    let mut upstream = TokioIo::new(upstream);
    let early = [&parts.read_buf[..], &unread].concat();
    let carried = async {
        upstream.write_all(&early).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, "a WebSocket broke");
    }
}

fn decided(connection: &Connection, lease: &Lease) -> Event {
    let event = connection.event(Kind::Decision).with_target(&lease.target);
    event
        .with_request("CONNECT", None)
        .with_address(lease.address)
}

fn emit_denial(connection: &Connection, lease: &Lease, denial: &Denial) {
    connection.emit(decided(connection, lease).with_denial(denial));
}

fn emit_end(
    connection: &Connection,
    lease: &Lease,
    (meter, started, cut): (&Meter, Instant, Option<Cut>),
) {
    let event = connection.event(Kind::End).with_target(&lease.target);
    let event = event.with_address(lease.address);
    let event = event.with_traffic(meter.up(), meter.down(), started.elapsed());
    connection.emit(match cut {
        None => event,
        Some(cut) => end_of_cut(event, &cut),
    });
}

/// Refuses a request that would carry a placeholder without TLS.
pub(super) fn refuse_plain(
    connection: &Connection,
    target: &Target,
    head: &Parts,
) -> Option<Response<reply::Body>> {
    let credentials = connection.shared.inspector.as_ref()?.credentials()?;
    let refusal = credentials.table().check_plain(head).err()?;
    let event = connection.event(Kind::Decision).with_target(target);
    let event = event.with_request(head.method.as_str(), Some(head.uri.path()));
    connection.emit(site::alert(&event, &refusal));
    let response = site::refused(target, &refusal).map(|body| match body {
        Answer::Own(body) => Either::Left(body),
        Answer::Streamed(_) | Answer::Scrubbed(_) => Either::Left(http_body_util::Full::default()),
    });
    Some(response)
}
