//! Rules arranged for matching: one hash table of names, which is asked once per label, and one of networks, which
//! is asked once per prefix length in use. All lists of all layers stand in the same tables, so that a decision
//! walks a name once, however many there are.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::policy::{
    Clause, Host, HostName, Layer, Requests, Rule, name, pattern::Kind, rules::List,
};

/// A rule in the index.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    reach: Reach,
    list: List,
    port: Option<u16>,
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

/// The rules about one host, on whatever port, the most specific first. Rarely more than a few.
pub(super) struct Found<'a>(SmallVec<[&'a Entry; 8]>);

impl<'a> Found<'a> {
    /// Lists the rules of one list of one layer.
    pub(super) fn of(&self, layer: Option<Layer>, list: List) -> impl Iterator<Item = &'a Entry> {
        let entries = self.0.iter().copied();
        entries.filter(move |entry| entry.list == list && entry.rule.layer() == layer)
    }

    /// Whether there are none at all.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Entry {
    /// Tells whether the port of a target fits; a rule without one fits in a block always, else on the web's ports.
    pub(super) fn fits(&self, port: u16) -> bool {
        match self.port {
            Some(named) => named == port,
            None => self.list == List::Block || super::judge::WEB_PORTS.contains(&port),
        }
    }

    /// Tells whether it names its port.
    pub(super) fn names_port(&self) -> bool {
        self.port.is_some()
    }
}

/// The rules of one set, or of all layers.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    names: HashMap<HostName, Vec<Entry>>,
    networks: HashMap<IpNet, Vec<Entry>>,
    /// The prefix lengths in use, longest first: of IPv4, of IPv6.
    prefixes: [Vec<u8>; 2],
    /// The most labels of a name in the table: longer suffixes are not looked for.
    labels: usize,
}

impl Index {
    /// Adds a rule. In a block `*.` fits any depth.
    pub(super) fn insert(&mut self, list: List, clause: &Clause, rule: Rule) {
        let (key, reach) = match &clause.pattern.kind {
            Kind::Exact(name) => (name, Reach::Exact),
            Kind::Child(suffix) if list == List::Block => (suffix, Reach::Descendant),
            Kind::Child(suffix) => (suffix, Reach::Child),
            Kind::Descendant(suffix) => (suffix, Reach::Descendant),
            Kind::Network(network) => return self.insert_network(*network, list, (clause, rule)),
        };
        self.labels = self.labels.max(labels(key.as_str()));
        let entries = self.names.entry(key.clone()).or_default();
        add(entries, entry(list, reach, (clause, rule)));
    }

    fn insert_network(&mut self, network: IpNet, list: List, rule: (&Clause, Rule)) {
        let prefixes = &mut self.prefixes[family(network.addr())];
        if let Err(at) = prefixes.binary_search_by(|p| network.prefix_len().cmp(p)) {
            prefixes.insert(at, network.prefix_len());
        }
        let entries = self.networks.entry(network).or_default();
        add(entries, entry(list, Reach::Exact, rule));
    }

    /// Finds all rules about a host.
    pub(super) fn find(&self, host: &Host) -> Found<'_> {
        match host {
            Host::Name(name) => self.find_name(name),
            Host::Address(address) => self.find_address(address.to_canonical()),
        }
    }

    fn find_name(&self, name: &HostName) -> Found<'_> {
        let mut found = SmallVec::new();
        if self.names.is_empty() {
            return Found(found);
        }
        let beyond = labels(name.as_str()).saturating_sub(self.labels);
        let suffixes = std::iter::successors(Some(name.as_str()), |name| name::parent(name));
        for (depth, suffix) in suffixes.enumerate().skip(beyond) {
            if let Some(entries) = self.names.get(suffix) {
                found.extend(entries.iter().filter(|entry| entry.reach.holds(depth)));
            }
        }
        Found(found)
    }

    fn find_address(&self, address: IpAddr) -> Found<'_> {
        let prefixes = &self.prefixes[family(address)];
        let networks = prefixes
            .iter()
            .filter_map(|prefix| IpNet::new(address, *prefix).ok());
        let entries = networks.filter_map(|network| self.networks.get(&network.trunc()));
        Found(entries.flatten().collect())
    }
}

fn labels(name: &str) -> usize {
    name.bytes().filter(|byte| *byte == b'.').count() + 1
}

fn entry(list: List, reach: Reach, (clause, rule): (&Clause, Rule)) -> Entry {
    Entry {
        reach,
        list,
        port: clause.pattern.port,
        requests: clause.requests.clone(),
        rule,
    }
}

/// Keeps the nearer reach first. Of rules that decide the same, the first one is the one that is named.
fn add(entries: &mut Vec<Entry>, new: Entry) {
    let same = |old: &Entry| {
        (old.reach, old.list, old.port) == (new.reach, new.list, new.port)
            && old.rule.layer() == new.rule.layer()
            && old.requests == new.requests
    };
    if !entries.iter().any(same) {
        let at = entries.partition_point(|old| old.reach <= new.reach);
        entries.insert(at, new);
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}
