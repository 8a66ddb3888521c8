//! The one road from a target to a verdict, walked by the proxy and by [`check`] alike.

use crate::{
    Error,
    approval::{Approvals, Question},
    policy::{
        Allowed, Candidate, Carriage, Denial, EgressPolicy, Facts, Floor, Hello, Host, HostName,
        Need, Reason, RequestLine, Target, Verdict,
    },
    resolve::{self, Lookups, Resolver},
};

/// What a client asks for, as its first words say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) target: &'a Target,
    pub(crate) carriage: Carriage,
    /// Known at once for plain HTTP.
    pub(crate) request: Option<&'a RequestLine>,
}

impl<'a> Ask<'a> {
    fn facts(self) -> Facts<'a> {
        let facts = Facts::new(self.target, self.carriage);
        match self.request {
            Some(request) => facts.with_request(request),
            None => facts,
        }
    }
}

/// A verdict with what it was based on.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Never `Need::Addresses`.
    pub(crate) verdict: Verdict,
    pub(crate) candidates: Vec<Candidate>,
    /// The name, if an upstream proxy is to look it up.
    pub(crate) name: Option<Allowed<HostName>>,
    /// Whether somebody approved the target.
    pub(crate) approved: bool,
}

/// Those who are asked on the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Road<'a> {
    pub(crate) policy: &'a dyn EgressPolicy,
    pub(crate) resolver: &'a dyn Resolver,
    /// Nobody is asked where there is none.
    pub(crate) approvals: Option<&'a Approvals>,
    /// Who says when a name may be looked up; at once where nobody is.
    pub(crate) lookups: Option<&'a Lookups>,
    /// Whether an upstream proxy is sent the name, and looks it up for itself.
    pub(crate) sends_name: bool,
}

impl Road<'_> {
    /// Judges a target, having it approved if that is needed and can be, and looking its name up only if the policy
    /// says so.
    pub(crate) async fn decide(&self, ask: Ask<'_>) -> Decision {
        let mut facts = ask.facts();
        let mut decision = Decision {
            verdict: self.policy.judge(&facts),
            candidates: Vec::new(),
            name: None,
            approved: false,
        };
        if let Verdict::Deny(denial) = &decision.verdict
            && let Some(approvals) = self.approvals
            && self.can_be_approved(ask, denial).await
        {
            let question = Question {
                target: ask.target.clone(),
                carriage: ask.carriage,
                denial: denial.clone(),
            };
            if let Err(denial) = approvals.ask(question).await {
                decision.verdict = Verdict::Deny(denial);
                return decision;
            }
            facts = facts.with_approval();
            decision.approved = true;
            decision.verdict = self.policy.judge(&facts);
        }
        match decision.verdict {
            Verdict::Need(Need::Addresses) => {}
            Verdict::Deny(_) => return decision,
            _ => {
                decision.verdict = Verdict::Deny(undecided());
                return decision;
            }
        }
        if let (Some(lookups), Host::Name(name)) = (self.lookups, &ask.target.host)
            && lookups.turn(name).await.is_err()
        {
            decision.verdict = Verdict::Deny(busy());
            return decision;
        }
        if self.sends_name
            && let Host::Name(name) = &ask.target.host
        {
            decision.name = Floor::new().admit_name(name);
            if decision.name.is_none() {
                decision.verdict = Verdict::Deny(internal());
                return decision;
            }
        }
        match resolve::candidates(self.resolver, ask.target).await {
            Ok(candidates) => decision.candidates = candidates,
            // The upstream proxy may know more.
            Err(_) if decision.name.is_some() => {}
            Err(error) => {
                decision.verdict = Verdict::Deny(unresolved(ask.target, &error));
                return decision;
            }
        }
        decision.verdict = judge_all(
            self.policy,
            facts,
            (&decision.candidates, decision.name.is_some()),
        );
        decision
    }

    /// Whether a yes would change anything: not where a block, a limit or the floor denies as well. A literal
    /// address is judged whole, since learning it takes no lookup.
    async fn can_be_approved(&self, ask: Ask<'_>, denial: &Denial) -> bool {
        let facts = ask.facts().with_approval();
        let literal = match &ask.target.host {
            Host::Address(_) => resolve::candidates(self.resolver, ask.target).await.ok(),
            Host::Name(_) => None,
        };
        let facts = match &literal {
            Some(candidates) => facts.with_candidates(candidates),
            None => facts,
        };
        denial.is_implicit() && self.policy.judge(&facts).denial().is_none()
    }
}

