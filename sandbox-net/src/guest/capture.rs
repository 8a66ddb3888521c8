//! Connections of programs that were told of no proxy, and their name lookups, led to the host.
//!
//! ```text
//!  program ── A www.example.com? ──► resolver ── may it be known? ──► host     (one stream for all)
//!          ◄── 198.19.0.7 ─────────     │  ◄── yes ─────────────────
//!                                      pool: 198.19.0.7 is www.example.com
//!  program ── connect 198.19.0.7:443 ─► listener ── www.example.com, 443 ──► host, a stream for each
//! ```
//!
//! The machine's network ends in a [`Network`] where every address is local, so that an ordinary listener on
//! `0.0.0.0` takes connections to any address, and their own local address says which. Ports that nobody listens
//! on are refused by the kernel. Addresses that were dialled without a lookup are handed on as they are, for the
//! host to judge.
//!
//! What the policy says is not known here, so each name is asked about: a program that may not reach a host finds
//! that there is none. The host answers without looking the name up. Questions about the same name at the same
//! time are one. Whatever the host refuses is reset at once.
//!
//! What the module ignores: whether a name exists. An allowed one that does not has an address here, and
//! connections to it are reset.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sandbox_base::{
    BoxStream, ByteStream,
    frame::{read_message, write_message},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{
    forward::accept,
    names::{self, Heard, Known, Pool, Question},
};
use crate::wire::{Admission, Answer, First, Lookup, MAX_FROM_GUEST, MAX_FROM_HOST, Told};

/// The machine's own address on the way out.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The agent's: gateway and resolver. Both are of the network for benchmarks (RFC 2544), as the pool is.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The length of their network's prefix.
pub const PREFIX: u8 = 30;

const DNS_PORT: u16 = 53;
/// How long the host may take to answer. Programs ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long to wait before the host is tried again.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Lookups that are under way at a time; more are dropped, and asked again by those who asked.
const MAX_LOOKUPS: usize = 256;
/// How long a resolver's connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// Where captured connections arrive: a network in which every address is this machine's own.
pub trait Network: Send + Sync + 'static {
    /// Listens for connections.
    fn listen(&self, address: SocketAddrV4)
    -> impl Future<Output = io::Result<TcpListener>> + Send;

    /// Takes datagrams.
    fn bind(&self, address: SocketAddrV4) -> impl Future<Output = io::Result<UdpSocket>> + Send;
}

/// Opens a stream to the host.
type Open = Arc<dyn Fn() -> Opening + Send + Sync>;
type Opening = std::pin::Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>>;

/// Takes the sockets that capturing needs; programs may look names up and connect from then on.
///
/// Ports that cannot be listened on are passed over with a word in the log. The returned value has to be
/// [run](Capture::run).
///
/// # Errors
///
/// What the network answers for the resolver's own sockets.
pub async fn start<N, F, S>(network: N, ports: &[u16], open: F) -> io::Result<Capture<N>>
where
    N: Network,
    F: Fn() -> S + Send + Sync + 'static,
    S: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    let resolver = SocketAddrV4::new(RESOLVER, DNS_PORT);
    let datagrams = network.bind(resolver).await?;
    let streams = network.listen(resolver).await?;
    let (questions, asked) = mpsc::channel(MAX_LOOKUPS);
    let shared = Arc::new(Shared {
        started: Instant::now(),
        pool: Mutex::default(),
        questions,
        open: Arc::new(move || Box::pin(open())),
    });
    let mut capture = Capture {
        network,
        listeners: HashMap::new(),
        tasks: JoinSet::new(),
        shared,
        asked,
    };
    let shared = Arc::clone(&capture.shared);
    capture.tasks.spawn(serve_datagrams(shared, datagrams));
    let shared = Arc::clone(&capture.shared);
    capture.tasks.spawn(async move {
        let serve = move |stream| serve_stream(Arc::clone(&shared), stream);
        ended(accept(streams, serve).await);
    });
    capture.set_ports(ports).await;
    Ok(capture)
}

