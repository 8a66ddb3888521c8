//! A fake policy for embedders' tests: it does as it is told and remembers what it was asked.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::policy::{
    Candidate, Carriage, Denial, EgressPolicy, Facts, Hello, RequestLine, RuleSet, Target, Verdict,
};

/// One question, as it was put to a [`Scripted`] policy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asked {
    /// The target.
    pub target: Target,
    /// How its bytes were to travel.
    pub carriage: Carriage,
    /// The addresses, if they were known.
    pub candidates: Option<Vec<Candidate>>,
    /// The client's first bytes, if they were known.
    pub hello: Option<Hello>,
    /// The request, if it was known.
    pub request: Option<RequestLine>,
}

/// A policy that answers as rules say, but for targets whose answer was set by hand.
#[derive(Debug)]
pub struct Scripted {
    rules: RuleSet,
    denials: HashMap<Target, Denial>,
    asked: Mutex<Vec<Asked>>,
}

impl Scripted {
    /// Answers as these rules do.
    pub fn new(rules: RuleSet) -> Self {
        Self {
            rules,
            denials: HashMap::new(),
            asked: Mutex::default(),
        }
    }

    /// Denies a target, whatever the rules say.
    #[must_use]
    pub fn with_denial(mut self, target: Target, denial: Denial) -> Self {
        self.denials.insert(target, denial);
        self
    }

    /// Lists what was asked so far, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl EgressPolicy for Scripted {
    fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let asked = Asked {
            target: facts.target.clone(),
            carriage: facts.carriage,
            candidates: facts.candidates.map(<[_]>::to_vec),
            hello: facts.hello.cloned(),
            request: facts.request.cloned(),
        };
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(asked);
        match self.denials.get(facts.target) {
            Some(denial) => Verdict::Deny(denial.clone()),
            None => self.rules.judge(facts),
        }
    }

    fn rules(&self) -> Option<&RuleSet> {
        None
    }
}
