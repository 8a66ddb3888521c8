//! Work on the host's folder that no cycle comes between.

use sandbox_base::ErrorKind;

use super::Driver;
use crate::error::Error;
use crate::session::Alone;

impl Driver {
    /// Has the work done, which answers, and brings what it did to the other side; `false` ends the session.
    pub(super) async fn alone(&mut self, Alone(work): Alone) -> bool {
        // The next plan is one for everything: what is done here comes from no plan.
        self.engine.scope.widen();
        let root = self.engine.root.clone();
        let writes = self.engine.options.writes_to_host();
        let done = tokio::task::spawn_blocking(move || match writes {
            true => work(Ok(&root)),
            false => {
                let detail = "the workspace is read-only";
                work(Err(Error::new(
                    ErrorKind::Unsupported,
                    "write to the host",
                    detail,
                )));
            }
        });
        if let Err(error) = done.await {
            return self.fail(&Error::io(
                "work on the host's folder",
                std::io::Error::other(error),
            ));
        }
        self.unasked(true).await
    }
}
