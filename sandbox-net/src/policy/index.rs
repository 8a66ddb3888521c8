//! Rules arranged for matching: hash tables by name, by parent and by ancestor, and one per prefix length.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use crate::policy::{Host, HostName, Pattern, Rule, name, pattern::Kind};

/// A rule that fits, with the port that it names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match<'a> {
    pub(super) rule: &'a Rule,
    pub(super) port: Option<u16>,
}

/// The rules of one list.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    exact: HashMap<HostName, Entries>,
    child: HashMap<HostName, Entries>,
    descendant: HashMap<HostName, Entries>,
    networks: HashMap<IpNet, Entries>,
    /// The prefix lengths in use, longest first: of IPv4, of IPv6.
    prefixes: [Vec<u8>; 2],
}

/// The rules under one key.
type Entries = Vec<(Option<u16>, Rule)>;

impl Index {
    /// Adds a rule.
    pub(super) fn insert(&mut self, pattern: &Pattern, rule: Rule) {
        let entries = match &pattern.kind {
            Kind::Exact(name) => self.exact.entry(name.clone()).or_default(),
            Kind::Child(suffix) => self.child.entry(suffix.clone()).or_default(),
            Kind::Descendant(suffix) => self.descendant.entry(suffix.clone()).or_default(),
            Kind::Network(network) => {
                let prefixes = &mut self.prefixes[family(network.addr())];
                if let Err(at) = prefixes.binary_search_by(|p| network.prefix_len().cmp(p)) {
                    prefixes.insert(at, network.prefix_len());
                }
                self.networks.entry(*network).or_default()
            }
        };
        // One rule of each port decides for all of them; the first one is the one that is named.
        if !entries.iter().any(|(port, _)| *port == pattern.port) {
            entries.push((pattern.port, rule));
        }
    }

    /// Finds a rule for the host whose port fits. One that names its port is preferred, then the most specific.
    pub(super) fn find(
        &self,
        host: &Host,
        fits: impl Fn(Option<u16>) -> bool,
    ) -> Option<Match<'_>> {
        let mut best = None;
        match host {
            Host::Name(name) => {
                for entries in self.for_name(name) {
                    prefer(&mut best, entries, &fits);
                }
            }
            Host::Address(address) => {
                for entries in self.for_address(address.to_canonical()) {
                    prefer(&mut best, entries, &fits);
                }
            }
        }
        best
    }

    fn for_name(&self, name: &HostName) -> impl Iterator<Item = &Entries> {
        let parent = name.parent();
        let ancestors = std::iter::successors(parent, |name| name::parent(name));
        let exact = self.exact.get(name.as_str());
        let child = parent.and_then(|parent| self.child.get(parent));
        let descendant = ancestors.filter_map(|ancestor| self.descendant.get(ancestor));
        exact.into_iter().chain(child).chain(descendant)
    }

    fn for_address(&self, address: IpAddr) -> impl Iterator<Item = &Entries> {
        self.prefixes[family(address)]
            .iter()
            .filter_map(move |prefix| IpNet::new(address, *prefix).ok())
            .filter_map(|network| self.networks.get(&network.trunc()))
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

fn prefer<'a>(
    best: &mut Option<Match<'a>>,
    entries: &'a Entries,
    fits: &impl Fn(Option<u16>) -> bool,
) {
    for (port, rule) in entries.iter().filter(|(port, _)| fits(*port)) {
        let better = best.is_none_or(|best| best.port.is_none() && port.is_some());
        if better {
            *best = Some(Match { rule, port: *port });
        }
    }
}
