//! Rules arranged for matching: one hash table of names, which is asked once per label, and one of networks, which
//! is asked once per prefix length in use.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use crate::policy::{Clause, Host, HostName, Requests, Rule, name, pattern::Kind};

/// A rule in the index.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    reach: Reach,
    pub(super) port: Option<u16>,
    pub(super) requests: Option<Requests>,
    pub(super) rule: Rule,
}

/// How far below its key a rule fits; addresses have one key for each network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Exact,
    Child,
    Descendant,
}

impl Reach {
    /// Whether names fit that have so many labels more than the key.
    fn holds(self, depth: usize) -> bool {
        match self {
            Self::Exact => depth == 0,
            Self::Child => depth == 1,
            Self::Descendant => depth >= 1,
        }
    }
}

/// The rules of one list.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    names: HashMap<HostName, Vec<Entry>>,
    networks: HashMap<IpNet, Vec<Entry>>,
    /// The prefix lengths in use, longest first: of IPv4, of IPv6.
    prefixes: [Vec<u8>; 2],
    /// Whether any rule is about some requests only.
    has_requests: bool,
}

impl Index {
    /// Adds a rule. A wide one fits any depth where its pattern says one label.
    pub(super) fn insert(&mut self, clause: &Clause, rule: Rule, wide: bool) {
        let (entries, reach) = match &clause.pattern.kind {
            Kind::Exact(name) => (self.names.entry(name.clone()), Reach::Exact),
            Kind::Child(suffix) if wide => (self.names.entry(suffix.clone()), Reach::Descendant),
            Kind::Child(suffix) => (self.names.entry(suffix.clone()), Reach::Child),
            Kind::Descendant(suffix) => (self.names.entry(suffix.clone()), Reach::Descendant),
            Kind::Network(network) => return self.insert_network(*network, clause, rule),
        };
        self.has_requests |= clause.requests.is_some();
        add(entries.or_default(), entry(clause, rule, reach));
    }

    fn insert_network(&mut self, network: IpNet, clause: &Clause, rule: Rule) {
        let prefixes = &mut self.prefixes[family(network.addr())];
        if let Err(at) = prefixes.binary_search_by(|p| network.prefix_len().cmp(p)) {
            prefixes.insert(at, network.prefix_len());
        }
        let entries = self.networks.entry(network).or_default();
        add(entries, entry(clause, rule, Reach::Exact));
    }

    /// Finds a rule about everything that the host is sent, and whose port fits. One that names its port is
    /// preferred, then the most specific.
    pub(super) fn find(&self, host: &Host, fits: impl Fn(Option<u16>) -> bool) -> Option<&Entry> {
        let mut best: Option<&Entry> = None;
        for entry in self.entries(host) {
            if entry.requests.is_some() || !fits(entry.port) {
                continue;
            }
            if entry.port.is_some() {
                return Some(entry);
            }
            best = best.or(Some(entry));
        }
        best
    }

    /// Lists the rules about some of the host's requests, whose port fits, the most specific first.
    pub(super) fn requests(
        &self,
        host: &Host,
        fits: impl Fn(Option<u16>) -> bool,
    ) -> impl Iterator<Item = (&Entry, &Requests)> {
        let entries = self.has_requests.then(|| self.entries(host));
        entries
            .into_iter()
            .flatten()
            .filter(move |entry| fits(entry.port))
            .filter_map(|entry| Some((entry, entry.requests.as_ref()?)))
    }

    /// Tells whether any rule is about the host, on whatever port.
    pub(super) fn knows(&self, host: &Host) -> Option<&Entry> {
        self.entries(host).next()
    }

    fn entries(&self, host: &Host) -> impl Iterator<Item = &Entry> {
        let (name, address) = match host {
            Host::Name(name) => (Some(self.for_name(name)), None),
            Host::Address(address) => (None, Some(self.for_address(address.to_canonical()))),
        };
        let name = name.into_iter().flatten();
        name.chain(address.into_iter().flatten())
    }

    fn for_name(&self, name: &HostName) -> impl Iterator<Item = &Entry> {
        let suffixes = std::iter::successors(Some(name.as_str()), |name| name::parent(name));
        suffixes.enumerate().flat_map(|(depth, suffix)| {
            let entries = self.names.get(suffix).map_or(&[][..], Vec::as_slice);
            entries.iter().filter(move |entry| entry.reach.holds(depth))
        })
    }

    fn for_address(&self, address: IpAddr) -> impl Iterator<Item = &Entry> {
        self.prefixes[family(address)]
            .iter()
            .filter_map(move |prefix| IpNet::new(address, *prefix).ok())
            .filter_map(|network| self.networks.get(&network.trunc()))
            .flatten()
    }
}

fn entry(clause: &Clause, rule: Rule, reach: Reach) -> Entry {
    Entry {
        reach,
        port: clause.pattern.port,
        requests: clause.requests.clone(),
        rule,
    }
}

/// Keeps the nearer reach first. Of rules that decide the same, the first one is the one that is named.
fn add(entries: &mut Vec<Entry>, new: Entry) {
    let same = |old: &Entry| {
        old.reach == new.reach && old.port == new.port && old.requests == new.requests
    };
    if !entries.iter().any(same) {
        let at = entries.partition_point(|old| old.reach <= new.reach);
        entries.insert(at, new);
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}
