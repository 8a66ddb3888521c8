//! Work on the host's folder that no cycle comes between.

use sandbox_base::ErrorKind;

use super::Driver;
use crate::error::Error;
use crate::session::Alone;

impl Driver {
    /// Has the work done, which answers, and brings what it did to the other side; `false` ends the session.
    pub(super) async fn alone(&mut self, Alone { work, writes }: Alone) -> bool {
        let may = !writes || self.engine.options.writes_to_host();
        if writes {
            // The next plan is one for everything: what is done here comes from no plan.
            self.engine.scope.widen();
        }
        let since = self.since.clone();
        let done = tokio::task::spawn_blocking(move || match may {
            true => work(Ok(&since)),
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
        // A hint may have come just before, and only what writes may have made no event.
        self.unasked(writes).await
    }
}
