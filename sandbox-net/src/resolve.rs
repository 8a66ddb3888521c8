//! Names to addresses: looked up once, only after the policy allowed the name.
//!
//! A resolver gets a [`HostName`], which is never an address in any spelling, so that no resolver library can
//! read one into it (`127.1`, `0x7f000001`). All of its answers are judged, and a judged address is dialled; the
//! name is not looked up again for that connection, so an answer that changes (DNS rebinding) changes nothing.
//!
//! [`SystemResolver`] asks the operating system for the name as an absolute one: search domains do not apply,
//! and on common systems neither does the hosts file. Lookups run on the blocking pool and cannot be cancelled,
//! so their number is bounded, and one that outlives its time-out keeps its place until the system gives up.
//! `DnsResolver` (feature `dns`) asks name servers that are named to it.

#[cfg(feature = "dns")]
mod dns;
mod lookups;

use std::{
    collections::HashMap,
    fmt::Debug,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
#[cfg(feature = "dns")]
pub use dns::DnsResolver;
pub(crate) use lookups::Lookups;
use tokio::sync::Semaphore;

use crate::{
    Error,
    policy::{Candidate, Host, HostName, Target},
};

/// The most addresses of one answer that are looked at. Large sites publish a dozen.
const MAX_ADDRESSES: usize = 32;

/// Looks names up.
#[async_trait]
pub trait Resolver: Debug + Send + Sync + 'static {
    /// Returns the addresses of a name in the order to try them, empty if it has none.
    ///
    /// Called only for names that the policy allowed. Dropping the future abandons the lookup.
    ///
    /// # Errors
    ///
    /// What kept the answer from being learned; the connection is then denied.
    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Error>;

    /// Tells whether an address is this host's own; not for embedders to change.
    #[doc(hidden)]
    fn is_own(&self, address: IpAddr) -> bool {
        is_own(address)
    }
}

/// How long the proxy remembers which addresses are the host's own: asking takes several system calls, and a
/// busy client asks for the same few thousands of times a second. An address that the host got counts after this.
const OWN_FOR: Duration = Duration::from_millis(200);
/// How many are remembered.
const OWN_MOST: usize = 256;

/// A resolver that remembers for a moment which addresses are the host's own.
#[derive(Debug)]
pub(crate) struct Remembering {
    resolver: Arc<dyn Resolver>,
    own: Mutex<HashMap<IpAddr, (bool, Instant)>>,
}

impl Remembering {
    pub(crate) fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self {
            resolver,
            own: Mutex::default(),
        }
    }
}

#[async_trait]
impl Resolver for Remembering {
    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Error> {
        self.resolver.resolve(name).await
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let now = Instant::now();
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((is_own, since)) = own.get(&address)
            && now.duration_since(*since) < OWN_FOR
        {
            return *is_own;
        }
        let is_own = self.resolver.is_own(address);
        if own.len() >= OWN_MOST {
            own.clear();
        }
        own.insert(address, (is_own, now));
        is_own
    }
}

/// The operating system's resolver.
#[derive(Debug, Clone)]
pub struct SystemResolver {
    timeout: Duration,
    places: Arc<Semaphore>,
}

impl Default for SystemResolver {
    /// 5 seconds per lookup (the default of `resolv.conf` for one try), 32 at once (the blocking pool of tokio
    /// has 512 threads for everybody).
    fn default() -> Self {
        Self::new(Duration::from_secs(5), 32)
    }
}

