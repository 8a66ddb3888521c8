//! The address floor: what is refused after resolution, for allowed names too, in both modes.
//!
//! The blocks are those of the [IANA IPv4] and [IPv6 special-purpose address registries] with multicast and
//! reserved space, the metadata services of clouds, and this host's own addresses. Of IPv6 only `2000::/3` is
//! global unicast, so all else is refused whether a registry names it or not. IPv4 inside IPv6 is unwrapped
//! first: a mapped address is judged and dialled as its IPv4 address, a NAT64 one (`64:ff9b::/96`) is judged as
//! its IPv4 address and dialled as it is, and 6to4, Teredo, IPv4-compatible and ISATAP forms are refused
//! whatever they carry, since nothing today needs them. A network's own NAT64 prefix inside global unicast
//! space cannot be told from other addresses; block it by rule.
//!
//! A block is opened by an [`Opening`] alone: a network with a port, written by the embedder. It reaches an
//! address only if it lies *within the most specific block* that holds the address. So `0.0.0.0/0:443` opens
//! nothing, `10.0.0.0/8:443` opens that block, `169.254.0.0/16:80` leaves the metadata service shut, and
//! `169.254.169.254/32:80` opens it.
//!
//! [`Floor::admit`] is the only maker of [`Allowed`], and the dialer takes nothing else: an address that was
//! not judged cannot be dialled, by type. Where an upstream proxy looks names up itself, [`Floor::admit_name`] makes
//! the key instead, for names that the whole world knows.
//!
//! [IANA IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry
//! [IPv6 special-purpose address registries]: https://www.iana.org/assignments/iana-ipv6-special-registry

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::policy::HostName;

/// An address that the floor let through, or a name for an upstream proxy, and the only key to the dialer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allowed<T>(T);

impl Allowed<SocketAddr> {
    /// Returns the address to dial.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

impl Allowed<HostName> {
    /// Returns the name to ask an upstream proxy for.
    pub(crate) fn name(&self) -> &HostName {
        &self.0
    }
}

/// An address that a name resolved to (or that was asked for literally), with what the host knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Candidate {
    /// The address.
    pub address: IpAddr,
    /// Whether it belongs to this host: an interface's address, or one routed to itself. Such an address leads
    /// to the host's own services even when it is a public one.
    pub own: bool,
}

impl Candidate {
    /// Names an address and whether it is this host's own.
    pub fn new(address: IpAddr, own: bool) -> Self {
        Self { address, own }
    }
}

/// A network with a port that an embedder opened by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opening {
    /// The network; it must lie within one special-purpose block to have any effect.
    pub network: IpNet,
    /// The one port that is opened.
    pub port: u16,
}

impl Opening {
    /// Opens one port of a network.
    pub fn new(network: IpNet, port: u16) -> Self {
        Self { network, port }
    }
}

/// The floor with its openings.
#[derive(Debug, Clone, Default)]
pub struct Floor {
    openings: Vec<Opening>,
}

impl Floor {
    /// A floor without openings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an opening.
    #[must_use]
    pub fn with_opening(mut self, opening: Opening) -> Self {
        self.openings.push(opening);
        self
    }

    /// Adds an opening, if there is one.
    pub(super) fn open(&mut self, opening: Option<Opening>) {
        self.openings.extend(opening);
    }

    /// Admits an address for dialling, or says what kind of address it is that may not be.
    ///
    /// # Errors
    ///
    /// The class of the block that holds the address.
    pub fn admit(&self, candidate: Candidate, port: u16) -> Result<Allowed<SocketAddr>, Class> {
        let address = candidate.address.to_canonical();
        let allowed = Ok(Allowed(SocketAddr::new(address, port)));
        match block_of(address, candidate.own) {
            None => allowed,
            Some(block) if block.openable && self.opens(&block, address, port) => allowed,
            Some(block) => Err(block.class),
        }
    }

    /// Admits a name for an upstream proxy that looks it up itself: one below a public suffix that is registered with
    /// IANA. All others (`wiki`, `db.corp`, `x.internal`, `printer.local`, `1.0.0.10.in-addr.arpa`) mean what somebody's
    /// own network says, and that may be anything. `None` for them.
    pub fn admit_name(&self, name: &HostName) -> Option<Allowed<HostName>> {
        let suffix = psl::suffix(name.as_str().as_bytes())?;
        let suffix_is_arpa = suffix.as_bytes().rsplit(|byte| *byte == b'.').next() == Some(b"arpa");
        let is_public = suffix.is_known() && !suffix_is_arpa && suffix != name.as_str();
        (is_public && !name.is_localhost()).then(|| Allowed(name.clone()))
    }