/// Tells the host on a new stream where a connection was going: a name that was looked up, or the address that was
/// dialled without a lookup. Returns once the host has opened it: the connection's bytes may follow. For those who
/// capture connections in a way of their own.
///
/// # Errors
///
/// `ConnectionRefused` if the host denies it, `InvalidData` for a name that is too long, and what the stream answers.
pub async fn announce<S: ByteStream>(stream: &mut S, host: &str, port: u16) -> io::Result<()> {
    let first = First::Connect {
        host: host.to_owned(),
        port,
    };
    write_message(stream, &first, MAX_FROM_GUEST).await?;
    match read_message(stream, MAX_FROM_HOST).await? {
        Admission::Open => Ok(()),
        Admission::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// What captures connections.
pub struct Capture<N> {
    network: N,
    listeners: HashMap<u16, AbortHandle>,
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
    asked: mpsc::Receiver<Asking>,
}

impl<N> std::fmt::Debug for Capture<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut ports: Vec<_> = self.listeners.keys().collect();
        ports.sort_unstable();
        f.debug_struct("Capture")
            .field("ports", &ports)
            .finish_non_exhaustive()
    }
}

/// What every connection and lookup needs.
struct Shared {
    started: Instant,
    pool: Mutex<Pool>,
    questions: mpsc::Sender<Asking>,
    open: Open,
}

/// A name, and who wants to know.
type Asking = (String, oneshot::Sender<Answer>);

impl<N: Network> Capture<N> {
    /// Captures until the future is dropped; connections that are open then go on to their end. While the host is
    /// away lookups fail.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(error) = self.talk().await;
            tracing::debug!(%error, "the stream of lookups broke");
            sleep(BACK_OFF).await;
        }
    }

    /// Has lookups answered by the host, and does as it says, until the stream to it breaks.
    async fn talk(&mut self) -> io::Result<Infallible> {
        let mut stream = (self.shared.open)().await?;
        write_message(&mut stream, &First::Names, MAX_FROM_GUEST).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (heard, mut told) = mpsc::channel(16);
        let reading = async move {
            loop {
                let message: Told = read_message(&mut reader, MAX_FROM_HOST).await?;
                // The other half is never dropped before this one.
                drop(heard.send(message).await);
            }
        };
        tokio::select! {
            broken = reading => broken,
            broken = self.converse(&mut writer, &mut told) => broken,
        }
    }

    async fn converse(
        &mut self,
        writer: &mut (impl tokio::io::AsyncWrite + Unpin),
        told: &mut mpsc::Receiver<Told>,
    ) -> io::Result<Infallible> {
        let mut waiting: HashMap<String, Vec<oneshot::Sender<Answer>>> = HashMap::new();
        loop {
            tokio::select! {
                Some((name, who)) = self.asked.recv() => {
                    if who.is_closed() {
                        continue; // asked while the host was away, and given up
                    }
                    let others = waiting.entry(name.clone()).or_default();
                    others.retain(|who| !who.is_closed());
                    others.push(who);
                    if others.len() == 1 {
                        write_message(writer, &Lookup { name }, MAX_FROM_GUEST).await?;
                    }
                }
                Some(message) = told.recv() => match message {
                    Told::Ports(ports) => self.set_ports(&ports).await,
                    Told::Answer { name, answer } => {
                        for who in waiting.remove(&name).unwrap_or_default() {
                            // It may have given up.
                            who.send(answer).ok();
                        }
                    }
                }
            }
        }
    }

    /// Listens on these ports and on no others. Connections that are open stay so: the host judges them.
    async fn set_ports(&mut self, ports: &[u16]) {
        self.listeners.retain(|port, listener| {
            let keep = ports.contains(port) && !listener.is_finished();
            if !keep {
                listener.abort();
            }
            keep
        });
        // Those that came to an end leave their results here.
        while self.tasks.try_join_next().is_some() {}
        for port in ports {
            if self.listeners.contains_key(port) {
                continue;
            }
            let everywhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, *port);
            match self.network.listen(everywhere).await {
                Ok(listener) => {
                    let listening = listen(Arc::clone(&self.shared), listener);
                    self.listeners.insert(*port, self.tasks.spawn(listening));
                }
                Err(error) => {
                    tracing::warn!(port, %error, "connections to a port are not captured")
                }
            }
        }
    }
}

/// Takes connections. Each is a task of its own, which outlives the listener: ports come and go with the policy.
async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let serve = move |stream: TcpStream| {
        let shared = Arc::clone(&shared);
        let serving = tokio::spawn(async move { shared.carry(stream).await });
        async move { drop(serving.await) }
    };
    ended(accept(listener, serve).await);
}

fn ended(result: io::Result<Infallible>) {
    let Err(error) = result;
    tracing::warn!(%error, "a listener ended");
}

