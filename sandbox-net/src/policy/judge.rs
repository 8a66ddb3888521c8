//! The decision over one set of rules or several, one above the other.
//!
//! In this order: `localhost`, blocks of all tiers, limits of all tiers, allows of any tier, the request if a rule
//! has to see it and it is known, the addresses, the TLS handshake, and the request if it is not known yet.

use std::net::SocketAddr;

use crate::policy::{
    Allow, Allowed, Candidate, Carriage, Class, Denial, Facts, Floor, Hello, Host, Layer, Mode,
    Need, Reason, RequestLine, Rule, RuleSet, Target, Verdict, floor,
    index::{Entry, Found, Index},
    request::Reading,
    rules::List,
};

/// The ports that an allow without a port fits.
pub(super) const WEB_PORTS: [u16; 2] = [80, 443];
/// The port whose tunnels always begin with TLS.
const TLS_PORT: u16 = 443;

/// A set of rules with its place among others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tier<'a> {
    pub(super) layer: Option<Layer>,
    pub(super) rules: &'a RuleSet,
}

/// Judges by tiers, the strongest first, whose rules are all in the index.
pub(super) fn judge<'a>(
    index: &'a Index,
    tiers: impl Iterator<Item = Tier<'a>> + Clone,
    facts: &Facts<'_>,
) -> Verdict {
    let judge = Judge {
        found: index.find(&facts.target.host),
        index,
        tiers,
        facts,
    };
    judge.decide().unwrap_or_else(Verdict::Deny)
}

struct Judge<'f, 'd, 'a, I> {
    index: &'a Index,
    tiers: I,
    facts: &'f Facts<'d>,
    /// The rules about the target's host.
    found: Found<'a>,
}

/// What the name and the port alone decided.
struct Grant {
    /// The rule that allows everything that the host is sent.
    rule: Option<Rule>,
    /// No rule allows everything, but some allow some requests.
    partial: bool,
    /// A rule has to see the request.
    by_request: bool,
    /// A rule names the port, so that it may carry what its writer put there.
    port_named: bool,
}

