//! What the agent was built with, beyond commands and files.
//!
//! The machine crate knows nothing of synchronization or networks: the helper binary, which knows all
//! halves, names them here.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use sandbox_base::frame::write_message;
use tokio::net::TcpListener;

use super::network::CaptureNet;

use crate::channel::protocol::{GuestOpen, MAX_OPEN};
use crate::channel::{Channel, Stream};

type StreamHandler = Arc<dyn Fn(Stream) -> BoxFuture<'static, ()> + Send + Sync>;
type ListenerHandler =
    Arc<dyn Fn(TcpListener, HostStreams) -> BoxFuture<'static, ()> + Send + Sync>;
type CaptureHandler =
    Arc<dyn Fn(Captured) -> BoxFuture<'static, io::Result<Serving>> + Send + Sync>;

/// What goes on for as long as the machine runs.
pub type Serving = BoxFuture<'static, ()>;

/// What the handler of captured connections gets.
#[derive(Debug)]
#[non_exhaustive]
pub struct Captured {
    /// The namespace where they arrive.
    pub network: CaptureNet,
    /// The TCP ports to take from the beginning.
    pub ports: Vec<u16>,
    /// The way to the host's service.
    pub host: HostStreams,
}

/// The services that an agent offers, by name.
#[derive(Clone, Default)]
pub struct Services {
    streams: HashMap<String, StreamHandler>,
    listeners: HashMap<String, ListenerHandler>,
    captures: HashMap<String, CaptureHandler>,
}

impl Services {
    /// Offers nothing beyond commands and files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers streams that the host opens for the service `name`.
    #[must_use]
    pub fn with_stream(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(Stream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        self.streams.insert(name.into(), Arc::new(handler));
        self
    }

    /// Serves a port inside the guest whose connections lead to the host's service `name`.
    #[must_use]
    pub fn with_listener(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(TcpListener, HostStreams) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        self.listeners.insert(name.into(), Arc::new(handler));
        self
    }

    /// Takes all connections that leave the machine, for the host's service `name`. The handler's first
    /// future resolves when programs may begin to connect.
    #[must_use]
    pub fn with_capture(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(Captured) -> BoxFuture<'static, io::Result<Serving>> + Send + Sync + 'static,
    ) -> Self {
        self.captures.insert(name.into(), Arc::new(handler));
        self
    }

    pub(crate) fn stream(&self, name: &str) -> Option<&StreamHandler> {
        self.streams.get(name)
    }

    pub(crate) fn listener(&self, name: &str) -> Option<&ListenerHandler> {
        self.listeners.get(name)
    }

    pub(crate) fn capture(&self, name: &str) -> Option<&CaptureHandler> {
        self.captures.get(name)
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("streams", &self.streams.keys())
            .field("listeners", &self.listeners.keys())
            .field("captures", &self.captures.keys())
            .finish()
    }
}

/// Opens streams to one service of the host, over whichever session is the present one.
#[derive(Debug, Clone)]
pub struct HostStreams {
    session: Session,
    service: String,
}

impl HostStreams {
    pub(crate) fn new(session: Session, service: String) -> Self {
        Self { session, service }
    }

    /// Opens a stream to the service.
    ///
    /// Cancel safe: a dropped future leaves at most a stream that is reset at once.
    ///
    /// # Errors
    ///
    /// `NotConnected` while no host is there, `BrokenPipe` when the session ended meanwhile.
    pub async fn open(&self) -> io::Result<Stream> {
        let channel = self.session.current().ok_or(io::ErrorKind::NotConnected)?;
        let mut stream = channel.open().await?;
        let open = GuestOpen::Service(self.service.clone());
        write_message(&mut stream, &open, MAX_OPEN).await?;
        Ok(stream)
    }
}

/// The channel of the present session; a restored or reconnected machine gets another one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session(Arc<Mutex<Option<Channel>>>);

impl Session {
    pub(crate) fn replace(&self, channel: Option<Channel>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    pub(crate) fn current(&self) -> Option<Channel> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