impl SystemResolver {
    /// A resolver with a bound on the time of one lookup (waiting for a place included) and on the lookups that
    /// run at once.
    pub fn new(timeout: Duration, lookups: usize) -> Self {
        Self {
            timeout,
            places: Arc::new(Semaphore::new(lookups)),
        }
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Error> {
        let failed = |source| Error::io(format!("look up `{name}`"), source);
        let lookup = async {
            let places = Arc::clone(&self.places);
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            // The last dot makes the name absolute.
            let absolute = format!("{name}.");
            let blocking = move || {
                let found = (absolute.as_str(), 0).to_socket_addrs();
                drop(place);
                found.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>())
            };
            tokio::task::spawn_blocking(blocking)
                .await
                .map_err(io::Error::other)?
        };
        match tokio::time::timeout(self.timeout, lookup).await {
            Ok(found) => found.map_err(failed),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// A table of names, for tests and for sandboxes whose world is known.
#[derive(Debug, Clone, Default)]
pub struct FixedResolver {
    names: HashMap<HostName, Vec<IpAddr>>,
}

impl FixedResolver {
    /// An empty table: no name has an address.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a name with its addresses.
    #[must_use]
    pub fn with(mut self, name: HostName, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.names.entry(name).or_default().extend(addresses);
        self
    }
}

#[async_trait]
impl Resolver for FixedResolver {
    async fn resolve(&self, name: &HostName) -> Result<Vec<IpAddr>, Error> {
        Ok(self.names.get(name).cloned().unwrap_or_default())
    }
}

/// Learns the addresses of a target and which of them are this host's own. A literal address is its own answer.
pub(crate) async fn candidates(
    resolver: &dyn Resolver,
    target: &Target,
) -> Result<Vec<Candidate>, Error> {
    let mut addresses = match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => resolver.resolve(name).await?,
    };
    addresses.truncate(MAX_ADDRESSES);
    let mut candidates: Vec<Candidate> = Vec::with_capacity(addresses.len());
    for address in addresses {
        if candidates.iter().all(|known| known.address != address) {
            candidates.push(Candidate::new(address, resolver.is_own(address)));
        }
    }
    Ok(candidates)
}

/// Tells whether an address is this host's own, by asking the system for a socket that is bound to it: only an
/// own address can be bound to. Interfaces need not be listed so, and an address that came a moment ago counts.
///
/// Where the question cannot be asked (no descriptors left, no IPv6) the address counts as own, which denies it.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    match UdpSocket::bind(SocketAddr::new(address, 0)) {
        Ok(_) => !binds_to_anything(address) || is_its_own_source(address),
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// Whether the host lets sockets be bound to addresses that it does not have (`ip_nonlocal_bind` of Linux). Tried
/// with documentation addresses, which no host has (RFC 5737, RFC 3849).
fn binds_to_anything(address: IpAddr) -> bool {
    let nobodys: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    UdpSocket::bind(SocketAddr::new(nobodys, 0)).is_ok()
}

/// Whether the system would reach the address from that address itself. Nothing is sent: connecting a datagram
/// socket only chooses its source. Secondary addresses of an interface are missed.
fn is_its_own_source(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind(SocketAddr::new(any, 0))
        .and_then(|socket| {
            // The port is never sent to; 9 is "discard".
            socket.connect(SocketAddr::new(address, 9))?;
            socket.local_addr()
        })
        .is_ok_and(|local| local.ip() == address)
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    //! The ways in for fuzz targets.

    /// Reads a name server's message as an answer about a name, which it repeats with this number; whether it is one.
    #[cfg(feature = "dns")]
    pub fn answer(name: &crate::policy::HostName, message: &mut [u8]) -> bool {
        super::dns::read_for_fuzzing(name, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e28_the_hosts_own_addresses_are_recognized() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(is_its_own_source(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own("8.8.8.8".parse().unwrap()));
        assert!(!is_its_own_source("8.8.8.8".parse().unwrap()));
    }

    /// Says what is the host's own by a switch, and counts the questions.
    #[derive(Debug, Default)]
    struct Switched {
        own: std::sync::atomic::AtomicBool,
        asked: std::sync::atomic::AtomicUsize,
    }

    #[async_trait]
    impl Resolver for Switched {
        async fn resolve(&self, _: &HostName) -> Result<Vec<IpAddr>, Error> {
            Ok(Vec::new())
        }

        fn is_own(&self, _: IpAddr) -> bool {
            self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.own.load(std::sync::atomic::Ordering::SeqCst)
        }
    }

    #[test]
    fn e28_an_address_that_the_host_got_is_its_own_a_moment_later() {
        let switched = Arc::new(Switched::default());
        let remembering = Remembering::new(Arc::clone(&switched) as _);
        let address = "8.8.8.8".parse().unwrap();
        assert!(!remembering.is_own(address));
        assert!(!remembering.is_own(address));
        assert_eq!(switched.asked.load(std::sync::atomic::Ordering::SeqCst), 1);
        switched
            .own
            .store(true, std::sync::atomic::Ordering::SeqCst);
        std::thread::sleep(OWN_FOR);
        assert!(remembering.is_own(address));
    }

    #[tokio::test(start_paused = true)]
    async fn e51_lookups_beyond_the_bound_wait_and_time_out() {
        let resolver = SystemResolver::new(Duration::from_secs(5), 0);
        let name = "example.com".parse().unwrap();
        let error = resolver.resolve(&name).await.unwrap_err();
        assert_eq!(error.kind(), sandbox_base::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_literal_address_is_never_looked_up() {
        let target = Target::parse("8.8.8.8:443").unwrap();
        let found = candidates(&FixedResolver::new(), &target).await.unwrap();
        assert_eq!(found.len(), 1);
    }

    #[tokio::test]
    async fn e35_a_huge_answer_is_cut_and_doubles_are_dropped() {
        let name: HostName = "example.com".parse().unwrap();
        let many = (0..200u8).map(|n| IpAddr::from([8, 8, 8, n / 2]));
        let resolver = FixedResolver::new().with(name, many);
        let target = Target::parse("example.com:443").unwrap();
        let found = candidates(&resolver, &target).await.unwrap();
        assert_eq!(found.len(), MAX_ADDRESSES / 2);
    }
}