/// Judges with all addresses known. Where the name is sent and looked up once more, by others, each address has to be
/// allowed by itself, since any may be taken, and without one the name alone decides.
pub(crate) fn judge_all<'a>(
    policy: &dyn EgressPolicy,
    facts: Facts<'a>,
    (candidates, sends_name): (&'a [Candidate], bool),
) -> Verdict {
    let facts = match candidates {
        [] if sends_name => facts.by_name_alone(),
        _ => facts.with_candidates(candidates),
    };
    if sends_name {
        for candidate in candidates.chunks(1) {
            if let denied @ Verdict::Deny(_) =
                policy.judge(&facts.clone().with_candidates(candidate))
            {
                return denied;
            }
        }
    }
    match policy.judge(&facts) {
        Verdict::Need(Need::Addresses) => Verdict::Deny(undecided()),
        verdict => verdict,
    }
}

/// Tells what the proxy would decide, without connecting and without asking anybody.
///
/// The text is a URL, `host:port` or `host` (port 443); before a URL a method may stand, as in
/// `POST http://example.com/x`, else it is GET. The name is looked up if the policy allows the name. For a tunnel
/// the client is taken to be honest: its TLS handshake names the target. Where a rule judges requests, that of an
/// `https` URL is judged as a proxy does that opens TLS to see it. An [upstream proxy](crate::upstream) is taken to be
/// asked for addresses; [`Proxy::check`](crate::Proxy::check) knows what its own is asked for.
///
/// # Errors
///
/// `Invalid` if the text names no target that the proxy would accept.
pub async fn check(
    policy: &dyn EgressPolicy,
    resolver: &dyn Resolver,
    text: &str,
) -> Result<Verdict, Error> {
    let asked = Asked::read(text)?;
    let road = Road {
        policy,
        resolver,
        approvals: None,
        lookups: None,
        sends_name: false,
    };
    Ok(road.check(&asked, true).await.verdict)
}

/// What people ask about.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) target: Target,
    pub(crate) carriage: Carriage,
    /// Only a URL holds one.
    request: Option<RequestLine>,
}

impl Road<'_> {
    /// Walks to the end, where nothing is needed any more. `opened` says whether the TLS of a tunnel would be, if a
    /// rule has to see inside.
    pub(crate) async fn check(&self, asked: &Asked, opened: bool) -> Decision {
        let ask = Ask {
            target: &asked.target,
            carriage: asked.carriage,
            // That of a tunnel is seen only inside.
            request: asked
                .request
                .as_ref()
                .filter(|_| asked.carriage == Carriage::Http),
        };
        let mut decision = self.decide(ask).await;
        if matches!(decision.verdict, Verdict::Need(Need::Hello { .. })) {
            decision.verdict = self.enter(ask, &decision, &asked.request, opened);
        }
        decision.verdict = ended(decision.verdict);
        decision
    }

    /// Judges the handshake of an honest client, and the request that follows it.
    fn enter(
        &self,
        ask: Ask<'_>,
        decision: &Decision,
        request: &Option<RequestLine>,
        opened: bool,
    ) -> Verdict {
        let hello = match &ask.target.host {
            Host::Name(name) => Hello::Named(name.clone()),
            Host::Address(_) => Hello::Unnamed,
        };
        let known = (&decision.candidates[..], decision.name.is_some());
        let facts = ask.facts().with_hello(&hello);
        match (judge_all(self.policy, facts.clone(), known), request) {
            (Verdict::Need(Need::Request { .. }), Some(request)) if opened => {
                judge_all(self.policy, facts.with_request(request), known)
            }
            (verdict, _) => verdict,
        }
    }
}

/// What comes of a verdict when there is nothing more to learn.
fn ended(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Need(Need::Request { .. }) => Verdict::Deny(uninspected()),
        Verdict::Need(_) => Verdict::Deny(undecided()),
        verdict => verdict,
    }
}

impl Asked {
    /// Reads what people type. Without a URL there is no request.
    pub(crate) fn read(text: &str) -> Result<Self, Error> {
        let wrong =
            |reason| Error::invalid(format!("read target `{}`", text.escape_debug()), reason);
        let (method, url) = match text.split_once(' ') {
            Some((method, url)) if url.contains("://") => (method, url),
            Some(_) => return Err(wrong("a method stands before a URL only")),
            None => ("GET", text),
        };
        let (rest, port, carriage) = match url.split_once("://") {
            None => (url, 443, Carriage::Tunnel),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
                (rest, 443, Carriage::Tunnel)
            }
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
                (rest, 80, Carriage::Http)
            }
            Some(_) => return Err(wrong("its scheme is neither http nor https")),
        };
        let end = match url.len() == rest.len() {
            true => rest.len(),
            false => rest.find(['/', '?', '#']).unwrap_or(rest.len()),
        };
        let target = Target::parse_with_default_port(&rest[..end], port)?;
        // What stands behind `#` never leaves a client.
        let path = rest[end..].split('#').next().unwrap_or_default();
        let request = (url.len() != rest.len()).then(|| RequestLine::new(method, path));
        Ok(Self {
            target,
            carriage,
            request,
        })
    }
}

