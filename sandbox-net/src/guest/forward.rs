//! The proxy's port inside: connections to it become streams to the host.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sandbox_base::BoxStream;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

/// Where the guest's half listens unless told otherwise.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);

/// The most connections that are carried at a time; more wait in the listener's queue, where the host's own
/// bound applies to what comes through.
const MAX_CONNECTIONS: usize = 1024;
/// How long to wait when the system has no descriptor for another connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts connections and splices each to a new stream to the host.
///
/// Half-closed connections stay open in the other direction. A connection for which no stream can be opened is
/// closed at once. Dropping the future stops accepting and closes every connection.
///
/// # Errors
///
/// What the listener answers when it cannot go on. A lack of descriptors is waited out.
pub async fn serve<F, S>(listener: TcpListener, open: F) -> io::Result<Infallible>
where
    F: Fn() -> S,
    S: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    accept(listener, move |stream| {
        let opening = open();
        async move {
            if let Err(error) = carry(stream, opening).await {
                tracing::debug!(%error, "a connection to the proxy broke");
            }
        }
    })
    .await
}

/// Accepts connections and serves each, so many at a time.
pub(super) async fn accept<S>(
    listener: TcpListener,
    mut serve: impl FnMut(TcpStream) -> S,
) -> io::Result<Infallible>
where
    S: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut serving = JoinSet::new();
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (stream, _) = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => break accepted,
                    Err(error) if error.raw_os_error().is_some() => {
                        tokio::time::sleep(BACK_OFF).await;
                    }
                    Err(error) => return Err(error),
                },
                Some(_) = serving.join_next() => {}
            }
        };
        let served = serve(stream);
        serving.spawn(async move {
            served.await;
            drop(place);
        });
    }
}

async fn carry(
    mut inside: TcpStream,
    opening: impl Future<Output = io::Result<BoxStream>>,
) -> io::Result<()> {
    inside.set_nodelay(true)?;
    let mut outside = opening.await?;
    copy_bidirectional(&mut inside, &mut outside).await?;
    Ok(())
}

/// Returns the environment variables that lead programs to the proxy, in the spellings that are in use.
///
/// `http_proxy` in lower case is the only form that curl reads for plain HTTP; others read only capitals.
/// `ALL_PROXY` is for programs that speak other protocols through CONNECT, which a rule has to allow by port.
/// `NO_PROXY` keeps the guest's own services inside.
pub fn proxy_environment(proxy: SocketAddr) -> Vec<(String, String)> {
    let url = format!("http://{proxy}");
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let values = names.map(|name| (name, url.as_str()));
    values
        .into_iter()
        .chain([("NO_PROXY", "localhost,127.0.0.1,::1")])
        .flat_map(|(name, value)| {
            [name.to_owned(), name.to_ascii_lowercase()].map(|name| (name, value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e80_both_spellings_name_the_proxy_and_spare_the_guest_itself() {
        let variables = proxy_environment(LISTEN);
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
            let found = variables.iter().find(|(key, _)| key == name);
            assert_eq!(found.unwrap().1, "http://127.0.0.1:3128");
        }
        let (_, spared) = variables.iter().find(|(key, _)| key == "no_proxy").unwrap();
        assert!(spared.split(',').any(|host| host == "::1"));
    }
}
