//! Tunnels that are opened: TLS to the client on one side, to the origin on the other, requests in between.
//!
//! The order is: the client's hello, judged as for any tunnel; TLS to the origin, with the protocols that the client
//! offers; TLS to the client, with the one that the origin chose; then requests, served like those of any connection
//! ([`Inside`]), with their secrets put in (`swapping`). What cannot be opened is denied: no hello, another name, no
//! HTTP. An origin that cannot be verified is answered for, with 502.

mod body;
pub(super) mod swapping;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use sandbox_base::BoxStream;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};

pub(super) use self::body::Scrubbing;
use super::{
    client::Client,
    connection::serve_inside,
    inside::Inside,
    lease::Lease,
    rewound::Rewound,
    tunnel::{Tunnel, about, alert, end_of_cut, read_hello},
    upstream::{Connector, Judged, Link, Protocol as Spoken},
};
use crate::{
    event::Kind,
    fault::Fault,
    inspect::{Inspector, Protocol},
    policy::{Denial, Hello, Host, Reason, Target},
};

/// The client's bytes from the first one on.
type Stream = Rewound<BoxStream>;

/// Carries a tunnel to its end, request by request. Some of the client's bytes may have come already.
///
/// Boxed and without the stream's type: it serves connections, of which each may become a tunnel.
pub(super) fn run(
    client: Client,
    opened: (Tunnel, Inspector),
    stream: (BoxStream, Vec<u8>),
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { open(&client, opened, stream).await })
}

async fn open(
    client: &Client,
    (tunnel, inspector): (Tunnel, Inspector),
    (mut stream, early): (BoxStream, Vec<u8>),
) {
    let Tunnel {
        mut lease,
        upstream,
        ..
    } = tunnel;
    lease.opened = true;
    let first = match admit(client, &mut lease, (&mut stream, early)).await {
        Ok(first) => first,
        Err(denial) => return deny(client, &lease, &denial),
    };
    let Some((start, offered)) = accept(client, &lease, (first, stream)).await else {
        return;
    };
    let connector = Tls {
        inspector: inspector.clone(),
        below: Arc::clone(&client.shared.connector),
        offer: offered.clone().unwrap_or_else(|| vec![Protocol::Http1]),
        first: Mutex::new(None),
    };
    let limit = client.shared.limits.connect_timeout;
    let plain = Link {
        stream: upstream,
        address: lease.address,
        protocol: Spoken::Http1,
        absolute: None,
    };
    let spoken = match timeout(limit, connector.secure(&lease.target, plain)).await {
        Ok(Ok(link)) => {
            let spoken = link.protocol;
            *connector
                .first
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(link);
            Some(spoken)
        }
        // Each request finds out again, and is answered with the reason.
        Ok(Err(_)) | Err(_) => None,
    };
    let protocol = protocol(spoken, offered.as_deref());
    let Some(stream) = shake_hands(client, (&inspector, &lease.target), start, protocol).await
    else {
        return;
    };
    // A policy that denies the tunnel ends it, also while no request is under way.
    let held = match client.hold(lease.clone()) {
        Ok(held) => held,
        Err(denial) => return deny(client, &lease, &denial),
    };
    let (target, address, method) = (lease.target.clone(), lease.address, lease.method);
    let inside = Inside {
        lease,
        connector: Arc::new(connector),
        credentials: inspector.credentials().cloned(),
    };
    let spoken = match protocol {
        Some(Protocol::Http2) => Spoken::Http2,
        _ => Spoken::Http1,
    };
    serve_inside(client, Arc::new(inside), (stream, spoken)).await;
    client.release(held);
    // Exchanges tell of their own ends; this one would go untold.
    if let Some(cut) = client.why_cut() {
        client.emit(Kind::End, |event| {
            end_of_cut(about(event, &target, method).with_address(address), cut)
        });
    }
}

