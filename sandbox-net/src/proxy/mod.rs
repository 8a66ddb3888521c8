//! The forward proxy: it asks the policy and does as it says; it never decides.
//!
//! ```text
//!  sandbox ══ byte stream ══► connection ──► request ──► policy (twice), resolver
//!                                 │                          │
//!                  CONNECT ◄──────┴──────► absolute form     ▼
//!                  tunnel, hello           exchange      Allowed<SocketAddr> ──► dial
//!                      └───────── lease, meter ──┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `connection` | one connection from the sandbox, served by hyper |
//! | `client` | such a connection, to the code that judges and tells |
//! | `captured` | connections of programs that know of no proxy, and their name lookups |
//! | `check` | what would be done, without doing it |
//! | `gate` | the bytes of messages: only what can be read in one way reaches hyper |
//! | `request` | what a request's head asks for |
//! | `tunnel`, `hello` | CONNECT; the name in the TLS ClientHello |
//! | `exchange`, `raw` | HTTP exchanges; what an upgrade leaves |
//! | `inside` | requests inside a tunnel that was decrypted |
//! | `inspected` | tunnels that are opened, where an [`Inspector`](crate::inspect::Inspector) says so |
//! | `upstream` | connections to judged addresses, HTTP over them, those that wait |
//! | `lease`, `meter` | what ends a live connection: a new policy, silence |
//! | `pace`, `lookups`, `throttle`, `slow` | how often, how much, how slowly; each pure in its decision |
//! | `pump` | bytes both ways |
//! | `reply` | the proxy's own answers |

mod captured;
mod check;
mod client;
mod connection;
mod exchange;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gate;
mod hello;
mod inside;
#[cfg(feature = "inspect")]
mod inspected;
mod lease;
mod limits;
mod meter;
mod pump;
mod raw;
mod reply;
mod request;
mod rewound;
mod slow;
mod throttle;
mod tunnel;
mod upstream;

use std::{
    convert::Infallible,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sandbox_base::{BoxStream, ByteStream};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

pub use captured::captured_ports;
pub use check::{Checked, Way};
use lease::InForce;
pub use limits::Limits;
use throttle::{Bandwidth, Throttled};
use upstream::{Connector, Direct, Pool, Settings, Via};

#[cfg(feature = "inspect")]
use crate::inspect::Inspector;
use crate::{
    approval::Approvals,
    event::{Event, Events, Kind, Subscription},
    pace::{Pace, Rate},
    policy::EgressPolicy,
    resolve::{Lookups, Remembering, Resolver, SystemResolver},
    upstream::UpstreamProxy,
};

/// How long the answer to a connection that is one too many may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to wait when the system has no descriptor for another connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A filtering forward proxy for one sandbox. Cheap to clone; clones are the same proxy.
///
/// ```no_run
/// # async fn run(stream: tokio::net::TcpStream) -> Result<(), sandbox_net::Error> {
/// use std::sync::Arc;
/// use sandbox_net::{Proxy, policy::RuleSet};
///
/// let proxy = Proxy::builder(Arc::new(RuleSet::deny().allow("*.example.com")?)).build();
/// let mut events = proxy.subscribe();
/// proxy.serve(stream).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

/// What the connections of one proxy share.
struct Shared {
    policy: watch::Sender<InForce>,
    resolver: Remembering,
    approvals: Option<Approvals>,
    connector: Arc<dyn Connector>,
    /// Who makes the connections, where this host itself goes through a proxy.
    upstream: Option<Arc<Via>>,
    pool: Arc<Pool>,
    limits: Limits,
    settings: Settings,
    events: Events,
    #[cfg(feature = "inspect")]
    inspector: Option<Inspector>,
    places: Arc<Semaphore>,
    connections: AtomicU64,
    /// Names that are asked for inside.
    names: Mutex<Pace>,
    requests: Mutex<Pace>,
    lookups: Lookups,
    /// `None` if there is no bound.
    bandwidth: Option<Arc<Bandwidth>>,
    /// What events call the sandbox.
    label: Option<Arc<str>>,
    /// Whether connections that wait for a request are to be closed.
    closing: watch::Sender<bool>,
}

impl Proxy {
    /// Begins a proxy that enforces a policy.
    pub fn builder(policy: Arc<dyn EgressPolicy>) -> ProxyBuilder {
        ProxyBuilder {
            policy,
            resolver: None,
            approvals: None,
            limits: Limits::default(),
            events: Events::default(),
            #[cfg(feature = "inspect")]
            inspector: None,
            upstream: None,
            label: None,
        }
    }

    /// Serves one connection from the sandbox to its end.
    ///
    /// The stream may be anything that carries bytes. Errors on it end the connection and nothing else. Dropping
    /// the future closes the connection and the tunnel that it may have become.
    pub async fn serve(&self, stream: impl ByteStream + 'static) {
        match &self.0.bandwidth {
            Some(bandwidth) => {
                let stream: BoxStream = Box::new(Throttled::new(stream, Arc::clone(bandwidth)));
                self.serve_stream(stream).await;
            }
            None => self.serve_stream(stream).await,
        }
    }

    async fn serve_stream(&self, mut stream: impl ByteStream + 'static) {
        let id = self.0.connections.fetch_add(1, Relaxed);
        let Ok(place) = Arc::clone(&self.0.places).try_acquire_owned() else {
            let text = "this sandbox has too many connections open";
            self.0.events.emit_with(|| {
                let event = Event::new(Kind::Refused, id).with_reason("busy", text);
                event.with_sandbox(self.0.label.as_ref())
            });
            let farewell = async {
                stream.write_all(reply::BUSY).await?;
                stream.shutdown().await
            };
            drop(timeout(FAREWELL, farewell).await);
            return;
        };
        connection::serve(Arc::clone(&self.0), id, stream).await;
        drop(place);
    }

    /// Accepts connections and serves each in a task of its own, for use as a stand-alone proxy.
    ///
    /// Dropping the future stops accepting and cuts every connection.
    ///
    /// # Errors
    ///
    /// What the listener answers when it cannot go on. A lack of descriptors is waited out.
    pub async fn listen(&self, listener: TcpListener) -> io::Result<Infallible> {
        let mut serving = JoinSet::new();
        self.accept(&listener, &mut serving).await
    }

    /// Accepts and serves like [`listen`](Self::listen) until `stop` is ready, then ends gracefully.
    ///
    /// The listener is closed, and so are connections that wait for a request, for good: the proxy takes no more
    /// than the request under way from any connection. Returns when the last exchange and the last tunnel have
    /// ended; dropping the future cuts them.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub async fn listen_until(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut serving = JoinSet::new();
        tokio::select! {
            failed = self.accept(&listener, &mut serving) => return failed.map(|never| match never {}),
            () = stop => {}
        }
        drop(listener);
        self.0.closing.send_replace(true);
        while serving.join_next().await.is_some() {}
        Ok(())
    }

    async fn accept(
        &self,
        listener: &TcpListener,
        serving: &mut JoinSet<()>,
    ) -> io::Result<Infallible> {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        stream.set_nodelay(true).ok();
                        let proxy = self.clone();
                        serving.spawn(async move { proxy.serve(stream).await });
                    }
                    Err(error) if is_passing(&error) => tokio::time::sleep(BACK_OFF).await,
                    Err(error) => return Err(error),
                },
                Some(_) = serving.join_next() => {}
            }
        }
    }

    /// Replaces the policy.
    ///
    /// The next decision is made by the new one. Live tunnels and exchanges are judged again at once, and those
    /// that the new policy would not have allowed are cut.
    pub fn set_policy(&self, policy: Arc<dyn EgressPolicy>) {
        self.0.policy.send_modify(|in_force| {
            in_force.policy = policy;
            in_force.generation += 1;
        });
        self.0.pool.clear();
    }

    /// Returns the policy in force.
    pub fn policy(&self) -> Arc<dyn EgressPolicy> {
        Arc::clone(&self.0.policy.borrow().policy)
    }

    /// Subscribes to events from now on.
    pub fn subscribe(&self) -> Subscription {
        self.0.events.subscribe()
    }
}

