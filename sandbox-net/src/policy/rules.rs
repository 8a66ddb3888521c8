//! Rules as data: a mode, a list of allows, a list of blocks, and a limit if there is one.
//!
//! A block always beats an allow. In [`Mode::Deny`] a target needs an allow; in [`Mode::Allow`] everything
//! public on ports 80 and 443 passes that no block names, and other ports need a rule with that port in both
//! modes. A limit is what a target has to be within, whatever allows it. Network rules fit addresses that are
//! asked for literally and those that an allowed name resolves to; they never cause a lookup by themselves. An
//! allow for a network with a port is also an [`Opening`] of the floor.
//!
//! A rule may be about some of a host's [`Requests`] only. Allows add up: one that names methods or paths narrows
//! none that does not. A host that is allowed by such rules alone, or of which such a rule blocks a part, is judged
//! request by request, inside TLS too.
//!
//! Matching costs a few hash lookups, one per label of the name or per prefix length in use, however many rules
//! there are.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    policy::{
        Clause, EgressPolicy, Facts, Floor, Opening, Requests, Rule, Verdict, floor,
        index::Index,
        judge::{self, Tier},
    },
};

/// What happens to a target that no rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// It is denied.
    #[default]
    Deny,
    /// It is allowed on ports 80 and 443, if its address is public.
    Allow,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}

/// The policy most embedders want.
///
/// ```
/// use sandbox_net::policy::{Carriage, EgressPolicy, Facts, RuleSet, Target};
///
/// let rules = RuleSet::deny().allow("*.example.com")?.block("evil.example.com")?;
/// let target = Target::parse("evil.example.com:443")?;
/// let verdict = rules.judge(&Facts::new(&target, Carriage::Tunnel));
/// assert_eq!(verdict.denial().unwrap().rule.as_ref().unwrap().as_str(), "block evil.example.com");
/// # Ok::<(), sandbox_net::Error>(())
/// ```
///
/// In serialized form it is its mode and its lists; reading one back checks it as loading does. See
/// [`from_toml`](Self::from_toml) for the form of files.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    pub(super) mode: Mode,
    pub(super) allow: Vec<Clause>,
    pub(super) block: Vec<Clause>,
    pub(super) limit: Option<Vec<Clause>>,
    pub(super) index: Index,
    /// What the allows open of the floor.
    pub(super) floor: Floor,
    /// What the limit leaves open of it.
    pub(super) ceiling: Floor,
}

impl RuleSet {
    /// Denies everything; add what is allowed.
    pub fn deny() -> Self {
        Self::default()
    }

    /// Allows every public address on ports 80 and 443; add what is blocked.
    pub fn open() -> Self {
        Self::new(Mode::Allow)
    }

    /// A set without rules in a mode.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Adds an allow rule, in the grammar of [`Pattern`](crate::policy::Pattern).
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern, if its wildcard covers a public suffix, or if it names a block of private
    /// or special addresses without a port.
    pub fn allow(self, pattern: &str) -> Result<Self, Error> {
        Ok(self.with(List::Allow, List::Allow.read(pattern, None)?))
    }

    /// Allows some requests to a host.
    ///
    /// # Errors
    ///
    /// `Invalid` as for [`allow`](Self::allow), if no method and no path is named, or if the pattern is an address.
    pub fn allow_requests(self, pattern: &str, requests: Requests) -> Result<Self, Error> {
        Ok(self.with(List::Allow, List::Allow.read(pattern, Some(requests))?))
    }

    /// Adds a block rule, in the grammar of [`Pattern`](crate::policy::Pattern); `*.` covers any depth here.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern.
    pub fn block(self, pattern: &str) -> Result<Self, Error> {
        Ok(self.with(List::Block, List::Block.read(pattern, None)?))
    }

    /// Blocks some requests to a host.
    ///
    /// # Errors
    ///
    /// `Invalid` as for [`block`](Self::block), if no method and no path is named, or if the pattern is an address.
    pub fn block_requests(self, pattern: &str, requests: Requests) -> Result<Self, Error> {
        Ok(self.with(List::Block, List::Block.read(pattern, Some(requests))?))
    }

    /// Limits what can be allowed to nothing; add what is within the limit.
    #[must_use]
    pub fn limited(mut self) -> Self {
        self.limit.get_or_insert_default();
        self
    }

    /// Adds to the limit: from the first one on, nothing else can be allowed, by other layers neither.
    ///
    /// Nothing is allowed by being within the limit.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern, or names a block of private or special addresses without a port.
    pub fn limit(self, pattern: &str) -> Result<Self, Error> {
        Ok(self.with(List::Limit, List::Limit.read(pattern, None)?))
    }

