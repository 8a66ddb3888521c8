//! Who is believed: origins, names, and the sandbox's authority.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use sandbox_net::{
    Proxy,
    event::{Decided, Kind},
    inspect::Inspector,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::support::{Flaw, Sandbox, Site, trusting};
use crate::support::{Rebinding, body, client, client_hello, connect, next, within};

#[tokio::test]
async fn e73_an_origin_that_is_not_valid_is_answered_for_and_never_asked() {
    for (flaw, text) in [
        (Flaw::Expired, "the host's certificate has expired"),
        (
            Flaw::OtherName,
            "the host's certificate is for another name",
        ),
        (
            Flaw::UnknownIssuer,
            "nobody who is trusted vouches for the host's certificate",
        ),
    ] {
        let site = Site::mirror(&["h2", "http/1.1"], flaw).await;
        let sandbox = Sandbox::new(&site, &[]).await;
        let mut events = sandbox.proxy.subscribe();
        let mut stream = sandbox.http1().await;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
            sandbox.target, sandbox.placeholder
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        drop(within(stream.read_to_string(&mut answer)).await);
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        let said = body(&answer);
        assert_eq!(
            (said["reason"].as_str(), said["message"].as_str()),
            (Some("certificate"), Some(text))
        );
        assert!(
            site.heads().is_empty(),
            "E72: unverified TLS carries nothing"
        );
        loop {
            let event = next(&mut events, Kind::Decision).await;
            if event.reason.as_deref() == Some("certificate") {
                break;
            }
        }
    }
}

#[tokio::test]
async fn e01_e02_an_opened_tunnel_needs_a_hello_for_its_own_name() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    for (first, reason) in [
        (client_hello(Some("evil.test")), "tls-name-mismatch"),
        (client_hello(None), "not-tls"),
        (b"SSH-2.0-x\r\n".to_vec(), "not-tls"),
        (
            b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n".to_vec(),
            "not-tls",
        ),
    ] {
        let mut events = sandbox.proxy.subscribe();
        let mut stream = client(&sandbox.proxy);
        connect(&mut stream, &sandbox.target).await;
        stream.write_all(&first).await.unwrap();
        let mut rest = Vec::new();
        drop(within(stream.read_to_end(&mut rest)).await);
        let event = next(&mut events, Kind::Decision).await;
        assert_eq!(
            (event.verdict, event.reason.as_deref()),
            (Some(Decided::Deny), Some(reason))
        );
    }
}

#[tokio::test]
async fn a_client_that_speaks_no_http_is_denied() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    assert!(sandbox.tls("api.test", &["mqtt"]).await.is_err());
    assert!(site.heads().is_empty());
}

#[tokio::test]
async fn e76_a_bypass_leaves_the_origins_own_certificate() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let inspector = Inspector::builder()
        .credentials(sandbox.credentials.clone())
        .bypass("api.test")
        .and_then(sandbox_net::inspect::InspectorBuilder::build)
        .unwrap();
    let proxy = Proxy::builder(Arc::new(site.rules()))
        .resolver(Rebinding::new(&["127.0.0.1"]))
        .inspector(inspector)
        .build();
    let mut stream = client(&proxy);
    connect(&mut stream, &sandbox.target).await;
    let config = Arc::new(trusting(&site.root, &["http/1.1"]));
    let name = ServerName::try_from("api.test").unwrap();
    let stream = within(TlsConnector::from(config).connect(name, stream)).await;
    let mut stream = stream.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nX-Key: {}\r\nConnection: close\r\n\r\n",
        sandbox.target, sandbox.placeholder
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    drop(within(stream.read_to_string(&mut answer)).await);
    assert!(
        answer.contains(&sandbox.placeholder),
        "nothing is put in: {answer}"
    );
}

#[tokio::test]
async fn e76_a_client_that_expects_another_certificate_is_told_of_the_bypass() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let mut events = sandbox.proxy.subscribe();
    let mut stream = client(&sandbox.proxy);
    connect(&mut stream, &sandbox.target).await;
    let config = Arc::new(trusting(&site.root, &["http/1.1"]));
    let name = ServerName::try_from("api.test").unwrap();
    assert!(
        within(TlsConnector::from(config).connect(name, stream))
            .await
            .is_err()
    );
    let event = next(&mut events, Kind::Refused).await;
    assert_eq!(event.reason.as_deref(), Some("tls-client"));
}

#[tokio::test]
async fn e74_a_target_without_a_grant_is_not_opened() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let mut sandbox = Sandbox::new(&site, &[]).await;
    sandbox.target = sandbox.target.replace("api", "plain");
    // Trusts the authority only, and is shown the origin's own certificate.
    assert!(sandbox.tls("plain.test", &["http/1.1"]).await.is_err());
}
