//! Rules as data: a mode, a list of allows, a list of blocks.
//!
//! A block always beats an allow. In [`Mode::Deny`] a target needs an allow; in [`Mode::Allow`] everything
//! public on ports 80 and 443 passes that no block names, and other ports need a rule with that port in both
//! modes. Network rules fit addresses that are asked for literally and those that an allowed name resolves to;
//! they never cause a lookup by themselves. An allow for a network with a port is also an
//! [`Opening`] of the floor.
//!
//! Matching costs a few hash lookups, one per label of the name or per prefix length in use, however many rules
//! there are.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    policy::{
        Allow, Allowed, Candidate, Carriage, Class, Denial, EgressPolicy, Facts, Floor, Hello,
        Host, Need, Opening, Pattern, Reason, Rule, Target, Verdict, floor,
        index::{Index, Match},
        pattern::Kind,
    },
};

/// The ports that an allow without a port fits.
const WEB_PORTS: [u16; 2] = [80, 443];
/// The port whose tunnels always begin with TLS.
const TLS_PORT: u16 = 443;

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
/// let rules = RuleSet::deny().allow("*.npmjs.org")?.block("evil.npmjs.org")?;
/// let target = Target::parse("evil.npmjs.org:443")?;
/// let verdict = rules.judge(&Facts::new(&target, Carriage::Tunnel));
/// assert_eq!(verdict.denial().unwrap().rule.as_ref().unwrap().as_str(), "block evil.npmjs.org");
/// # Ok::<(), sandbox_net::Error>(())
/// ```
///
/// In serialized form it is its mode and its two lists of patterns; reading one back checks it as loading does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct RuleSet {
    mode: Mode,
    allow: Vec<Pattern>,
    block: Vec<Pattern>,
    allows: Index,
    blocks: Index,
    floor: Floor,
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

    /// Adds an allow rule, in the grammar of [`Pattern`].
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern, if its wildcard covers a public suffix, or if it names a block of private
    /// or special addresses without a port.
    pub fn allow(mut self, pattern: &str) -> Result<Self, Error> {
        let pattern = load("allow", pattern)?;
        let wrong = |reason: String| Error::invalid(format!("load allow rule `{pattern}`"), reason);
        if let Some(reason) = pattern.too_wide() {
            return Err(wrong(reason));
        }
        match (pattern.network(), pattern.port) {
            (Some(network), Some(port)) => {
                self.floor = self.floor.with_opening(Opening::new(network, port));
            }
            (Some(network), None) if floor::is_refused_network(network) => {
                return Err(wrong(format!(
                    "it is not a public address; name the port that it shall open, such as `{pattern}:443`"
                )));
            }
            _ => {}
        }
        self.allows
            .insert(&pattern, Rule::new(format!("allow {pattern}")));
        self.allow.push(pattern);
        Ok(self)
    }

    /// Adds a block rule, in the grammar of [`Pattern`]; `*.` covers any depth here.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no pattern.
    pub fn block(mut self, pattern: &str) -> Result<Self, Error> {
        let pattern = load("block", pattern)?;
        let rule = Rule::new(format!("block {pattern}"));
        let deep = match &pattern.kind {
            Kind::Child(suffix) => Pattern {
                kind: Kind::Descendant(suffix.clone()),
                ..pattern
            },
            _ => pattern.clone(),
        };
        self.blocks.insert(&deep, rule);
        self.block.push(pattern);
        Ok(self)
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Lists the allow rules in the order they were added.
    pub fn allowed(&self) -> &[Pattern] {
        &self.allow
    }

    /// Lists the block rules in the order they were added.
    pub fn blocked(&self) -> &[Pattern] {
        &self.block
    }
}

fn load(list: &str, pattern: &str) -> Result<Pattern, Error> {
    Pattern::parse(pattern).map_err(|error| {
        Error::invalid(
            format!("load {list} rule `{}`", pattern.escape_debug()),
            error,
        )
    })
}

impl EgressPolicy for RuleSet {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        self.decide(facts).unwrap_or_else(Verdict::Deny)
    }

    fn rules(&self) -> Option<&RuleSet> {
        Some(self)
    }
}

/// What the name and the port alone decided.
struct Grant {
    rule: Option<Rule>,
    /// A rule names the port, so that it may carry what its writer put there.
    port_named: bool,
}

impl RuleSet {
    fn decide(&self, facts: &Facts<'_>) -> Result<Verdict, Denial> {
        let grant = self.judge_target(facts.target)?;
        let needs_hello = needs_hello(facts, &grant)?;
        let Some(candidates) = facts.candidates else {
            return Ok(Verdict::Need(Need::Addresses));
        };
        let addresses = self.judge_addresses(candidates, facts.target.port)?;
        match facts.hello {
            None if needs_hello => return Ok(Verdict::Need(Need::Hello { addresses })),
            Some(hello) if needs_hello => judge_hello(facts.target, hello)?,
            _ => {}
        }
        Ok(Verdict::Allow(Allow::new(addresses).with_rule(grant.rule)))
    }

    fn judge_target(&self, target: &Target) -> Result<Grant, Denial> {
        if target.host.name().is_some_and(|name| name.is_localhost()) {
            return Err(Denial::new(Reason::Localhost, "this name means the machine itself")
                .with_remedy("to reach a service on it, allow its address with a port, such as 127.0.0.1/32:8080, and ask for that address"));
        }
        if let Some(found) = self
            .blocks
            .find(&target.host, |port| fits_block(port, target.port))
        {
            return Err(blocked(found.rule));
        }
        let fits = |port: Option<u16>| match port {
            Some(port) => port == target.port,
            None => WEB_PORTS.contains(&target.port),
        };
        match self.allows.find(&target.host, fits) {
            Some(Match { rule, port }) => Ok(Grant {
                rule: Some(rule.clone()),
                port_named: port.is_some(),
            }),
            None if self.mode == Mode::Allow && WEB_PORTS.contains(&target.port) => Ok(Grant {
                rule: None,
                port_named: false,
            }),
            None => Err(self.not_allowed(target)),
        }
    }

