//! The sockets that the crate opens and accepts, looked at from beside it: all are this process's own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

use rustix::{
    net::{SocketAddrAny, getpeername, getsockname, sockopt::tcp_nodelay},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use sandbox_base::BoxStream;
use sandbox_net::guest::{self, capture};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{
    captured::Loopback,
    support::{Origin, allowing, connect, proxy, within},
};

/// Finds this process's socket between two addresses, and tells whether it sends small writes at once.
fn sends_at_once(local: SocketAddr, peer: SocketAddr) -> bool {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let sockets = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_socket = std::fs::read_link(&path)
            .ok()?
            .to_str()?
            .starts_with("socket:");
        let number: RawFd = path.file_name()?.to_str()?.parse().ok()?;
        is_socket.then_some(number)
    });
    let is = |found: Option<SocketAddrAny>, wanted| {
        found.is_some_and(|found| SocketAddr::try_from(found) == Ok(wanted))
    };
    let found = sockets
        .filter_map(|number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).ok())
        .find(|file: &OwnedFd| {
            is(getsockname(file).ok(), local) && is(getpeername(file).ok().flatten(), peer)
        });
    tcp_nodelay(found.expect("the socket is open")).unwrap()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn e78_neither_the_proxys_side_to_the_sandbox_nor_that_to_the_origin_waits_to_fill_a_packet()
{
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut stream| {
        seen.send(stream.peer_addr().unwrap()).unwrap();
        async move { drop(stream.read_u8().await) }
    })
    .await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let (listener, address) = listener().await;
    let serving = tokio::spawn(async move { proxy.listen(listener).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = connect(&mut client, &origin.address.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        sends_at_once(address, client.local_addr().unwrap()),
        "accepted"
    );
    let dialled = within(sees.recv()).await.unwrap();
    assert!(sends_at_once(dialled, origin.address), "dialled");
    serving.abort();
}

#[tokio::test]
async fn e78_the_proxys_port_inside_does_not_wait_to_fill_a_packet() {
    let (listener, address) = listener().await;
    let serving = tokio::spawn(guest::serve(listener, || async {
        let (near, mut far) = tokio::io::duplex(64);
        tokio::spawn(async move { far.write_all(b"x").await });
        Ok(Box::new(near) as BoxStream)
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    within(client.read_u8()).await.unwrap();
    assert!(sends_at_once(address, client.local_addr().unwrap()));
    serving.abort();
}

#[tokio::test]
async fn e78_what_is_captured_does_not_wait_to_fill_a_packet() {
    let (network, opened) = (Loopback::default(), Arc::new(Semaphore::new(0)));
    let told = Arc::clone(&opened);
    // A host that takes the stream and says nothing.
    let open = move || {
        told.add_permits(1);
        std::future::pending::<std::io::Result<BoxStream>>()
    };
    let capture = capture::start(network.clone(), &[443], open).await.unwrap();
    let address = network.at(443).unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let running = tokio::spawn(async move {
        capture.run().await;
    });
    // One stream is for questions, the other for the connection.
    drop(within(opened.acquire_many(2)).await.unwrap());
    assert!(sends_at_once(address, client.local_addr().unwrap()));
    running.abort();
}
