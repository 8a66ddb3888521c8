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

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::policy::{
    EgressPolicy, Facts, RuleSet, Verdict,
    index::Index,
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
#[derive(Debug, Clone, Default)]
pub struct Layers {
    sets: [Option<Arc<RuleSet>>; 3],
    /// The rules of all sets.
    index: Arc<Index>,
}

impl Layers {
    /// No layer but the floor: everything is denied.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the organization's rules.
    #[must_use]
    pub fn organization(self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.with(0, rules.into())
    }

    /// Sets the user's rules.
    #[must_use]
    pub fn user(self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.with(1, rules.into())
    }

    /// Sets the sandbox's own rules.
    #[must_use]
    pub fn sandbox(self, rules: impl Into<Arc<RuleSet>>) -> Self {
        self.with(2, rules.into())
    }

    fn with(mut self, place: usize, rules: Arc<RuleSet>) -> Self {
        self.sets[place] = Some(rules);
        let mut index = Index::default();
        for (layer, rules) in self.iter() {
            for (list, clause) in rules.clauses() {
                let rule = list.rule(clause).in_layer(Some(layer));
                index.insert(list, clause, rule);
            }
        }
        self.index = Arc::new(index);
        self
    }

    /// Lists the layers that have rules, the strongest first.
    pub fn iter(&self) -> impl Iterator<Item = (Layer, &RuleSet)> + Clone {
        let layers = [Layer::Organization, Layer::User, Layer::Sandbox];
        layers
            .into_iter()
            .zip(&self.sets)
            .filter_map(|(layer, rules)| Some((layer, &**rules.as_ref()?)))
    }
}

impl EgressPolicy for Layers {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let tiers = self.iter().map(|(layer, rules)| Tier {
            layer: Some(layer),
            rules,
        });
        judge::judge(&self.index, tiers, facts)
    }

    /// `None`: it is more than one set of rules; [`Layers`] itself can be written down.
    fn rules(&self) -> Option<&RuleSet> {
        None
    }

    /// Those of every layer: allows add up.
    fn named_ports(&self) -> BTreeSet<u16> {
        let rules = self.iter().map(|(_, rules)| rules);
        rules.flat_map(RuleSet::named_ports).collect()
    }
}

/// Layers as they are written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<T>,
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [organization, user, sandbox] = self.sets.each_ref().map(Option::as_deref);
        let written = Written {
            organization,
            user,
            sandbox,
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::<RuleSet>::deserialize(deserializer)?;
        let sets = [written.organization, written.user, written.sandbox];
        let sets = sets.into_iter().enumerate();
        Ok(
            sets.fold(Self::new(), |layers, (place, rules)| match rules {
                Some(rules) => layers.with(place, rules.into()),
                None => layers,
            }),
        )
    }
}

#[cfg(test)]
mod tests;