    fn not_allowed(&self, target: &Target) -> Denial {
        let known = self.allows.find(&target.host, |_| true);
        match known {
            Some(found) => Denial::new(
                Reason::Port,
                format!("the host is allowed, but not on port {}", target.port),
            )
            .with_rule(Some(found.rule.clone()))
            .with_remedy(format!("allow `{target}`")),
            None if self.mode == Mode::Allow => Denial::new(
                Reason::Port,
                format!("port {} needs a rule that names it", target.port),
            )
            .with_remedy(format!("allow `{target}`")),
            None => Denial::new(Reason::NotAllowed, "no rule allows this host")
                .with_remedy(format!("allow `{}`", remedy_pattern(target))),
        }
    }

    /// Judges every address, drops those that may not be dialled, and denies if none is left.
    fn judge_addresses(
        &self,
        candidates: &[Candidate],
        port: u16,
    ) -> Result<Vec<Allowed<SocketAddr>>, Denial> {
        let mut admitted = Vec::new();
        let mut refusal = None;
        for candidate in candidates {
            match self.judge_address(*candidate, port) {
                Ok(address) => admitted.push(address),
                Err(denial) => refusal = refusal.or(Some(denial)),
            }
        }
        if admitted.is_empty() {
            let none = || Denial::new(Reason::Unresolved, "the name has no address");
            return Err(refusal.unwrap_or_else(none));
        }
        Ok(admitted)
    }

    fn judge_address(
        &self,
        candidate: Candidate,
        port: u16,
    ) -> Result<Allowed<SocketAddr>, Denial> {
        let address = candidate.address.to_canonical();
        let embedded = floor::embedded(address).map(Into::into);
        for view in [Some(address), embedded].into_iter().flatten() {
            let host = Host::Address(view);
            if let Some(found) = self.blocks.find(&host, |rule| fits_block(rule, port)) {
                return Err(blocked(found.rule));
            }
        }
        self.floor.admit(candidate, port).map_err(refused)
    }
}

fn fits_block(rule: Option<u16>, port: u16) -> bool {
    rule.is_none_or(|rule| rule == port)
}

fn blocked(rule: &Rule) -> Denial {
    Denial::new(Reason::Blocked, "a rule blocks this host").with_rule(Some(rule.clone()))
}

fn refused(class: Class) -> Denial {
    Denial::new(
        Reason::Address(class),
        format!("the host's address is not a public one ({class})"),
    )
    .with_remedy(
        "if it is meant to be reached, allow its network with a port, such as 10.1.2.3/32:443",
    )
}

fn remedy_pattern(target: &Target) -> String {
    if WEB_PORTS.contains(&target.port) {
        target.host.to_string()
    } else {
        target.to_string()
    }
}

/// Whether a tunnel must begin with TLS for its own target before it may carry a byte.
fn needs_hello(facts: &Facts<'_>, grant: &Grant) -> Result<bool, Denial> {
    match (facts.carriage, facts.target.port) {
        (Carriage::Http, _) => Ok(false),
        (Carriage::Tunnel, TLS_PORT) => Ok(true),
        (Carriage::Tunnel, _) if grant.port_named => Ok(false),
        (Carriage::Tunnel, port) => Err(Denial::new(
            Reason::Tunnel,
            format!("what a tunnel to port {port} carries cannot be judged"),
        )
        .with_rule(grant.rule.clone())
        .with_remedy(format!(
            "send plain HTTP as a proxy request, or allow `{}`",
            facts.target
        ))),
    }
}

/// Requires the name in the handshake to be the target's own. TLS has no names for addresses (RFC 6066,
/// section 3), so a target that is an address requires that there is none.
fn judge_hello(target: &Target, hello: &Hello) -> Result<(), Denial> {
    let (reason, text) = match (&target.host, hello) {
        (Host::Name(asked), Hello::Named(named)) if asked == named => return Ok(()),
        (Host::Address(_), Hello::Unnamed) => return Ok(()),
        (_, Hello::Named(_)) => (
            Reason::TlsName,
            "the TLS handshake names another host than the tunnel was asked for",
        ),
        (_, Hello::Unnamed) => (Reason::NotTls, "the TLS handshake names no host"),
        (_, Hello::Unreadable(what)) => (Reason::NotTls, *what),
    };
    Err(Denial::new(reason, text))
}

/// A rule set as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    block: Vec<String>,
}

impl TryFrom<Written> for RuleSet {
    type Error = LoadError;

    fn try_from(written: Written) -> Result<Self, LoadError> {
        let mut rules = Self::new(written.mode);
        for pattern in &written.allow {
            rules = rules.allow(pattern).map_err(LoadError)?;
        }
        for pattern in &written.block {
            rules = rules.block(pattern).map_err(LoadError)?;
        }
        Ok(rules)
    }
}

/// An error with its chain of reasons in one line, since serde keeps only the text.
#[derive(Debug)]
struct LoadError(Error);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(&self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl From<RuleSet> for Written {
    fn from(rules: RuleSet) -> Self {
        let texts = |list: &[Pattern]| list.iter().map(Pattern::to_string).collect();
        Self {
            mode: rules.mode,
            allow: texts(&rules.allow),
            block: texts(&rules.block),
        }
    }
}

#[cfg(test)]
mod tests;
