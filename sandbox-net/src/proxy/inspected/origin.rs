//! The origin of an inspected connection: one connection after the other to the address that was judged.
//!
//! The client's connection has one of its own to the origin, which no other client uses. When the origin has ended it
//! (as servers do after some idle seconds), the next request gets a new one: judged again, verified again, with the
//! same protocol.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandbox_base::ByteStream;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use super::{body::Outgoing, tasks::Tasks};
use crate::{
    inspect::{Fault, Inspector, Protocol},
    proxy::{
        dial::dial,
        lease::Lease,
        meter::{Meter, Metered},
    },
};

/// What it takes to reach the origin again.
pub(super) struct Origin {
    pub(super) inspector: Inspector,
    pub(super) lease: Mutex<Lease>,
    pub(super) protocol: Protocol,
    /// What is offered in the handshake.
    pub(super) offer: Vec<Protocol>,
    pub(super) meter: Arc<Meter>,
    pub(super) tasks: Tasks,
    pub(super) connect_timeout: Duration,
    pub(super) head_bytes: usize,
    sender: Mutex<Option<Sender>>,
}

/// Sends requests on a connection.
#[derive(Clone)]
enum Sender {
    Http1(Arc<Mutex<http1::SendRequest<Outgoing>>>),
    Http2(http2::SendRequest<Outgoing>),
}

/// Settings that do not change from one connection to the next.
pub(super) struct Settings {
    pub(super) inspector: Inspector,
    pub(super) lease: Lease,
    pub(super) offer: Vec<Protocol>,
    pub(super) meter: Arc<Meter>,
    pub(super) connect_timeout: Duration,
    pub(super) head_bytes: usize,
}

impl Origin {
    /// Shakes hands over the first connection.
    pub(super) async fn first(
        settings: Settings,
        tasks: Tasks,
        stream: TcpStream,
    ) -> Result<Self, Fault> {
        let mut origin = Self {
            inspector: settings.inspector,
            lease: Mutex::new(settings.lease),
            protocol: Protocol::Http1,
            offer: settings.offer,
            meter: settings.meter,
            tasks,
            connect_timeout: settings.connect_timeout,
            head_bytes: settings.head_bytes,
            sender: Mutex::new(None),
        };
        let (stream, chosen) = origin.shake_hands(stream).await?;
        // Without an answer to the offer, HTTP/1.1 is meant.
        origin.protocol = chosen.unwrap_or(Protocol::Http1);
        if !origin.offer.contains(&origin.protocol) {
            return Err(Fault::new(
                "tls",
                "the host does not speak the protocol that the client asks for",
            ));
        }
        let sender = origin.begin(stream).await?;
        *origin.sender.lock().await = Some(sender);
        Ok(origin)
    }

    /// Sends a request; once more on a new connection if the old one was gone before anything of it was sent.
    pub(super) async fn send(
        &self,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Fault> {
        for last in [false, true] {
            let sender = self.sender(last).await?;
            let failed = match &sender {
                Sender::Http1(sender) => {
                    let mut sender = sender.lock().await;
                    match sender.ready().await {
                        Ok(()) => match sender.try_send_request(request).await {
                            Ok(response) => return Ok(response),
                            Err(mut failed) => (failed.take_message(), failed.into_error()),
                        },
                        Err(error) => (Some(request), error),
                    }
                }
                Sender::Http2(sender) => {
                    let mut sender = sender.clone();
                    match sender.ready().await {
                        Ok(()) => match sender.try_send_request(request).await {
                            Ok(response) => return Ok(response),
                            Err(mut failed) => (failed.take_message(), failed.into_error()),
                        },
                        Err(error) => (Some(request), error),
                    }
                }
            };
            match failed {
                (Some(unsent), _) if !last => request = unsent,
                (_, error) if error.is_parse() => {
                    return Err(Fault::new("upstream", "the host's answer is not HTTP"));
                }
                _ => break,
            }
        }
        Err(Fault::new(
            "upstream",
            "the host ended the connection without an answer",
        ))
    }

    /// Returns the present connection, or a new one if there is none any more.
    async fn sender(&self, anew: bool) -> Result<Sender, Fault> {
        let mut sender = self.sender.lock().await;
        if let Some(present) = sender.as_ref().filter(|_| !anew) {
            let is_closed = match present {
                Sender::Http1(sender) => sender.lock().await.is_closed(),
                Sender::Http2(sender) => sender.is_closed(),
            };
            if !is_closed {
                return Ok(present.clone());
            }
        }
        // Gone, also if no other can be made.
        *sender = None;
        let fresh = self.reconnect().await?;
        *sender = Some(fresh.clone());
        Ok(fresh)
    }

    async fn reconnect(&self) -> Result<Sender, Fault> {
        let allowed = {
            let mut lease = self.lease.lock().await;
            let address = lease.address;
            let allow = lease
                .judge()
                .map_err(|denial| Fault::new("denied", denial.text))?;
            let same = allow
                .addresses
                .into_iter()
                .filter(|allowed| allowed.address() == address);
            same.collect::<Vec<_>>()
        };
        let (stream, _) = dial(&allowed, self.connect_timeout)
            .await
            .map_err(|_| Fault::new("upstream", "the host does not answer any more"))?;
        let (stream, chosen) = self.shake_hands(stream).await?;
        if chosen.unwrap_or(Protocol::Http1) != self.protocol {
            return Err(Fault::new(
                "tls",
                "the host speaks another protocol than before",
            ));
        }
        self.begin(stream).await
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<(impl ByteStream + use<>, Option<Protocol>), Fault> {
        let target = self.lease.lock().await.target.clone();
        let metered = Metered::new(stream, Arc::clone(&self.meter));
        let connecting = self.inspector.connect(&target, &self.offer, metered);
        timeout(self.connect_timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(Fault::new("tls", "the host's TLS handshake took too long")))
    }

    async fn begin(&self, stream: impl ByteStream + 'static) -> Result<Sender, Fault> {
        let broken = |_| Fault::new("upstream", "the connection to the host broke");
        let stream = TokioIo::new(stream);
        match self.protocol {
            Protocol::Http1 => {
                let (sender, driver) = http1::Builder::new()
                    .max_buf_size(self.head_bytes)
                    .handshake(stream)
                    .await
                    .map_err(broken)?;
                let driver = driver.with_upgrades();
                self.tasks.execute(async move { drop(driver.await) });
                Ok(Sender::Http1(Arc::new(Mutex::new(sender))))
            }
            Protocol::Http2 => {
                let limit = u32::try_from(self.head_bytes).unwrap_or(u32::MAX);
                let (sender, driver) = http2::Builder::new(self.tasks.clone())
                    .timer(TokioTimer::new())
                    .max_header_list_size(limit)
                    .handshake(stream)
                    .await
                    .map_err(broken)?;
                self.tasks.execute(async move { drop(driver.await) });
                Ok(Sender::Http2(sender))
            }
        }
    }
}