impl Shared {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Nothing is left half-changed.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a connection to its end.
    async fn carry(self: Arc<Self>, mut stream: TcpStream) {
        if let Err(error) = self.try_carry(&mut stream).await {
            tracing::debug!(%error, "a captured connection broke");
            // Closing it resets it then, so that nobody takes what came for all there was.
            drop(stream.set_zero_linger());
        }
    }

    async fn try_carry(self: &Arc<Self>, stream: &mut TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let IpAddr::V4(address) = local.ip() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let meant = Meant::by(self, address).ok_or(io::ErrorKind::HostUnreachable)?;
        let mut outside = (self.open)().await?;
        announce(&mut outside, &meant.host(), local.port()).await?;
        copy_bidirectional(stream, &mut outside).await?;
        Ok(())
    }

    /// Asks the host about a name.
    async fn ask(&self, name: &str) -> Answer {
        let (who, answer) = oneshot::channel();
        let asking = async {
            self.questions.send((name.to_owned(), who)).await.ok()?;
            answer.await.ok()
        };
        let answered = timeout(PATIENCE, asking).await;
        answered.ok().flatten().unwrap_or(Answer::Busy)
    }

    /// Answers a message to the resolver.
    async fn resolve(&self, message: &[u8]) -> Option<Vec<u8>> {
        match names::read(message) {
            Heard::Nothing => None,
            Heard::Answered(answer) => Some(answer),
            Heard::Asked(question) => {
                let known = self.look_up(&question).await;
                Some(question.answer(known))
            }
        }
    }

    async fn look_up(&self, question: &Question) -> Known {
        match self.ask(question.name()).await {
            Answer::Denied => Known::NoSuchName,
            Answer::Busy => Known::Failure,
            Answer::Allowed if !question.wants_address() => Known::NoData,
            Answer::Allowed => {
                let address = self.pool().address_of(question.name(), self.now());
                address.map_or(Known::Failure, Known::Address)
            }
        }
    }
}

/// What a connection's address means; for as long as this lives it means nothing else.
enum Meant {
    Name(Arc<Shared>, Ipv4Addr, Arc<str>),
    Address(Ipv4Addr),
}

impl Meant {
    fn by(shared: &Arc<Shared>, address: Ipv4Addr) -> Option<Self> {
        let mut pool = shared.pool();
        if pool.contains(address) {
            let name = pool.hold(address, shared.now())?;
            return Some(Self::Name(Arc::clone(shared), address, name));
        }
        // The agent's own address and those around it are nobody else's.
        let is_own = (address.to_bits() ^ RESOLVER.to_bits()) >> (32 - PREFIX) == 0;
        (!is_own).then_some(Self::Address(address))
    }

    fn host(&self) -> String {
        match self {
            Self::Name(_, _, name) => name.to_string(),
            Self::Address(address) => address.to_string(),
        }
    }
}

impl Drop for Meant {
    fn drop(&mut self) {
        if let Self::Name(shared, address, _) = self {
            let now = shared.now();
            shared.pool().release(*address, now);
        }
    }
}

/// Answers lookups by datagram.
async fn serve_datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(MAX_LOOKUPS));
    let mut answering = JoinSet::new();
    let mut message = [0; 1500];
    loop {
        let (count, from) = match socket.recv_from(&mut message).await {
            Ok(received) => received,
            // Word of an answer that could not be delivered, for one.
            Err(error) => {
                tracing::debug!(%error, "no question was received");
                sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        while answering.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        let message = message[..count].to_vec();
        answering.spawn(async move {
            if let Some(answer) = shared.resolve(&message).await {
                // Whoever asked may be gone.
                drop(socket.send_to(&answer, from).await);
            }
            drop(place);
        });
    }
}

/// Answers lookups on a connection, one after the other (RFC 7766).
async fn serve_stream(shared: Arc<Shared>, mut stream: TcpStream) {
    let serving = async {
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            let mut message = vec![0; length.into()];
            timeout(IDLE, stream.read_exact(&mut message)).await??;
            let answer = shared.resolve(&message).await.unwrap_or_default();
            let length = u16::try_from(answer.len()).unwrap_or_default();
            // One write, so that the two do not wait for each other.
            let answer = [&length.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, stream.write_all(&answer)).await??;
        }
    };
    let ended: io::Result<Infallible> = serving.await;
    let Err(error) = ended;
    tracing::trace!(%error, "a resolver's connection ended");
}
