//! The filtering proxy on its own: what `sandbox-net` does for a sandbox, for any program that takes a proxy.
//!
//! ```text
//! egress-proxy --allow-host '*.example.com' &
//! HTTPS_PROXY=http://127.0.0.1:3128 npm install
//! ```
//!
//! With `--authority` it looks into TLS where a rule names methods or paths, and at the hosts of `--inspect`; clients
//! have to trust the certificate that it writes to that file. Its key lives and dies with the process.
//!
//! Standard output is the events, one JSON object a line; standard error is for people. It ends at the first
//! SIGINT or SIGTERM, once the exchanges and tunnels under way have ended or `--grace` is over, and at once at the
//! second. The rules file is read again at SIGHUP; one that cannot be read leaves the rules as they are.
mod arguments;
mod events;
mod inspection;

use std::{io::Write, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use sandbox_net::{Limits, Proxy, resolve::DnsResolver};
use tokio::net::TcpListener;

use arguments::Arguments;

/// What goes wrong is told to the person who started it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let built = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let done = built
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = failure.to_string();
            let mut source = failure.source();
            while let Some(reason) = source {
                text += &format!(": {reason}");
                source = reason.source();
            }
            tell(&text);
            ExitCode::FAILURE
        }
    }
}

/// Tells a person, if one is there: nobody at the other end of standard error is no reason to end.
fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "egress-proxy: {text}"));
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let connections = arguments.connections;
    let descriptors = raise_descriptors();
    // Each connection of a client may need another one to an origin, and some are needed besides.
    if descriptors.is_some_and(|most| most < connections as u64 * 2 + 64) {
        tell(&format!(
            "{} open files are the hard limit: too few for {connections} connections",
            descriptors.unwrap_or_default()
        ));
    }
    let rules = arguments.rules()?;
    // Of many clients, no rate is too high.
    let limits = Limits::default()
        .with_connections(connections)
        .with_requests_per_second(0)
        .with_lookups_per_second(0);
    let mut proxy = Proxy::builder(Arc::new(rules)).limits(limits);
    if let Some(inspector) = inspection::inspector(&arguments)? {
        proxy = proxy.inspector(inspector);
    }
    if !arguments.name_server.is_empty() {
        let servers = arguments.name_server.iter().copied();
        proxy = proxy.resolver(Arc::new(DnsResolver::new(servers)));
    }
    if let Some(upstream) = arguments.upstream()? {
        tell(&format!("through {}", upstream.locations().join(" and ")));
        proxy = proxy.upstream_proxy(upstream);
    }
    let proxy = proxy.build();
    let writing = events::write(&proxy, &arguments)?;
    let listener = TcpListener::bind(arguments.listen).await?;
    tell(&format!("listening on {}", listener.local_addr()?));
    let mut signals = Signals::new()?;
    let serving = proxy.listen_until(listener, signals.first(&proxy, &arguments));
    let served = serve(serving, &arguments).await;
    // The last events are written before the end.
    drop(proxy);
    if let Some(writing) = writing {
        tokio::time::timeout(Duration::from_secs(2), writing)
            .await
            .ok();
    }
    served
}

/// Serves to the end; the grace begins to run when it is told to stop.
async fn serve(
    serving: impl Future<Output = std::io::Result<()>>,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut last = Signals::new()?;
    let over = async {
        last.stop().await;
        tokio::select! {
            () = last.stop() => {}
            () = tokio::time::sleep(arguments.grace.into()) => {}
        }
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = over => Ok(()),
    }
}

/// What the system tells a process.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the process shall end; reads the rules anew when it is told to.
    async fn first(&mut self, proxy: &Proxy, arguments: &Arguments) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hang_up.recv() => match arguments.rules() {
                    Ok(rules) => proxy.set_policy(Arc::new(rules)),
                    Err(error) => tell(&format!("the rules stay as they are: {error}")),
                },
            }
        }
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Only the console's interrupt, where there are no signals.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn first(&mut self, _: &Proxy, _: &Arguments) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        tokio::signal::ctrl_c().await.ok();
    }
}

/// Raises the number of files that may be open to the most that is allowed, and returns that; `None` if it is
/// without limit or unknown.
#[cfg(unix)]
fn raise_descriptors() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).ok();
    getrlimit(Resource::Nofile).current
}

#[cfg(not(unix))]
fn raise_descriptors() -> Option<u64> {
    None
}