pub(crate) fn undecided() -> Denial {
    Denial::new(Reason::Undecided, "the policy came to no decision")
}

/// The denial of a tunnel whose requests would have to be seen.
pub(crate) fn uninspected() -> Denial {
    Denial::new(
        Reason::Uninspected,
        "a rule judges each request to this host, and nobody opens its TLS to see them",
    )
    .with_remedy("allow the host without methods and paths")
}

fn internal() -> Denial {
    Denial::new(
        Reason::InternalName,
        "names below no public suffix are not sent to the upstream proxy",
    )
    .with_remedy("except the name from the upstream proxy, so that it is reached directly")
}

fn busy() -> Denial {
    let text = "this sandbox has too many names looked up";
    Denial::new(Reason::Busy, text).with_remedy("ask again in a moment, and for fewer hosts")
}

fn unresolved(target: &Target, error: &Error) -> Denial {
    tracing::debug!(%target, error = error as &dyn std::error::Error, "lookup failed");
    Denial::new(
        Reason::Unresolved,
        "the name's addresses could not be learned",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Requests, RuleSet, Scripted},
        resolve::FixedResolver,
    };

    fn resolver() -> FixedResolver {
        FixedResolver::new()
            .with("example.com".parse().unwrap(), ["8.8.8.8".parse().unwrap()])
            .with(
                "inside.example.com".parse().unwrap(),
                ["10.0.0.1".parse().unwrap()],
            )
    }

    async fn reason(rules: &RuleSet, text: &str) -> Option<Reason> {
        let verdict = check(rules, &resolver(), text).await.unwrap();
        verdict.denial().map(|denial| denial.reason)
    }

    #[tokio::test]
    async fn a_url_a_target_and_a_host_are_understood() {
        let rules = RuleSet::deny().allow("example.com").unwrap();
        for text in [
            "https://example.com/a?b#c",
            "HTTP://example.com:80/",
            "example.com",
            "example.com:443",
            "http://example.com?q",
            "POST http://example.com/a",
        ] {
            assert_eq!(reason(&rules, text).await, None, "{text}");
        }
        assert_eq!(reason(&rules, "example.com:22").await, Some(Reason::Port));
        assert_eq!(reason(&rules, "http://example.com:443").await, None);
        for text in [
            "ftp://example.com",
            "https://u@example.com",
            "example.com/x",
            "",
            "https://",
            "GET example.com",
            "GET  http://example.com",
        ] {
            assert!(check(&rules, &resolver(), text).await.is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn e30_e50_names_are_judged_before_and_after_their_lookup() {
        let rules = RuleSet::open().block("evil.com").unwrap();
        assert!(matches!(
            reason(&rules, "inside.example.com").await,
            Some(Reason::Address(_))
        ));
        assert_eq!(
            reason(&rules, "nowhere.example.com").await,
            Some(Reason::Unresolved)
        );
        let scripted = Scripted::new(rules);
        let verdict = check(&scripted, &resolver(), "evil.com").await.unwrap();
        assert_eq!(verdict.denial().unwrap().reason, Reason::Blocked);
        assert_eq!(scripted.asked().len(), 1, "not looked up and asked again");
    }

    #[tokio::test]
    async fn e58_plain_requests_are_judged_before_their_host_is_looked_up() {
        let reads = Requests::new().methods(["GET"]).unwrap();
        let reads = reads.paths(["/api/**"]).unwrap();
        let rules = RuleSet::deny()
            .allow_requests("example.com", reads)
            .unwrap();
        for (text, expected) in [
            ("http://example.com/api/x?y#/../z", None),
            ("http://example.com/admin", Some(Reason::Request)),
            ("POST http://example.com/api/x", Some(Reason::Request)),
            ("http://example.com/api/../admin", Some(Reason::Ambiguous)),
            (
                "http://example.com/api/%2e%2e/admin",
                Some(Reason::Ambiguous),
            ),
            ("https://example.com/api/x", None),
            ("https://example.com/admin", Some(Reason::Request)),
            ("POST https://example.com/api/x", Some(Reason::Request)),
            ("example.com:443", Some(Reason::Uninspected)),
        ] {
            assert_eq!(reason(&rules, text).await, expected, "{text}");
        }
        let scripted = Scripted::new(rules);
        let denied = check(&scripted, &resolver(), "http://example.com/admin").await;
        assert!(denied.unwrap().denial().is_some());
        assert_eq!(scripted.asked().len(), 1, "not looked up and asked again");
    }
}