    fn opens(&self, block: &Block, address: IpAddr, port: u16) -> bool {
        self.openings.iter().any(|opening| {
            opening.port == port
                && opening.network.contains(&address)
                && block.network.contains(&opening.network)
        })
    }
}

/// Tells which class of refused addresses an address belongs to, `None` for a public one.
///
/// Openings and the host's own addresses do not count here.
pub fn classify(address: IpAddr) -> Option<Class> {
    block_of(address.to_canonical(), false).map(|block| block.class)
}

/// Tells whether a network lies wholly in refused space, so that a rule for it needs a port.
pub(super) fn is_refused_network(network: IpNet) -> bool {
    blocks().any(|block| block.network.contains(&network))
        || matches!(network, IpNet::V6(inner) if {
            inner.prefix_len() >= GLOBAL_UNICAST.prefix_len() && !GLOBAL_UNICAST.contains(&inner)
        })
}

/// Returns the IPv4 address that an IPv6 address stands for, if it is judged as one.
pub(super) fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let [.., a, b, c, d] = address.octets();
    address
        .to_ipv4_mapped()
        .or_else(|| NAT64.contains(&address).then(|| Ipv4Addr::new(a, b, c, d)))
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Class {
    /// `0.0.0.0/8` and `::`: this host on this network (RFC 791); connects to loopback on many systems.
    Unspecified,
    /// `127.0.0.0/8`, `::1` (RFC 1122, RFC 4291).
    Loopback,
    /// Private networks (RFC 1918), unique local (RFC 4193), site local (RFC 3879).
    Private,
    /// Shared address space of carriers (RFC 6598).
    Shared,
    /// Link local (RFC 3927, RFC 4291).
    LinkLocal,
    /// A cloud's metadata service, which hands out credentials.
    Metadata,
    /// Documentation and benchmarking (RFC 5737, RFC 3849, RFC 9637, RFC 2544, RFC 5180).
    Documentation,
    /// Multicast (RFC 5771, RFC 4291).
    Multicast,
    /// Protocol assignments and reserved space (RFC 6890, RFC 1112, all of IPv6 that is not global unicast).
    Reserved,
    /// IPv4 carried inside IPv6 by a transition mechanism, or a relay for one.
    Transition,
    /// An address of this host itself.
    Own,
}

impl Class {
    /// Returns the class as a lower-case word, as it appears in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "shared",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Documentation => "documentation",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Transition => "transition",
            Self::Own => "own",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One block of refused space.
#[derive(Debug, Clone, Copy)]
struct Block {
    network: IpNet,
    class: Class,
    openable: bool,
}

impl Block {
    const fn closed(mut self) -> Self {
        self.openable = false;
        self
    }
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8, class: Class) -> Block {
    let network = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix));
    Block {
        network,
        class,
        openable: true,
    }
}

const fn v6(s: [u16; 8], prefix: u8, class: Class) -> Block {
    let address = Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
    let network = IpNet::V6(Ipv6Net::new_assert(address, prefix));
    Block {
        network,
        class,
        openable: true,
    }
}

/// RFC 4291, 2.4: the only space that IANA has given out as global unicast.
const GLOBAL_UNICAST: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// RFC 6052, 2.1: the well-known prefix.
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

const V4: &[Block] = &[
    v4([0, 0, 0, 0], 8, Class::Unspecified).closed(), // RFC 791
    v4([10, 0, 0, 0], 8, Class::Private),             // RFC 1918
    v4([100, 64, 0, 0], 10, Class::Shared),           // RFC 6598
    v4([100, 100, 100, 200], 32, Class::Metadata),    // Alibaba Cloud
    v4([127, 0, 0, 0], 8, Class::Loopback),           // RFC 1122
    v4([168, 63, 129, 16], 32, Class::Metadata),      // Azure "wire server", a public address
    v4([169, 254, 0, 0], 16, Class::LinkLocal),       // RFC 3927
    v4([169, 254, 169, 254], 32, Class::Metadata),    // AWS, Google, Azure, OpenStack and others
    v4([169, 254, 169, 253], 32, Class::Metadata),    // AWS name server
    v4([169, 254, 170, 2], 32, Class::Metadata),      // AWS container credentials
    v4([169, 254, 170, 23], 32, Class::Metadata),     // AWS pod identity
    v4([172, 16, 0, 0], 12, Class::Private),          // RFC 1918
    v4([192, 0, 0, 0], 24, Class::Reserved),          // RFC 6890
    v4([192, 0, 0, 192], 32, Class::Metadata),        // Oracle Cloud
    v4([192, 0, 2, 0], 24, Class::Documentation),     // RFC 5737
    v4([192, 31, 196, 0], 24, Class::Reserved),       // RFC 7535, AS112
    v4([192, 52, 193, 0], 24, Class::Transition),     // RFC 7450, AMT
    v4([192, 88, 99, 0], 24, Class::Transition),      // RFC 7526, 6to4 relays
    v4([192, 168, 0, 0], 16, Class::Private),         // RFC 1918
    v4([192, 175, 48, 0], 24, Class::Reserved),       // RFC 7534, AS112
    v4([198, 18, 0, 0], 15, Class::Documentation),    // RFC 2544
    v4([198, 51, 100, 0], 24, Class::Documentation),  // RFC 5737
    v4([203, 0, 113, 0], 24, Class::Documentation),   // RFC 5737
    v4([224, 0, 0, 0], 4, Class::Multicast).closed(), // RFC 5771
    v4([240, 0, 0, 0], 4, Class::Reserved),           // RFC 1112
    v4([255, 255, 255, 255], 32, Class::Multicast).closed(), // RFC 8190, limited broadcast
];

