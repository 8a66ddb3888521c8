//! What a sandbox is and how it runs, for people and programs to read.

use sandbox_vm::hypervisor::{Acceleration, Isolation, MachineFacts};
use sandbox_vm::template::Started;
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Lifetime, State};
use crate::spec::{Limits, Workspace};
use crate::state::Record;

/// What a sandbox is and how it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// What it may use.
    pub limits: Limits,
    /// Its workspaces.
    pub workspaces: Vec<Workspace>,
    /// How its machine runs, while it does.
    pub machine: Option<MachineDescription>,
}

/// How a machine runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineDescription {
    /// The backend.
    pub backend: String,
    /// The class of the wall.
    pub isolation: Isolation,
    /// How its instructions are executed.
    pub acceleration: Acceleration,
    /// The process that is the machine.
    pub pid: Option<u32>,
    /// Whether it was restored from a template, or why it was booted.
    pub started: Started,
    /// Whether programs inside that know of no proxy reach what the policy allows.
    pub capture: CaptureState,
}

/// Whether connections and name lookups of programs that know of no proxy are led to the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CaptureState {
    /// They are, and are judged like those that come by the proxy.
    Works,
    /// They reach nothing; programs have to heed the proxy variables.
    Missing {
        /// Why, for people. It may be text from the guest.
        reason: String,
    },
}

impl Description {
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            name: record.name.clone(),
            state: record.state,
            lifetime: record.lifetime,
            created: record.created,
            limits: record.spec.limits.clone(),
            workspaces: record.spec.workspaces.clone(),
            machine: None,
        }
    }

    pub(crate) fn add_machine(&mut self, facts: &MachineFacts, capture: CaptureState) {
        self.machine = Some(MachineDescription {
            backend: facts.backend.to_owned(),
            isolation: facts.isolation,
            acceleration: facts.acceleration,
            pid: facts.pid,
            started: facts.started.clone(),
            capture,
        });
    }
}