/// Learns the client's hello and judges the tunnel by it; returns the bytes that were read for it.
async fn admit(
    client: &Client,
    lease: &mut Lease,
    (stream, early): (&mut BoxStream, Vec<u8>),
) -> Result<Vec<u8>, Denial> {
    let (hello, first) = read_hello(client, stream, &early).await;
    let named = check_hello(&lease.target, &hello);
    lease.hello = Some(hello);
    match named.and_then(|()| lease.judge()) {
        Ok(allow) => {
            client.emit(Kind::Decision, |event| {
                let event = about(event, &lease.target, lease.method).with_address(lease.address);
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
    client: &Client,
    lease: &Lease,
    (first, stream): (Vec<u8>, BoxStream),
) -> Option<(StartHandshake<Stream>, Option<Vec<Protocol>>)> {
    let stream = Rewound::new(first, stream);
    let accepting = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let limit = client.shared.limits.hello_timeout;
    let Ok(Ok(mut start)) = timeout(limit, accepting).await else {
        let denial = Denial::new(Reason::NotTls, "the TLS handshake cannot be read");
        deny(client, lease, &denial);
        return None;
    };
    let offered = start
        .client_hello()
        .alpn()
        .map(|names| names.filter_map(Protocol::named).collect::<Vec<_>>());
    if offered.as_ref().is_some_and(Vec::is_empty) {
        let text = "the client offers no protocol that can be inspected";
        deny(client, lease, &Denial::new(Reason::NotTls, text));
        drop(start.io.shutdown().await);
        return None;
    }
    Some((start, offered))
}

/// What the client is told: what the origin chose; without an origin, what it can read an answer in. An origin that
/// chose what the client did not offer is spoken to in its own way all the same.
fn protocol(spoken: Option<Spoken>, offered: Option<&[Protocol]>) -> Option<Protocol> {
    let offered = offered?;
    let chosen = match spoken {
        Some(Spoken::Http2) => Protocol::Http2,
        Some(Spoken::Http1) | None => Protocol::Http1,
    };
    let first = offered.first().copied();
    Some(chosen)
        .filter(|chosen| offered.contains(chosen))
        .or(first)
}

async fn shake_hands(
    client: &Client,
    (inspector, target): (&Inspector, &Target),
    start: StartHandshake<Stream>,
    protocol: Option<Protocol>,
) -> Option<TlsStream<Stream>> {
    let failed = |reason: &str, text: &str| {
        client.emit(Kind::Refused, |event| {
            event.with_target(target).with_reason(reason, text)
        });
    };
    let config = match inspector.server(target, protocol) {
        Ok(config) => config,
        Err(error) => {
            failed("certificate", &error.to_string());
            return None;
        }
    };
    let limit = client.shared.limits.hello_timeout;
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

fn deny(client: &Client, lease: &Lease, denial: &Denial) {
    client.emit(Kind::Decision, |event| {
        let event = about(event, &lease.target, lease.method).with_address(lease.address);
        event.with_denial(denial)
    });
}

/// Puts verified TLS on connections to the target of one tunnel.
struct Tls {
    inspector: Inspector,
    below: Arc<dyn Connector>,
    /// What the client offered.
    offer: Vec<Protocol>,
    /// The connection by which the protocol was learned.
    first: Mutex<Option<Link>>,
}

impl Tls {
    async fn secure(&self, target: &Target, link: Link) -> io::Result<Link> {
        let connecting = self.inspector.connect(target, &self.offer, link.stream);
        let (stream, chosen) = connecting.await.map_err(io::Error::other)?;
        // Without an answer to the offer, HTTP/1.1 is meant.
        let protocol = match chosen {
            Some(Protocol::Http2) => Spoken::Http2,
            Some(Protocol::Http1) | None => Spoken::Http1,
        };
        Ok(Link {
            stream: Box::new(stream),
            address: link.address,
            protocol,
            absolute: None,
        })
    }

    fn take_first(&self) -> Option<Link> {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[async_trait]
impl Connector for Tls {
    async fn connect(&self, to: Judged<'_>, limit: Duration) -> io::Result<Link> {
        let is_judged = |link: &Link| {
            let mut addresses = to.addresses.iter();
            match link.address {
                Some(address) => addresses.any(|allowed| allowed.address() == address),
                None => to.name.is_some(),
            }
        };
        if let Some(link) = self.take_first().filter(is_judged) {
            return Ok(link);
        }
        let connecting = async {
            let link = self.below.connect(to, limit).await?;
            self.secure(to.target, link).await
        };
        let late = || io::Error::other(Fault::new("tls", "the host's TLS handshake took too long"));
        timeout(limit, connecting)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}
