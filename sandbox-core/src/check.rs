//! What a sandbox's proxy would do about a target, for people and programs to read.

use sandbox_base::Error;
use sandbox_net::policy::{RuleSet, Verdict};
use sandbox_net::{Checked, Proxy, Way};
use serde::{Deserialize, Serialize};

use crate::network::unusable;
use crate::spec::Spec;
use crate::state::blocking;

/// What would be decided about a target, why, and which way a connection would go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkCheck {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The rule that decided, with whose it is; `None` where none did.
    pub rule: Option<String>,
    /// Why it is denied, as a word for programs.
    pub reason: Option<String>,
    /// The same in words, with what would help.
    pub denial: Option<String>,
    /// Which way a connection would go; `None` if it is denied.
    pub way: Option<Way>,
}

impl From<Checked> for NetworkCheck {
    fn from(checked: Checked) -> Self {
        let (rule, denial) = match &checked.verdict {
            Verdict::Allow(allow) => (allow.rule.as_ref(), None),
            verdict => {
                let denial = verdict.denial();
                (denial.and_then(|denial| denial.rule.as_ref()), denial)
            }
        };
        Self {
            allowed: checked.verdict.is_allowed(),
            rule: rule.map(ToString::to_string),
            reason: denial.map(|denial| denial.reason.to_string()),
            denial: denial.map(ToString::to_string),
            way: checked.way,
        }
    }
}

/// Checks for a sandbox that nothing runs, as it would be started now.
pub(crate) async fn at_rest(
    spec: Spec,
    rules: Option<RuleSet>,
    target: &str,
) -> Result<NetworkCheck, Error> {
    let (above, upstream) = (spec.above.clone(), spec.upstream.clone());
    let (above, upstream) = blocking(move || {
        let upstream = upstream.map_or(Ok(None), |upstream| upstream.load());
        Ok((above.load()?, upstream?))
    })
    .await?;
    let policy = above.policy(&rules.unwrap_or(spec.network));
    // Made without the secrets, which say nothing about what is allowed.
    let inspector = spec.inspection.builder()?.build().map_err(unusable)?;
    let mut proxy = Proxy::builder(policy).inspector(inspector);
    if let Some(upstream) = upstream {
        proxy = proxy.upstream_proxy(upstream);
    }
    let checked = proxy.build().check(target).await;
    checked.map(Into::into).map_err(no_target)
}

pub(crate) fn no_target(error: sandbox_net::Error) -> Error {
    Error::new(error.kind(), "check what a sandbox may reach").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpstreamProxy;
    use crate::layers::Above;

    async fn check(spec: &Spec, rules: Option<&RuleSet>, target: &str) -> NetworkCheck {
        at_rest(spec.clone(), rules.cloned(), target).await.unwrap()
    }

    #[tokio::test]
    async fn e34_a_sandbox_at_rest_is_checked_as_it_would_be_started() {
        let mut spec = Spec::bare();
        spec.network = RuleSet::deny().allow("8.8.8.0/24").unwrap();
        let target = "https://8.8.8.8/";
        let direct = check(&spec, None, target).await;
        assert_eq!((direct.allowed, direct.way), (true, Some(Way::Direct)));
        assert_eq!(direct.rule.as_deref(), Some("allow 8.8.8.0/24"));
        let upstream = UpstreamProxy::at("http://127.0.0.1:9").unwrap();
        spec.upstream = Some(upstream.except("8.8.8.9"));
        let through = check(&spec, None, target).await;
        let proxy = "http://127.0.0.1:9".to_owned();
        assert_eq!(through.way, Some(Way::ByAddress { proxy }));
        let excepted = check(&spec, None, "8.8.8.9").await;
        assert_eq!(excepted.way, Some(Way::Excepted));
        let closed = check(&spec, Some(&RuleSet::deny()), target).await;
        assert_eq!((closed.allowed, closed.way), (false, None));
        assert_eq!(closed.reason.as_deref(), Some("not-allowed"));
        assert!(closed.denial.unwrap().contains("no rule allows"));
        let blocking = RuleSet::deny().block("8.8.8.8").unwrap();
        spec.above = Above {
            organization: Some(blocking.into()),
            user: None,
        };
        let blocked = check(&spec, None, target).await;
        assert_eq!(blocked.rule.as_deref(), Some("organization: block 8.8.8.8"));
        assert!(at_rest(spec, None, "ftp://8.8.8.8").await.is_err());
    }
}
