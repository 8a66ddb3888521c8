//! What the suite found.

use std::fmt;

/// What was found, check by check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// In the order in which the checks ran.
    pub outcomes: Vec<Outcome>,
}

/// One check and what it found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// The check's name: a subject and an expectation.
    pub name: &'static str,
    /// What it found.
    pub finding: Finding,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// As it should be.
    Passed,
    /// The backend says that it cannot do this.
    Skipped(String),
    /// Not as it should be.
    Failed(String),
}

impl Report {
    /// Tells whether no check failed.
    pub fn passed(&self) -> bool {
        let failed = |outcome: &Outcome| matches!(outcome.finding, Finding::Failed(_));
        !self.outcomes.iter().any(failed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Outcome { name, finding } in &self.outcomes {
            match finding {
                Finding::Passed => writeln!(f, "ok       {name}")?,
                Finding::Skipped(reason) => writeln!(f, "skipped  {name}: {reason}")?,
                Finding::Failed(reason) => writeln!(f, "FAILED   {name}: {reason}")?,
            }
        }
        Ok(())
    }
}
