//! Many connections at a time: idle ones for their memory, active ones for their errors.

use std::{path::Path, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox_benches::Result;
use tokio::{
    task::JoinSet,
    time::{error::Elapsed, timeout},
};

use crate::{
    client::{Client, Way, exchange},
    origin::Origin,
    rivals::{Rival, Running},
    table::Table,
};

const IDLE: usize = 10_000;
const ACTIVE: usize = 2_000;
/// How many are opened at the same time, which a listener's queue holds.
const OPENING: usize = 100;
/// How long a crowd may take to form.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long after that memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// Raises the soft limit of open files to the hard one, and the hard one as far as this user may.
pub(crate) fn raise_descriptors() {
    let wanted = Rlimit {
        current: Some(65_536),
        maximum: Some(65_536),
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    if hard.is_none_or(|hard| hard >= 65_536) || setrlimit(Resource::Nofile, wanted).is_err() {
        let soft = Rlimit {
            current: hard,
            maximum: hard,
        };
        setrlimit(Resource::Nofile, soft).ok();
    }
    let now = getrlimit(Resource::Nofile).current;
    if tunnels() < IDLE {
        eprintln!(
            "{now:?} open files are the hard limit: {} idle tunnels in place of {IDLE}",
            tunnels()
        );
    }
}

pub(crate) async fn measure(
    table: &mut Table,
    (rival, program): (Rival, &Path),
    origin: &Origin,
) -> Result<()> {
    for _ in 0..5 {
        let running = Running::start(rival, program, origin).await?;
        table.add(
            "start to ready",
            "ms",
            (rival, running.ready.as_secs_f64() * 1e3),
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        table.add("resident, idle", "MiB", (rival, running.resident()?));
    }
    let running = Running::start(rival, program, origin).await?;
    let client = Client::new(origin, (running.address, Way::Asking))?;
    if let Ok(failed) = timeout(PATIENCE, active(&client)).await {
        let row = "2,000 requests at a time, failed";
        table.add(row, "", (rival, failed as f64));
    }
    drop(running);

    let running = Running::start(rival, program, origin).await?;
    let client = Client::new(origin, (running.address, Way::Asking))?;
    let opened = timeout(PATIENCE, idle_plain(&client)).await;
    if let Some(streams) = told(rival, opened) {
        tokio::time::sleep(SETTLE).await;
        let row = "resident, 10,000 kept-alive connections";
        table.add(row, "MiB", (rival, running.resident()?));
        drop(streams);
    }
    drop(running);

    let running = Running::start(rival, program, origin).await?;
    let client = Client::new(origin, (running.address, Way::Asking))?;
    tokio::time::sleep(SETTLE).await;
    let before = running.resident()?;
    let opened = timeout(PATIENCE, idle_tunnels(&client)).await;
    if let Some(streams) = told(rival, opened) {
        tokio::time::sleep(SETTLE).await;
        let each = (running.resident()? - before) * 1024.0 / streams.len() as f64;
        table.add("an open tunnel that is idle", "KiB", (rival, each));
    }
    Ok(())
}

/// Says what a rival did not manage.
fn told<T>(rival: Rival, opened: std::result::Result<Result<T>, Elapsed>) -> Option<T> {
    match opened {
        Ok(Ok(streams)) => return Some(streams),
        Ok(Err(error)) => eprintln!("{rival}: a crowd of idle connections: {error}"),
        Err(_) => eprintln!("{rival}: a crowd of idle connections: not open after {PATIENCE:?}"),
    }
    None
}

/// As many as the limit of open files allows, up to 10,000: each tunnel has two ends here and two in the proxy.
fn tunnels() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(500) / 2).map_or(IDLE, |most| most.min(IDLE))
}

/// Returns how many of the requests failed that were all under way at the same time.
async fn active(client: &Client) -> usize {
    let all = std::sync::Arc::new(tokio::sync::Barrier::new(ACTIVE));
    let opening = std::sync::Arc::new(tokio::sync::Semaphore::new(OPENING));
    let mut clients = JoinSet::new();
    for _ in 0..ACTIVE {
        let (client, all, opening) = (client.clone(), all.clone(), opening.clone());
        clients.spawn(async move {
            let place = opening.acquire().await;
            let stream = client.tunnel().await;
            drop(place);
            all.wait().await;
            let request = client.tunnel_request("/");
            let mut stream = stream?;
            exchange(&mut stream, &request, &mut Vec::new()).await
        });
    }
    let mut failed = 0;
    while let Some(done) = clients.join_next().await {
        if !matches!(done, Ok(Ok(()))) {
            failed += 1;
        }
    }
    failed
}

/// Connections that have served a request and wait for another.
async fn idle_plain(client: &Client) -> Result<Vec<tokio::net::TcpStream>> {
    let request = client.plain_request();
    let mut streams = Vec::new();
    for _ in 0..IDLE {
        let mut stream = client.plain_connection().await?;
        exchange(&mut stream, &request, &mut Vec::new()).await?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Tunnels that have carried a TLS handshake.
async fn idle_tunnels(
    client: &Client,
) -> Result<Vec<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>> {
    let mut streams = Vec::new();
    for _ in 0..tunnels() {
        streams.push(client.tunnel().await?);
    }
    Ok(streams)
}
