//! Asks name servers that are named, and nobody else (RFC 1035).
//!
//! ```text
//!  name ─┬─ A?    ── datagram ──► first server ── truncated ──► the same, on a stream
//!        └─ AAAA? ── datagram ──►      └── silent, or cannot say ──► the next one
//! ```
//!
//! A name is asked for as it is, once for each family: there are no search domains, no hosts file and nothing kept
//! from one lookup to the next. Servers have to be recursive, since an alias (CNAME, or what a server makes of a
//! DNAME) is followed within the answer only: the addresses at its end count, whatever the names between, and the
//! policy judges those. Only a server that stays silent or says that it cannot answer is a reason to ask again.
//!
//! A server's bytes are hostile. A datagram counts only if it comes from where the question went, has its number
//! and repeats it; others are passed over and the wait goes on. Each question has a port and a number of its own,
//! picked at random by the system. Messages, aliases and addresses are bounded, and so is the time of a lookup.
//!
//! What the module ignores: DNSSEC (the servers are trusted to be who they are, as those of the system are), EDNS
//! (answers that are too long for 512 bytes come on a stream).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE, rdata::RData};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{MAX_ADDRESSES, Resolver};
use crate::{Error, policy::HostName};

/// How often each server is asked: a datagram may be lost.
const TRIES: u32 = 2;
/// Lookups that are under way at a time; each has two sockets.
const LOOKUPS: usize = 64;
/// Nobody waits longer; the clock can be added to.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// The longest datagram that is read. Without EDNS none is longer than 512 bytes; some servers do not know that.
const MAX_DATAGRAM: usize = 4096;
/// The longest message on a stream: 32 addresses and the longest names fit into a quarter of it.
const MAX_MESSAGE: u16 = 16 << 10;
/// The aliases that lead from a name to its addresses. Four are many; BIND follows 16.
const MAX_ALIASES: usize = 16;
/// The shortest record: a name that points, type, class, time to live, length.
const MIN_RECORD: usize = 11;

/// Asks name servers by address, in the order in which they are named.
///
/// Cheap to clone; clones share the bound on lookups at a time, which is 64.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use sandbox_net::{Proxy, policy::RuleSet, resolve::DnsResolver};
///
/// let names = DnsResolver::new(["9.9.9.9:53".parse()?, "[2620:fe::9]:53".parse()?]);
/// let rules = RuleSet::deny().allow("*.example.com")?;
/// let proxy = Proxy::builder(Arc::new(rules)).resolver(Arc::new(names)).build();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DnsResolver {
    servers: Arc<[SocketAddr]>,
    timeout: Duration,
    places: Arc<Semaphore>,
}

impl DnsResolver {
    /// A resolver that asks these servers, with 5 seconds for a lookup; every lookup fails if there are none.
    ///
    /// Servers are not judged: they may be on any address, this host's own among them.
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            servers: servers.into_iter().collect(),
            timeout: Duration::from_secs(5),
            places: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }

    /// Sets how long a lookup may take, with all its tries and with the wait for its turn: an hour at most. Each
    /// server has an equal share of it, twice.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Asks for the addresses of one family, one server after the other.
    async fn ask(&self, name: &HostName, family: TYPE, deadline: Instant) -> io::Result<Found> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "there is no name server");
        let tries = TRIES as usize * self.servers.len();
        let in_turn = self.servers.iter().cycle().take(tries);
        for (tried, server) in in_turn.enumerate() {
            let now = Instant::now();
            let left = u32::try_from(tries - tried).unwrap_or(u32::MAX);
            let share = now + deadline.saturating_duration_since(now) / left;
            let query = Query::new(name, family)?;
            match timeout_at(share, exchange(*server, &query)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(failure)
    }
}

#[async_trait]
impl Resolver for DnsResolver {
    /// IPv4 comes first: where there is no IPv6, the system refuses it at once, but not everywhere.
    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Error> {
        let failed = |source| Error::io(format!("look up `{name}`"), source);
        let deadline = Instant::now() + self.timeout;
        let place = timeout(self.timeout, self.places.acquire()).await;
        let _place = place
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(|closed| failed(io::Error::other(closed)))?;
        let (four, six) = tokio::join!(
            self.ask(name, TYPE::A, deadline),
            self.ask(name, TYPE::AAAA, deadline)
        );
        match (four, six) {
            (Ok(mut four), Ok(six)) => {
                four.extend(six);
                Ok(four)
            }
            // Some servers fail at a family that they have nothing of.
            (Ok(one), Err(_)) | (Err(_), Ok(one)) if !one.is_empty() => Ok(one),
            (Err(error), _) | (_, Err(error)) => Err(failed(error)),
        }
    }
}

