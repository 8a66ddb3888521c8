//! Rules of several authors, one above the other.
//!
//! ```text
//!   built-in        the address floor and `localhost`: always there
//!   organization    whoever answers for the machine
//!   user            whoever uses it
//!   sandbox         whoever asked for this one sandbox
//! ```
//!
//! - **Blocks add up** and always win: what one layer blocks, no other can allow.
//! - **Limits add up**: a target has to be within the limit of every layer that has one, whatever allows it. Where
//!   a layer has a limit, an address that the floor refuses is opened only if that limit names its network and
//!   port, too.
//! - **Allows add up**, within blocks and limits.
//! - **The lowest layer's mode** says what happens to what no rule names.
//!
//! So a layer that is added below others can narrow what those leave open, and fill what they leave unsaid, but
//! never lift a block, widen a limit or pass the floor.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::policy::{
    EgressPolicy, Facts, RuleSet, Verdict,
    judge::{self, Tier},
};

/// Whose rules they are, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Layer {
    /// What always holds: the address floor and `localhost`.
    BuiltIn,
    /// Whoever answers for the machine.
    Organization,
    /// Whoever uses it.
    User,
    /// Whoever asked for the sandbox.
    Sandbox,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built-in",
            Self::Organization => "organization",
            Self::User => "user",
            Self::Sandbox => "sandbox",
        })
    }
}

/// A policy of up to three sets of rules above the built-in floor. Without any it denies everything.
///
/// ```
/// use sandbox_net::policy::{Carriage, EgressPolicy, Facts, Layer, Layers, RuleSet, Target};
///
/// let layers = Layers::new()
///     .organization(RuleSet::deny().block("*.example.net")?)
///     .sandbox(RuleSet::deny().allow("files.example.net")?);
/// let target = Target::parse("files.example.net:443")?;
/// let verdict = layers.judge(&Facts::new(&target, Carriage::Tunnel));
/// let denial = verdict.denial().unwrap();
/// assert_eq!(denial.layer(), Some(Layer::Organization));
/// assert_eq!(denial.rule.as_ref().unwrap().to_string(), "organization: block *.example.net");
/// # Ok::<(), sandbox_net::Error>(())
/// ```
///
/// In serialized form it has a set of rules under each layer's name. Cheap to clone.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    organization: Option<Arc<RuleSet>>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    user: Option<Arc<RuleSet>>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    sandbox: Option<Arc<RuleSet>>,
}

impl Layers {
    /// No layer but the floor: everything is denied.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the organization's rules.
    #[must_use]
    pub fn organization(mut self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.organization = Some(rules.into());
        self
    }

    /// Sets the user's rules.
    #[must_use]
    pub fn user(mut self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.user = Some(rules.into());
        self
    }

    /// Sets the sandbox's own rules.
    #[must_use]
    pub fn sandbox(mut self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.sandbox = Some(rules.into());
        self
    }

    /// Lists the layers that have rules, the strongest first.
    pub fn iter(&self) -> impl Iterator<Item = (Layer, &RuleSet)> + Clone {
        let layers = [
            (Layer::Organization, &self.organization),
            (Layer::User, &self.user),
            (Layer::Sandbox, &self.sandbox),
        ];
        layers
            .into_iter()
            .filter_map(|(layer, rules)| Some((layer, &**rules.as_ref()?)))
    }
}

impl EgressPolicy for Layers {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let tiers = self.iter().map(|(layer, rules)| Tier {
            layer: Some(layer),
            rules,
        });
        judge::judge(tiers, facts)
    }

    /// `None`: it is more than one set of rules; [`Layers`] itself can be written down.
    fn rules(&self) -> Option<&RuleSet> {
        None
    }
}

mod shared {
    //! Rules behind a shared pointer, written as they are.

    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::policy::RuleSet;

    pub(super) fn serialize<S: Serializer>(
        rules: &Option<Arc<RuleSet>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        rules.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<RuleSet>>, D::Error> {
        Ok(Option::<RuleSet>::deserialize(deserializer)?.map(Arc::new))
    }
}

#[cfg(test)]
mod tests;