impl<'a, I: Iterator<Item = Tier<'a>> + Clone> Judge<'_, '_, 'a, I> {
    fn decide(&self) -> Result<Verdict, Denial> {
        let mut grant = self.judge_target()?;
        let needs_hello = needs_hello(self.facts, &grant)?;
        if let (true, Some(request)) = (grant.by_request, self.facts.request) {
            grant.rule = self.judge_request(&grant, request)?;
        }
        let addresses = match self.facts.candidates {
            _ if self.facts.by_name => Vec::new(),
            Some(candidates) => self.judge_addresses(candidates)?,
            None => return Ok(Verdict::Need(Need::Addresses)),
        };
        match self.facts.hello {
            None if needs_hello => return Ok(Verdict::Need(Need::Hello { addresses })),
            Some(hello) if needs_hello => judge_hello(self.facts.target, hello)?,
            _ => {}
        }
        if grant.by_request && self.facts.request.is_none() {
            return Ok(Verdict::Need(Need::Request { addresses }));
        }
        let allow = Allow::new(addresses).with_rule(grant.rule);
        Ok(Verdict::Allow(allow.for_request(grant.by_request)))
    }

    fn tiers(&self) -> I {
        self.tiers.clone()
    }

    /// Lists the rules of a list that are about the host and whose port fits.
    fn fitting(&self, tier: &Tier<'a>, list: List) -> impl Iterator<Item = &'a Entry> {
        let port = self.facts.target.port;
        let rules = self.found.of(tier.layer, list);
        rules.filter(move |entry| entry.fits(port))
    }

    /// Finds a rule about everything that the host is sent. One that names its port is preferred, then the most
    /// specific.
    fn whole(&self, tier: &Tier<'a>, list: List) -> Option<&'a Entry> {
        let mut best = None;
        for entry in self.fitting(tier, list) {
            if entry.requests.is_none() {
                if entry.names_port() {
                    return Some(entry);
                }
                best = best.or(Some(entry));
            }
        }
        best
    }

    /// Lists the rules about some of the host's requests.
    fn partial(&self, tier: &Tier<'a>, list: List) -> impl Iterator<Item = &'a Entry> {
        let rules = self.fitting(tier, list);
        rules.filter(|entry| entry.requests.is_some())
    }

    /// Finds the first rule about some requests that is about this one.
    fn first_fit(
        &self,
        (tier, list): (&Tier<'a>, List),
        request: &RequestLine,
    ) -> Result<Option<Rule>, Denial> {
        let reading = match list {
            List::Block => Reading::Wide,
            List::Allow | List::Limit => Reading::Narrow,
        };
        for entry in self.partial(tier, list) {
            let fits = entry.requests.as_ref();
            match fits.map_or(Ok(false), |requests| requests.fits(request, reading)) {
                Ok(false) => {}
                Ok(true) => return Ok(Some(entry.rule.clone())),
                Err(what) => {
                    return Err(Denial::new(Reason::Ambiguous, what)
                        .with_rule(Some(entry.rule.clone()))
                        .with_remedy("send the path in its plain form"));
                }
            }
        }
        Ok(None)
    }

    fn judge_target(&self) -> Result<Grant, Denial> {
        let host = &self.facts.target.host;
        if host.name().is_some_and(|name| name.is_localhost()) {
            return Err(localhost());
        }
        let mut by_request = false;
        for tier in self.tiers() {
            if let Some(found) = self.whole(&tier, List::Block) {
                return Err(blocked(found));
            }
            by_request |= self.partial(&tier, List::Block).next().is_some();
            if tier.rules.limit.is_some() && self.whole(&tier, List::Limit).is_none() {
                if self.partial(&tier, List::Limit).next().is_none() {
                    return Err(beyond(&tier));
                }
                by_request = true;
            }
        }
        let mut grant = self.grant()?;
        grant.by_request |= by_request;
        Ok(grant)
    }

    /// Looks for what allows the target.
    fn grant(&self) -> Result<Grant, Denial> {
        let port = self.facts.target.port;
        let whole = |rule, port_named| Grant {
            rule,
            partial: false,
            by_request: false,
            port_named,
        };
        let mut best: Option<&Entry> = None;
        for tier in self.tiers() {
            match self.whole(&tier, List::Allow) {
                Some(found) if found.names_port() => {
                    return Ok(whole(Some(found.rule.clone()), true));
                }
                found => best = best.or(found),
            }
        }
        if let Some(found) = best {
            return Ok(whole(Some(found.rule.clone()), false));
        }
        if self.is_open() && WEB_PORTS.contains(&port) {
            return Ok(whole(None, false));
        }
        let mut tiers = self.tiers();
        if let Some(entry) = tiers.find_map(|tier| self.partial(&tier, List::Allow).next()) {
            return Ok(Grant {
                rule: None,
                partial: true,
                by_request: true,
                port_named: entry.names_port(),
            });
        }
        if self.facts.approved {
            let rule = Some(Rule::new("approved"));
            return Ok(whole(rule, !WEB_PORTS.contains(&port)));
        }
        Err(self.not_allowed())
    }

    /// Whether the lowest tier allows what no rule names.
    fn is_open(&self) -> bool {
        self.tiers()
            .last()
            .is_some_and(|tier| tier.rules.mode == Mode::Allow)
    }

    fn not_allowed(&self) -> Denial {
        let target = self.facts.target;
        let mut tiers = self.tiers();
        let known = tiers.find_map(|tier| self.found.of(tier.layer, List::Allow).next());
        let remedy = format!("allow `{}`", remedy_pattern(target));
        let denial = match known {
            Some(entry) => Denial::new(
                Reason::Port,
                format!("the host is allowed, but not on port {}", target.port),
            )
            .with_rule(Some(entry.rule.clone())),
            None if self.is_open() => Denial::new(
                Reason::Port,
                format!("port {} needs a rule that names it", target.port),
            ),
            None => Denial::new(Reason::NotAllowed, "no rule allows this host"),
        };
        denial.with_remedy(remedy)
    }

    /// Judges the request by every rule that is about some requests of this host; returns the rule that allows it.
    fn judge_request(&self, grant: &Grant, request: &RequestLine) -> Result<Option<Rule>, Denial> {
        for tier in self.tiers() {
            if let Some(rule) = self.first_fit((&tier, List::Block), request)? {
                let denial = Denial::new(Reason::Blocked, "a rule blocks this request");
                return Err(denial.with_rule(Some(rule)));
            }
            if tier.rules.limit.is_some()
                && self.whole(&tier, List::Limit).is_none()
                && self.first_fit((&tier, List::Limit), request)?.is_none()
            {
                return Err(beyond(&tier));
            }
        }
        if !grant.partial {
            return Ok(grant.rule.clone());
        }
        for tier in self.tiers() {
            let found = self.first_fit((&tier, List::Allow), request)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Err(Denial::new(
            Reason::Request,
            "the host is allowed, but not this method and path",
        ))
    }

    /// Judges every address, drops those that may not be dialled, and denies if none is left.
    fn judge_addresses(
        &self,
        candidates: &[Candidate],
    ) -> Result<Vec<Allowed<SocketAddr>>, Denial> {
        let mut admitted = Vec::new();
        let mut refusal = None;
        for candidate in candidates {
            match self.judge_address(*candidate) {
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

    fn judge_address(&self, candidate: Candidate) -> Result<Allowed<SocketAddr>, Denial> {
        let port = self.facts.target.port;
        let address = candidate.address.to_canonical();
        let embedded = floor::embedded(address).map(Into::into);
        for host in [Some(address), embedded].into_iter().flatten() {
            let found = self.index.find(&Host::Address(host));
            if found.is_empty() {
                continue;
            }
            for tier in self.tiers() {
                let mut blocks = found.of(tier.layer, List::Block);
                if let Some(found) = blocks.find(|entry| entry.fits(port)) {
                    return Err(blocked(found));
                }
            }
        }
        for tier in self.tiers().filter(|tier| tier.rules.limit.is_some()) {
            tier.rules.ceiling.admit(candidate, port).map_err(refused)?;
        }
        let mut opened = self.tiers();
        let admitted = Floor::new().admit(candidate, port);
        admitted
            .or_else(|class| {
                let opened = opened.find_map(|tier| tier.rules.floor.admit(candidate, port).ok());
                opened.ok_or(class)
            })
            .map_err(refused)
    }
}

fn localhost() -> Denial {
    Denial::new(Reason::Localhost, "this name means the machine itself").with_remedy(
        "to reach a service on it, allow its address with a port, such as 127.0.0.1/32:8080, and ask for that address",
    )
}

fn blocked(entry: &Entry) -> Denial {
    let rule = Some(entry.rule.clone());
    Denial::new(Reason::Blocked, "a rule blocks this host").with_rule(rule)
}

fn beyond(tier: &Tier<'_>) -> Denial {
    let rule = Rule::new("limit").in_layer(tier.layer);
    Denial::new(Reason::Limit, "a limit leaves this out").with_rule(Some(rule))
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

/// The rule that would allow a target.
pub(crate) fn remedy_pattern(target: &Target) -> String {
    let host = match &target.host {
        Host::Address(address) => Host::Address(address.to_canonical()),
        name => name.clone(),
    };
    if WEB_PORTS.contains(&target.port) {
        host.to_string()
    } else {
        format!("{host}:{}", target.port)
    }
}

/// Whether a tunnel must begin with TLS for its own target before it may carry a byte.
fn needs_hello(facts: &Facts<'_>, grant: &Grant) -> Result<bool, Denial> {
    match (facts.carriage, facts.target.port) {
        (Carriage::Http, _) => Ok(false),
        (Carriage::Tunnel, TLS_PORT) => Ok(true),
        (Carriage::Tunnel, _) if grant.port_named => Ok(grant.by_request),
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
