//! The guest's half in front of the host's.

use std::io;

use sandbox_base::BoxStream;
use sandbox_net::guest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Origin, allowing, connect, proxy, within};

#[tokio::test]
async fn connections_in_the_guest_reach_the_proxy_on_the_host() {
    let origin = Origin::echo().await;
    let proxy = proxy(allowing(&[origin.rule()]));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(guest::serve(listener, move || {
        let proxy = proxy.clone();
        async move {
            let (near, far) = tokio::io::duplex(4096);
            tokio::spawn(async move { proxy.serve(far).await });
            Ok(Box::new(near) as BoxStream)
        }
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = connect(&mut client, &origin.address.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client.write_all(b"half").await.unwrap();
    client.shutdown().await.unwrap();
    let mut echoed = String::new();
    within(client.read_to_string(&mut echoed)).await.unwrap();
    assert_eq!(echoed, "half");
    serving.abort();
}

#[tokio::test]
async fn a_host_that_opens_no_stream_closes_the_connection() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(guest::serve(listener, || async {
        Err::<BoxStream, _>(io::ErrorKind::BrokenPipe.into())
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut rest = Vec::new();
    drop(within(client.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
    serving.abort();
}