/// The addresses of one family.
type Found = Vec<IpAddr>;

/// A question with its number, as it is sent and as it has to come back.
struct Query {
    id: u16,
    name: String,
    family: TYPE,
    bytes: Vec<u8>,
}

impl Query {
    fn new(name: &HostName, family: TYPE) -> io::Result<Self> {
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        let id = u16::from_be_bytes(id);
        let name = name.as_str().to_owned();
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let asked = Name::new(&name).map_err(io::Error::other)?;
        let question = Question::new(asked, family.into(), CLASS::IN.into(), false);
        packet.questions.push(question);
        let bytes = packet.build_bytes_vec().map_err(io::Error::other)?;
        Ok(Self {
            id,
            name,
            family,
            bytes,
        })
    }

    /// Reads a message, `None` if it is no answer to this.
    fn read(&self, message: &[u8]) -> Option<Answer> {
        // Before anything is set aside for them.
        let records: usize = message.get(6..12)?.chunks(2).map(number).sum();
        if number(&message[..2]) != usize::from(self.id) || records * MIN_RECORD > message.len() {
            return None;
        }
        let packet = Packet::parse(message).ok()?;
        let [question] = &packet.questions[..] else {
            return None;
        };
        let asked = Name::new(&self.name).ok()?;
        let repeats = question.qname == asked
            && question.qtype == QTYPE::from(self.family)
            && question.qclass == CLASS::IN.into();
        if !repeats || !packet.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Some(Answer::Truncated);
        }
        Some(match packet.rcode() {
            // A name that does not exist has no addresses.
            RCODE::NoError | RCODE::NameError => {
                follow(&packet, question.qname.clone(), self.family)
            }
            _ => Answer::Failure("it says that it cannot answer"),
        })
    }
}

/// Reads a message as the answer to a question of the number that it has itself.
#[cfg(fuzzing)]
pub(super) fn read_for_fuzzing(name: &HostName, message: &mut [u8]) -> bool {
    let Ok(query) = Query::new(name, TYPE::A) else {
        return false;
    };
    if let Some(number) = message.get_mut(..2) {
        number.copy_from_slice(&query.id.to_be_bytes());
    }
    query.read(message).is_some()
}

fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

#[derive(Debug, PartialEq)]
enum Answer {
    Found(Found),
    Truncated,
    Failure(&'static str),
}

impl Answer {
    fn found(self) -> io::Result<Found> {
        match self {
            Self::Found(found) => Ok(found),
            Self::Truncated => Err(io::Error::other("the name server cut its answer")),
            Self::Failure(what) => Err(io::Error::other(format!("the name server: {what}"))),
        }
    }
}

/// Finds the addresses at the end of the aliases that begin at a name.
fn follow<'a>(packet: &Packet<'a>, mut owner: Name<'a>, family: TYPE) -> Answer {
    let answers = || packet.answers.iter().filter(|one| one.class == CLASS::IN);
    for _ in 0..=MAX_ALIASES {
        let of_owner = answers().filter(|one| one.name == owner);
        let addresses = of_owner.clone().filter_map(|one| match &one.rdata {
            RData::A(four) if family == TYPE::A => Some(Ipv4Addr::from(four.address).into()),
            RData::AAAA(six) if family == TYPE::AAAA => Some(Ipv6Addr::from(six.address).into()),
            _ => None,
        });
        let found: Found = addresses.take(MAX_ADDRESSES).collect();
        let alias = of_owner.clone().find_map(|one| match &one.rdata {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) if found.is_empty() => owner = alias,
            _ => return Answer::Found(found),
        }
    }
    Answer::Failure("too many aliases")
}

/// Asks one server.
async fn exchange(server: SocketAddr, query: &Query) -> io::Result<Found> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on the system drops what others send.
    socket.connect(server).await?;
    socket.send(&query.bytes).await?;
    let mut message = vec![0; MAX_DATAGRAM];
    loop {
        let count = socket.recv(&mut message).await?;
        match query.read(&message[..count]) {
            None => tracing::debug!(%server, "a datagram that is no answer is passed over"),
            Some(Answer::Truncated) => return exchange_on_stream(server, query).await,
            Some(answer) => return answer.found(),
        }
    }
}

/// Asks one server on a stream, where a message follows its length (RFC 7766).
async fn exchange_on_stream(server: SocketAddr, query: &Query) -> io::Result<Found> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
    let message = [&length.to_be_bytes()[..], &query.bytes].concat();
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    if length > MAX_MESSAGE {
        let text = format!("the name server's answer has {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    let answer = query.read(&message).ok_or(io::ErrorKind::InvalidData)?;
    answer.found()
}

#[cfg(test)]
mod tests;