    /// Adds some requests to a host to the limit.
    ///
    /// # Errors
    ///
    /// `Invalid` as for [`limit`](Self::limit), if no method and no path is named, or if the pattern is an address.
    pub fn limit_requests(self, pattern: &str, requests: Requests) -> Result<Self, Error> {
        Ok(self.with(List::Limit, List::Limit.read(pattern, Some(requests))?))
    }

    /// Adds another set's rules, but those that stand here already. The mode stays; a limit there is added to the
    /// one here, or becomes it.
    #[must_use]
    pub fn extended(mut self, by: &Self) -> Self {
        if by.limit.is_some() {
            self.limit.get_or_insert_default();
        }
        for (list, clause) in by.clauses() {
            if !self.clauses().any(|present| present == (list, clause)) {
                self.add(list, clause.clone());
            }
        }
        self
    }

    /// Adds a rule that its list accepted.
    fn with(mut self, list: List, clause: Clause) -> Self {
        self.add(list, clause);
        self
    }

    pub(super) fn add(&mut self, list: List, clause: Clause) {
        let rule = list.rule(&clause);
        let opening = match (clause.pattern.network(), clause.pattern.port) {
            (Some(network), Some(port)) => Some(Opening::new(network, port)),
            _ => None,
        };
        self.index.insert(list, &clause, rule);
        match list {
            List::Allow => {
                self.floor.open(opening);
                self.allow.push(clause);
            }
            List::Block => self.block.push(clause),
            List::Limit => {
                self.ceiling.open(opening);
                self.limit.get_or_insert_default().push(clause);
            }
        }
    }

    /// Lists all rules, each with its list.
    pub(super) fn clauses(&self) -> impl Iterator<Item = (List, &Clause)> {
        let limit = self.limit.iter().flatten();
        let allow = self.allow.iter().map(|clause| (List::Allow, clause));
        let block = self.block.iter().map(|clause| (List::Block, clause));
        allow
            .chain(block)
            .chain(limit.map(|clause| (List::Limit, clause)))
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Lists the allow rules in the order they were added.
    pub fn allowed(&self) -> &[Clause] {
        &self.allow
    }

    /// Lists the block rules in the order they were added.
    pub fn blocked(&self) -> &[Clause] {
        &self.block
    }

    /// Lists what the limit names, in the order it was added; `None` if there is no limit.
    pub fn limits(&self) -> Option<&[Clause]> {
        self.limit.as_deref()
    }

    /// Returns the ports that the allow rules name.
    pub fn named_ports(&self) -> BTreeSet<u16> {
        let ports = self.allow.iter().filter_map(|rule| rule.pattern().port());
        ports.collect()
    }

    /// Tells whether any rule names methods or paths: over TLS, its host can be reached only where TLS is opened.
    pub fn judges_requests(&self) -> bool {
        let lists = [
            &self.allow[..],
            &self.block,
            self.limits().unwrap_or_default(),
        ];
        let mut rules = lists.into_iter().flatten();
        rules.any(|rule| rule.requests().is_some())
    }
}

impl EgressPolicy for RuleSet {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let tier = Tier {
            layer: None,
            rules: self,
        };
        judge::judge(&self.index, std::iter::once(tier), facts)
    }

    fn rules(&self) -> Option<&RuleSet> {
        Some(self)
    }
}

/// The lists of a rule set, each with what it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Allow,
    Block,
    Limit,
}

impl List {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
            Self::Limit => "limit",
        }
    }

    /// Names a rule of this list.
    pub(super) fn rule(self, clause: &Clause) -> Rule {
        Rule::new(format!("{} {clause}", self.as_str()))
    }

    /// Reads a rule for this list.
    pub(super) fn read(self, host: &str, requests: Option<Requests>) -> Result<Clause, Error> {
        let clause = Clause::load(self.as_str(), host, requests)?;
        match self.objection(&clause) {
            None => Ok(clause),
            Some(reason) => {
                let rule = format!("load {} rule `{}`", self.as_str(), clause.pattern);
                Err(Error::invalid(rule, reason))
            }
        }
    }

    /// Tells why a rule may not stand in this list.
    fn objection(self, clause: &Clause) -> Option<String> {
        let pattern = &clause.pattern;
        if self == Self::Block {
            return None;
        }
        if let (Self::Allow, Some(reason)) = (self, pattern.too_wide()) {
            return Some(reason);
        }
        match (pattern.network(), pattern.port) {
            (Some(network), None) if floor::is_refused_network(network) => Some(format!(
                "it is not a public address; name the port that it shall open, such as `{pattern}:443`"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