/// Whether accepting can be tried again: the connection was gone already, or descriptors are short.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput};
    error.kind() != InvalidInput
        && (matches!(error.kind(), ConnectionAborted | ConnectionReset)
            || error.raw_os_error().is_some())
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("policy", &self.0.policy.borrow().policy)
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

/// A proxy to be.
#[derive(Debug)]
#[must_use]
pub struct ProxyBuilder {
    policy: Arc<dyn EgressPolicy>,
    resolver: Option<Arc<dyn Resolver>>,
    approvals: Option<Approvals>,
    limits: Limits,
    events: Events,
    #[cfg(feature = "inspect")]
    inspector: Option<Inspector>,
    upstream: Option<UpstreamProxy>,
    label: Option<Arc<str>>,
}

impl ProxyBuilder {
    /// Sets who looks names up; [`SystemResolver`] if nobody is named.
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Sets who is asked about what no rule allows; nobody if nobody is named.
    pub fn approvals(mut self, approvals: Approvals) -> Self {
        self.approvals = Some(approvals);
        self
    }

    /// Sets the bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets who opens TLS and puts secrets in; without, every tunnel stays closed.
    #[cfg(feature = "inspect")]
    pub fn inspector(mut self, inspector: Inspector) -> Self {
        self.inspector = Some(inspector);
        self
    }

    /// Sets the proxy that this host itself has to go through; without, the world is reached from here.
    pub fn upstream_proxy(mut self, upstream: UpstreamProxy) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// Sets where events go. Several proxies may share one stream.
    pub fn events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// Sets what events call the sandbox. Worth it where several proxies share one stream of events.
    pub fn label(mut self, sandbox: &str) -> Self {
        self.label = Some(sandbox.into());
        self
    }

    /// Builds the proxy. Nothing runs until a connection is served.
    pub fn build(self) -> Proxy {
        let resolver = self
            .resolver
            .unwrap_or_else(|| Arc::new(SystemResolver::default()));
        let places = self.limits.connections.min(Semaphore::MAX_PERMITS);
        let requests = Rate::per_second(self.limits.requests_per_second, 5);
        let upstream = self.upstream.map(|upstream| Arc::new(Via::new(upstream)));
        let connector: Arc<dyn Connector> = match &upstream {
            Some(via) => Arc::clone(via) as _,
            None => Arc::new(Direct),
        };
        Proxy(Arc::new(Shared {
            policy: watch::Sender::new(InForce {
                policy: self.policy,
                generation: 0,
            }),
            resolver: Remembering::new(resolver),
            approvals: self.approvals,
            connector,
            upstream,
            pool: Arc::new(Pool::new(self.limits.waiting)),
            settings: Settings::new(&self.limits),
            requests: Mutex::new(Pace::new(requests)),
            lookups: Lookups::new(self.limits.lookups_per_second),
            bandwidth: Bandwidth::new(self.limits.bytes_per_second).map(Arc::new),
            limits: self.limits,
            events: self.events,
            #[cfg(feature = "inspect")]
            inspector: self.inspector,
            places: Arc::new(Semaphore::new(places)),
            connections: AtomicU64::new(0),
            names: Mutex::new(Pace::new(Some(Rate::INSIDE))),
            label: self.label,
            closing: watch::Sender::new(false),
        }))
    }
}
