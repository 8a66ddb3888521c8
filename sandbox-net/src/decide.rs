//! The one road from a target to a verdict, walked by the proxy and by [`check`] alike.

use crate::{
    Error,
    policy::{
        Candidate, Carriage, Denial, EgressPolicy, Facts, Hello, Host, Need, Reason, Target,
        Verdict,
    },
    resolve::{self, Resolver},
};

/// A verdict with the addresses that it was based on.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Never `Need::Addresses`.
    pub(crate) verdict: Verdict,
    pub(crate) candidates: Vec<Candidate>,
}

/// Judges a target, looking its name up only if the policy says so.
pub(crate) async fn decide(
    policy: &dyn EgressPolicy,
    resolver: &dyn Resolver,
    target: &Target,
    carriage: Carriage,
) -> Decision {
    let facts = Facts::new(target, carriage);
    let without = |verdict| Decision {
        verdict,
        candidates: Vec::new(),
    };
    match policy.judge(&facts) {
        Verdict::Need(Need::Addresses) => {}
        Verdict::Deny(denial) => return without(Verdict::Deny(denial)),
        _ => return without(Verdict::Deny(undecided())),
    }
    let candidates = match resolve::candidates(resolver, target).await {
        Ok(candidates) => candidates,
        Err(error) => return without(Verdict::Deny(unresolved(target, &error))),
    };
    let verdict = match policy.judge(&facts.with_candidates(&candidates)) {
        Verdict::Need(Need::Addresses) => Verdict::Deny(undecided()),
        verdict => verdict,
    };
    Decision {
        verdict,
        candidates,
    }
}

/// Tells what the proxy would decide for a URL, `host:port` or `host` (port 443), without connecting.
///
/// The name is looked up if the policy allows the name. For a tunnel the client is taken to be honest: its TLS
/// handshake names the target.
///
/// # Errors
///
/// `Invalid` if the text names no target that the proxy would accept.
pub async fn check(
    policy: &dyn EgressPolicy,
    resolver: &dyn Resolver,
    text: &str,
) -> Result<Verdict, Error> {
    let (target, carriage) = read(text)?;
    let decision = decide(policy, resolver, &target, carriage).await;
    if !matches!(decision.verdict, Verdict::Need(Need::Hello { .. })) {
        return Ok(decision.verdict);
    }
    let hello = match &target.host {
        Host::Name(name) => Hello::Named(name.clone()),
        Host::Address(_) => Hello::Unnamed,
    };
    let facts = Facts::new(&target, carriage)
        .with_candidates(&decision.candidates)
        .with_hello(&hello);
    Ok(match policy.judge(&facts) {
        Verdict::Need(_) => Verdict::Deny(undecided()),
        verdict => verdict,
    })
}

/// Reads what people type when they ask about a target.
fn read(text: &str) -> Result<(Target, Carriage), Error> {
    let (rest, port, carriage) = match text.split_once("://") {
        None => (text, 443, Carriage::Tunnel),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
            (rest, 443, Carriage::Tunnel)
        }
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, 80, Carriage::Http),
        Some(_) => {
            return Err(Error::invalid(
                format!("read target `{}`", text.escape_debug()),
                "its scheme is neither http nor https",
            ));
        }
    };
    let end = match text.len() == rest.len() {
        true => rest.len(),
        false => rest.find(['/', '?', '#']).unwrap_or(rest.len()),
    };
    let target = Target::parse_with_default_port(&rest[..end], port)?;
    Ok((target, carriage))
}

pub(crate) fn undecided() -> Denial {
    Denial::new(Reason::Undecided, "the policy came to no decision")
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
        policy::{RuleSet, Scripted},
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
}
