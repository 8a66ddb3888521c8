//! The agent: the guest halves of the crates, put together.

use std::io;
use std::net::SocketAddrV4;

use sandbox_net::guest::capture;
use sandbox_vm::channel::Stream;
use sandbox_vm::guest::{Agent, CaptureNet, Role, Services, Serving, init};
use tokio::net::{TcpListener, UdpSocket};

/// Runs as the first process of a machine. When that fails the machine is powered off: a first process
/// that ends is a kernel panic, which tells nobody why.
pub(crate) fn first_process() -> io::Result<()> {
    let error = match runtime()?.block_on(init::run(services())) {
        Ok(()) => io::Error::other("the agent ended"),
        Err(error) => error,
    };
    super::report(&error);
    Err(init::power_off())
}

/// Runs on standard input, which is a socket, until it closes.
pub(crate) fn plain_process() -> io::Result<()> {
    use std::os::fd::AsFd;
    let socket = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::from_std(socket)?;
        Agent::new(Role::PlainProcess, services())?
            .serve(Box::new(stream))
            .await;
        Ok(())
    })
}

/// One thread: what forks and what reaps must never run at once.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn services() -> Services {
    Services::new()
        .with_stream("sync", |stream| Box::pin(synchronize(stream)))
        .with_listener("egress", |listener, host| {
            Box::pin(async move {
                let served = sandbox_net::guest::serve(listener, move || {
                    let host = host.clone();
                    async move { Ok(Box::new(host.open().await?) as sandbox_base::BoxStream) }
                });
                let Err(error) = served.await;
                super::report(&error);
            })
        })
        .with_capture("egress-captured", |captured| {
            Box::pin(async move {
                let (network, host) = (Network(captured.network), captured.host);
                let open = move || {
                    let host = host.clone();
                    async move { Ok(Box::new(host.open().await?) as sandbox_base::BoxStream) }
                };
                let capture = capture::start(network, &captured.ports, open).await?;
                let serving: Serving = Box::pin(async move {
                    capture.run().await;
                });
                Ok(serving)
            })
        })
}

/// The machine's namespace, as the network's half asks for it.
struct Network(CaptureNet);

impl capture::Network for Network {
    async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        self.0.listen(address).await
    }

    async fn bind(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        self.0.bind(address).await
    }
}

async fn synchronize(stream: Stream) {
    let options = sandbox_sync::guest::Options::default();
    if let Err(error) = sandbox_sync::guest::serve(Box::new(stream), options).await {
        super::report(&std::io::Error::other(error));
    }
}
