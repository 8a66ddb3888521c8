//! **No wall at all**: the agent as a plain child process of the embedder's.
//!
//! For the tests of embedders, who want the whole conversation with an agent (commands, terminals, files,
//! streams to the host) without booting anything: it starts in milliseconds. What runs "inside" runs on
//! the host, as the user who started the tests, with all that user's rights, files and network. It is
//! behind the feature `testing`, reports [`Isolation::None`], and satisfies no demand for isolation.
//!
//! ```text
//!  Plain::start ─▶ sandbox-helper agent        on a socket pair, which is its standard input
//!                    └── commands              killed with it, and it ends when the socket closes
//! ```
//!
//! It prepares nothing: disks, mounts, the host's name and its clock in a
//! [`Setup`](crate::channel::protocol::Setup) are passed over. There are no control groups, so a command's
//! processes that leave its session outlive it (and die with the machine), and no limit on processes or
//! memory holds. Commands run as other users only if the tests run as root.

mod machine;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_base::ErrorKind;

use crate::Error;
use crate::hypervisor::{
    Acceleration, Availability, Capabilities, Hypervisor, Isolation, Machine, MachineSpec,
};

/// The backend's name.
const NAME: &str = "plain";

/// Machines that are plain child processes. No wall at all: for tests.
#[derive(Debug, Clone)]
pub struct Plain {
    helper: PathBuf,
}

impl Plain {
    /// Makes the backend from the helper binary. Nothing is looked for before it is used.
    pub fn new(helper: impl Into<PathBuf>) -> Self {
        Self {
            helper: helper.into(),
        }
    }
}

#[async_trait]
impl Hypervisor for Plain {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::None);
        capabilities.users = rustix::process::geteuid().is_root();
        capabilities.disks = false;
        capabilities.control_groups = false;
        // Its network is the host's.
        capabilities.capture = false;
        capabilities
    }

    async fn probe(&self) -> Result<Availability, Error> {
        if !self.helper.is_file() {
            let detail = format!("there is no helper binary at {}", self.helper.display());
            return Err(
                Error::new(ErrorKind::Unsupported, "start plain processes").with_detail(detail)
            );
        }
        Ok(Availability {
            version: "no isolation".into(),
            acceleration: Acceleration::NotApplicable,
            notes: vec!["nothing stands between commands and the host".into()],
        })
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, Error> {
        Ok(Arc::new(machine::start(&self.helper, &spec.folder)?))
    }
}
