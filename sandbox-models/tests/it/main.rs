//! The back ends against the contract, and the endpoint against a server that behaves badly.

mod endpoint;
mod scripted;
mod server;

use std::time::Duration;

/// Bounds a test that hangs; far above what any of them takes.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .expect("the test does not hang")
}