const V6: &[Block] = &[
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, Class::Transition).closed(), // RFC 4291, IPv4-compatible
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, Class::Unspecified).closed(), // RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, Class::Loopback),           // RFC 4291
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Class::Transition).closed(), // RFC 8215, local NAT64
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Class::Reserved),        // RFC 6666, discard
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Class::Reserved),        // RFC 9780, dummy
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Class::Reserved),       // RFC 2928
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Class::Transition).closed(), // RFC 4380, Teredo
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Class::Documentation), // RFC 3849
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Class::Transition).closed(), // RFC 3056, 6to4
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, Class::Reserved), // RFC 7534, AS112
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Class::Documentation),  // RFC 9637
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Class::Reserved),       // RFC 9602, segment routing
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Class::Private),         // RFC 4193
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, Class::Metadata), // AWS
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253], 128, Class::Metadata), // AWS name server
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128, Class::Metadata), // AWS pod identity
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, Class::Metadata), // Google Cloud
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Class::LinkLocal),      // RFC 4291
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Class::Private),        // RFC 3879
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Class::Multicast).closed(), // RFC 4291
];

fn blocks() -> impl Iterator<Item = &'static Block> {
    V4.iter().chain(V6)
}

/// Returns the most specific block that holds an address in canonical form.
fn block_of(address: IpAddr, own: bool) -> Option<Block> {
    match table_block(address) {
        Some(block) if !own || !block.openable || block.class == Class::Loopback => Some(block),
        None if !own => None,
        _ => Some(Block {
            network: address.into(),
            class: Class::Own,
            openable: true,
        }),
    }
}

fn table_block(address: IpAddr) -> Option<Block> {
    if let Some(inner) = embedded(address) {
        // Not openable in this form: a rule for the IPv4 network reads as one for IPv4 destinations.
        return table_block(inner.into()).map(Block::closed);
    }
    let found = blocks()
        .filter(|block| block.network.contains(&address))
        .max_by_key(|block| block.network.prefix_len())
        .copied();
    match address {
        IpAddr::V6(address) if found.is_none() => unlisted(address),
        _ => found,
    }
}

/// Judges an IPv6 address that no block of the table holds.
fn unlisted(address: Ipv6Addr) -> Option<Block> {
    let network = IpNet::V6(Ipv6Net::from(address));
    let class = if !GLOBAL_UNICAST.contains(&address) {
        Class::Reserved
    } else if is_isatap(address) {
        Class::Transition
    } else {
        return None;
    };
    Some(Block {
        network,
        class,
        openable: false,
    })
}

