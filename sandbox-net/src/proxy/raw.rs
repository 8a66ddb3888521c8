//! An upgraded connection: bytes both ways, counted, and ended by a new policy like any other.

use std::fmt;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandbox_base::ByteStream;
use tokio::io::AsyncWriteExt;

use super::{client::Client, connection::ended, exchange::Exchange, pump::pump};

/// What is left of an exchange whose origin agreed to an upgrade.
pub(super) struct Raw {
    pub(super) upstream: OnUpgrade,
    /// Tells of the end when it is dropped.
    pub(super) exchange: Exchange,
}

impl Raw {
    /// Carries bytes until either side ends, or has to.
    pub(super) async fn run<S: ByteStream>(self, client: &Client, stream: &mut S, early: Vec<u8>) {
        let Ok(upstream) = self.upstream.await else {
            return; // the origin was gone at once
        };
        let mut upstream = TokioIo::new(upstream);
        let carry = async {
            upstream.write_all(&early).await?;
            pump(stream, &mut upstream).await
        };
        tokio::select! {
            carried = carry => if let Err(error) = carried {
                tracing::debug!(%error, "an upgraded connection broke");
            },
            () = ended(client, self.exchange.meter()) => {}
        }
        drop(self.exchange);
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").finish_non_exhaustive()
    }
}
