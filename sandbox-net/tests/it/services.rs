//! Services of the host itself, and proxies, as destinations: hosts like any other.

use std::sync::Arc;

use sandbox_net::Proxy;
use tokio::io::AsyncReadExt;

use crate::support::{Origin, Rebinding, allowing, ask, body, client, connect, fetch, within};

/// The names by which container engines lead to their host.
const ALIASES: [&str; 3] = [
    "host.docker.internal",
    "gateway.docker.internal",
    "host.containers.internal",
];

fn resolving(rules: &[String], to: &str) -> Proxy {
    let builder = Proxy::builder(Arc::new(allowing(rules)));
    builder.resolver(Rebinding::new(&[to])).build()
}

#[tokio::test]
async fn e87_a_service_of_the_host_needs_its_address_and_port_whatever_it_is_called() {
    let origin = Origin::mirror().await;
    let port = origin.port();
    for alias in ALIASES {
        let named = format!("{alias}:{port}");
        let elsewhere = format!("127.0.0.1/32:{}", port.wrapping_add(1).max(1));
        for rules in [vec![named.clone()], vec![named.clone(), elsewhere]] {
            let answer = fetch(&resolving(&rules, "127.0.0.1"), &format!("http://{named}/")).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            assert_eq!(body(&answer)["reason"], "address-refused");
        }
        assert_eq!(origin.connections(), 0);
    }
    let rules = [format!("{}:{port}", ALIASES[0]), origin.rule()];
    let answer = fetch(
        &resolving(&rules, "127.0.0.1"),
        &format!("http://{}:{port}/", ALIASES[0]),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // What opens the network around it does not open the metadata service, whatever leads there.
    let rules = [format!("{}:80", ALIASES[0]), "169.254.0.0/16:80".to_owned()];
    let metadata = resolving(&rules, "169.254.169.254");
    let answer = fetch(&metadata, &format!("http://{}/", ALIASES[0])).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "address-refused");
}

/// A cache of packages answers origin form with a path that names a host, and would answer absolute form and CONNECT
/// for any host.
#[tokio::test]
async fn e88_a_proxy_as_destination_is_asked_as_an_origin_only() {
    let cache = Origin::mirror().await;
    let proxy = resolving(&[cache.rule()], "127.0.0.1");
    for path in ["/deb.example.org/pool/x.deb", "/http://evil.test/x"] {
        let answer = fetch(&proxy, &format!("http://{}{path}", cache.address)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (_, told) = answer.split_once("\r\n\r\n").unwrap();
        let line = format!("GET {path} HTTP/1.1\r\n");
        assert!(told.starts_with(&line), "{told}");
        let host = format!("host: {}\r\n", cache.address);
        assert!(told.to_ascii_lowercase().contains(&host), "{told}");
    }
    let before = cache.connections();
    // The URI is what is judged, and whose host is dialled; that the cache stands in `Host` leads nowhere.
    let led = format!(
        "GET http://evil.test/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        cache.address
    );
    let answer = ask(&proxy, &led).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let mut stream = client(&proxy);
    let head = connect(&mut stream, "evil.test:443").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(cache.connections(), before);
}
