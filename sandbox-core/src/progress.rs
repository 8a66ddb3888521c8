//! What a person who waits is told, of machines and of workspaces.

use serde::{Deserialize, Serialize};

/// One step of something that takes long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// A kernel or an image is being obtained or made.
    Machine(sandbox_vm::Step),
    /// A workspace is being brought into agreement.
    Workspace(sandbox_sync::Step),
}

/// Where steps are reported to. Cheap to clone; called from any thread.
pub type Progress = sandbox_base::Progress<Step>;