/// RFC 5214, 6.1: interface identifier `[0|2]00:5efe` and an IPv4 address.
fn is_isatap(address: Ipv6Addr) -> bool {
    let s = address.segments();
    s[5] == 0x5efe && matches!(s[4], 0 | 0x200)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn class(text: &str) -> Option<Class> {
        classify(text.parse().unwrap())
    }

    fn admit(floor: &Floor, text: &str, port: u16) -> Result<SocketAddr, Class> {
        let candidate = Candidate::new(text.parse().unwrap(), false);
        floor.admit(candidate, port).map(Allowed::address)
    }

    fn opening(network: &str, port: u16) -> Floor {
        Floor::new().with_opening(Opening::new(network.parse().unwrap(), port))
    }

    /// First and last address of each block, and the neighbours outside.
    #[test]
    fn e18_edges_of_private_blocks() {
        for (inside, outside) in [
            (
                ["10.0.0.0", "10.255.255.255"],
                ["9.255.255.255", "11.0.0.0"],
            ),
            (
                ["100.64.0.0", "100.127.255.255"],
                ["100.63.255.255", "100.128.0.0"],
            ),
            (
                ["127.0.0.0", "127.255.255.255"],
                ["126.255.255.255", "128.0.0.0"],
            ),
            (
                ["169.254.0.0", "169.254.255.255"],
                ["169.253.255.255", "169.255.0.0"],
            ),
            (
                ["172.16.0.0", "172.31.255.255"],
                ["172.15.255.255", "172.32.0.0"],
            ),
            (
                ["192.0.0.0", "192.0.0.255"],
                ["191.255.255.255", "192.0.1.0"],
            ),
            (["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
            (
                ["192.88.99.0", "192.88.99.255"],
                ["192.88.98.255", "192.88.100.0"],
            ),
            (
                ["192.168.0.0", "192.168.255.255"],
                ["192.167.255.255", "192.169.0.0"],
            ),
            (
                ["198.18.0.0", "198.19.255.255"],
                ["198.17.255.255", "198.20.0.0"],
            ),
            (
                ["198.51.100.0", "198.51.100.255"],
                ["198.51.99.255", "198.51.101.0"],
            ),
            (
                ["203.0.113.0", "203.0.113.255"],
                ["203.0.112.255", "203.0.114.0"],
            ),
            (
                ["224.0.0.0", "255.255.255.255"],
                ["223.255.255.255", "1.0.0.0"],
            ),
            (
                ["2001:db8::", "2001:db8:ffff::"],
                ["2001:db7:ffff::", "2001:db9::"],
            ),
            (["2001::", "2001:1ff:ffff::"], ["2000:ffff::", "2001:200::"]),
            (["2002::", "2002:ffff::"], ["2001:ffff::", "2003::"]),
            (
                ["3fff::", "3fff:fff:ffff::"],
                ["3ffe:ffff::", "3fff:1000::"],
            ),
            (["4000::", "ffff::"], ["3fff:1000::", "2a00::"]),
            (["fc00::", "fdff::"], ["2600::", "2606::"]),
            (["::1", "1fff::"], ["2003::", "2400::"]),
        ] {
            for address in inside {
                assert!(class(address).is_some(), "{address} is refused");
            }
            for address in outside {
                assert_eq!(class(address), None, "{address} is public");
            }
        }
    }

    #[test]
    fn e21_mapped_is_judged_and_dialled_as_ipv4() {
        assert_eq!(class("::ffff:10.0.0.1"), Some(Class::Private));
        assert_eq!(class("::ffff:127.0.0.1"), Some(Class::Loopback));
        let dialled = admit(&Floor::new(), "::ffff:8.8.8.8", 443).unwrap();
        assert_eq!(dialled, "8.8.8.8:443".parse().unwrap());
    }

    #[test]
    fn e22_compatible_is_refused() {
        for address in ["::8.8.8.8", "::127.0.0.1", "::2"] {
            assert_eq!(class(address), Some(Class::Transition), "{address}");
        }
    }

    #[test]
    fn e23_nat64_is_judged_by_what_it_carries() {
        assert_eq!(class("64:ff9b::8.8.8.8"), None);
        assert_eq!(class("64:ff9b::10.0.0.1"), Some(Class::Private));
        assert_eq!(class("64:ff9b::169.254.169.254"), Some(Class::Metadata));
        let dialled = admit(&Floor::new(), "64:ff9b::8.8.8.8", 443).unwrap();
        assert!(dialled.is_ipv6());
    }

    #[test]
    fn e24_local_nat64_is_refused() {
        assert_eq!(class("64:ff9b:1::8.8.8.8"), Some(Class::Transition));
    }

    #[test]
    fn e25_transition_forms_are_refused() {
        for address in [
            "2002:808:808::1",
            "2001:0:808:808::1",
            "2600::5efe:8.8.8.8",
            "2600::200:5efe:a00:1",
        ] {
            assert_eq!(class(address), Some(Class::Transition), "{address}");
        }
        assert_eq!(class("2600::5eff:8.8.8.8"), None);
    }

    #[test]
    fn e27_unspecified_is_refused_and_cannot_be_opened() {
        for (address, network) in [("0.0.0.0", "0.0.0.0/32"), ("::", "::/128")] {
            assert_eq!(
                admit(&opening(network, 80), address, 80),
                Err(Class::Unspecified)
            );
        }
    }

    #[test]
    fn e28_own_addresses_are_refused_unless_named_one_by_one() {
        let own = Candidate::new("9.9.9.9".parse().unwrap(), true);
        assert_eq!(Floor::new().admit(own, 80), Err(Class::Own));
        assert_eq!(opening("9.9.9.0/24", 80).admit(own, 80), Err(Class::Own));
        assert!(opening("9.9.9.9/32", 80).admit(own, 80).is_ok());
        let lan = Candidate::new("192.168.1.5".parse().unwrap(), true);
        assert_eq!(
            opening("192.168.1.0/24", 80).admit(lan, 80),
            Err(Class::Own)
        );
        let own_multicast = Candidate::new("224.0.0.1".parse().unwrap(), true);
        assert!(
            opening("224.0.0.1/32", 80)
                .admit(own_multicast, 80)
                .is_err()
        );
    }

    #[test]
    fn e29_metadata_needs_its_own_address_opened() {
        for address in [
            "169.254.169.254",
            "168.63.129.16",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert_eq!(class(address), Some(Class::Metadata), "{address}");
        }
        let link_local = opening("169.254.0.0/16", 80);
        assert!(admit(&link_local, "169.254.1.1", 80).is_ok());
        assert_eq!(
            admit(&link_local, "169.254.169.254", 80),
            Err(Class::Metadata)
        );
        assert!(admit(&opening("169.254.169.254/32", 80), "169.254.169.254", 80).is_ok());
    }

    #[test]
    fn e34_a_name_that_only_some_network_knows_is_not_admitted() {
        let admit = |text: &str| Floor::new().admit_name(&text.parse().unwrap());
        for name in ["example.com", "a.b.example.co.uk", "me.github.io"] {
            assert_eq!(admit(name).unwrap().name().as_str(), name);
        }
        for name in [
            "wiki",
            "db.corp",
            "metadata.google.internal",
            "printer.local",
            "router.home.arpa",
            "1.0.0.10.in-addr.arpa",
            "x.localhost",
            "router.lan",
            "com",
            "www.test",
        ] {
            assert!(admit(name).is_none(), "{name}");
        }
    }

    #[test]
    fn an_opening_holds_for_its_port_and_its_block_only() {
        let floor = opening("10.1.0.0/16", 5432);
        assert!(admit(&floor, "10.1.2.3", 5432).is_ok());
        assert_eq!(admit(&floor, "10.1.2.3", 5433), Err(Class::Private));
        assert_eq!(admit(&floor, "10.2.2.3", 5432), Err(Class::Private));
        assert_eq!(
            admit(&floor, "64:ff9b::10.1.2.3", 5432),
            Err(Class::Private)
        );
        assert!(admit(&floor, "::ffff:10.1.2.3", 5432).is_ok());
        for everything in ["0.0.0.0/0", "8.0.0.0/5"] {
            assert_eq!(
                admit(&opening(everything, 80), "10.0.0.1", 80),
                Err(Class::Private)
            );
        }
        assert!(admit(&opening("::/0", 80), "::1", 80).is_err());
    }

    #[test]
    fn a_network_is_refused_space_only_if_all_of_it_is() {
        for (network, refused) in [
            ("10.0.0.0/8", true),
            ("10.1.0.0/16", true),
            ("0.0.0.0/0", false),
            ("8.8.8.0/24", false),
            ("fc00::/7", true),
            ("4000::/3", true),
            ("::/0", false),
            ("2000::/3", false),
        ] {
            assert_eq!(
                is_refused_network(network.parse().unwrap()),
                refused,
                "{network}"
            );
        }
    }

    proptest! {
        #![proptest_config(cases())]

        /// The standard library's own predicates, written by others, never call public what we do not.
        #[test]
        fn agrees_with_the_standard_library(bits: u32) {
            let address = Ipv4Addr::from(bits);
            if address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_broadcast() || address.is_documentation() || address.is_multicast()
                || address.is_unspecified()
            {
                prop_assert!(classify(address.into()).is_some());
            }
        }

        #[test]
        fn wrapping_never_opens_what_ipv4_refuses(bits: u32) {
            let inner = Ipv4Addr::from(bits);
            let v4 = classify(inner.into());
            prop_assert_eq!(classify(inner.to_ipv6_mapped().into()), v4);
            let [a, b, c, d] = inner.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
            prop_assert_eq!(classify(nat64.into()), v4);
            prop_assert!(classify(inner.to_ipv6_compatible().into()).is_some());
            let six_to_four = Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1);
            prop_assert!(classify(six_to_four.into()).is_some());
        }

        #[test]
        fn of_ipv6_only_global_unicast_is_public(bits: u128) {
            let address = Ipv6Addr::from(bits);
            if classify(address.into()).is_none() && embedded(address.into()).is_none() {
                prop_assert!(GLOBAL_UNICAST.contains(&address));
            }
        }
    }
}
