//! Secrets end to end: a program in a real microVM sends a placeholder, a server of this test gets the value.

use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use sandbox_core::net::credentials::{Credential, Grant, Place as Stands, Secret, Source};
use sandbox_core::{ErrorKind, Limits, NetworkPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::place::{Place, files_with, sh};

const VALUE: &str = "the-value-that-stays-outside";

/// A TLS server that keeps every head it gets. Returns its port and its certificate.
async fn serve(heads: Arc<Mutex<Vec<String>>>) -> (u16, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let pem = certificate.pem();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else {
                    break;
                };
                head.push(byte);
            }
            heads.lock().unwrap().push(String::from_utf8(head).unwrap());
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
            drop(stream.write_all(answer).await);
            drop(stream.shutdown().await);
        }
    });
    (port, pem)
}

/// The heads that came; of a request that was refused there is a connection, and nothing on it.
fn requests(heads: &Mutex<Vec<String>>) -> Vec<String> {
    let heads = heads.lock().unwrap();
    heads
        .iter()
        .filter(|head| !head.is_empty())
        .cloned()
        .collect()
}

fn credential(port: u16, source: Source) -> Credential {
    let grant = Grant::new(
        &format!("127.0.0.1:{port}"),
        [Stands::Header("x-api-key".into())],
    );
    Credential::new("api", source)
        .grant(grant.unwrap())
        .variable("API_KEY")
}

#[tokio::test(flavor = "multi_thread")]
async fn e65_e75_programs_send_placeholders_and_hosts_get_values() {
    let place = Place::new();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let (port, root) = serve(Arc::clone(&heads)).await;
    let rules = NetworkPolicy::deny()
        .allow(&format!("127.0.0.1/32:{port}"))
        .unwrap();
    let source = Source::Value(Secret::new(VALUE).unwrap());
    let sandbox = place
        .microvm()
        .network(rules)
        .limits(Limits::default().disk_mib(256))
        .secret(credential(port, source))
        .root_certificates(root)
        .create()
        .await
        .unwrap();

    let placeholder = sh(&sandbox, "echo $API_KEY").await;
    assert!(placeholder.contains("sbxplaceholder"), "{placeholder}");
    let curl =
        format!("curl -sS --noproxy '' -H \"X-Api-Key: $API_KEY\" https://127.0.0.1:{port}/a");
    assert_eq!(sh(&sandbox, &curl).await, "hello");
    let python = format!(
        "python3 -c 'import os, urllib.request as r; \
         p = r.ProxyHandler({{\"https\": os.environ[\"HTTPS_PROXY\"]}}); \
         q = r.Request(\"https://127.0.0.1:{port}/b\", headers={{\"X-Api-Key\": os.environ[\"API_KEY\"]}}); \
         os.environ.pop(\"no_proxy\"); os.environ.pop(\"NO_PROXY\"); \
         print(r.build_opener(p).open(q).read().decode())'"
    );
    assert_eq!(sh(&sandbox, &python).await, "hello");
    {
        let heads = heads.lock().unwrap();
        assert_eq!(heads.len(), 2);
        assert!(heads.iter().all(|head| head.contains(VALUE)), "{heads:?}");
    }
    // Somewhere else in the request it is refused, with the reason.
    let misplaced =
        format!("curl -sS --noproxy '' -H \"X-Other: $API_KEY\" https://127.0.0.1:{port}/");
    assert!(
        sh(&sandbox, &misplaced)
            .await
            .contains("placeholder-misplaced")
    );

    // Live: what is dropped is refused, what is new arrives behind the same placeholder.
    sandbox.revoke_secret("api").await.unwrap();
    assert!(sh(&sandbox, &curl).await.contains("credential-revoked"));
    let next = Secret::new("the-next-value").unwrap();
    sandbox.replace_secret("api", next).await.unwrap();
    assert_eq!(sh(&sandbox, &curl).await, "hello");
    assert!(requests(&heads)[2].contains("the-next-value"));
    sandbox.reload_secret("api").await.unwrap();
    assert_eq!(sh(&sandbox, &curl).await, "hello");
    assert!(requests(&heads)[3].contains(VALUE));
    let unknown = sandbox.revoke_secret("other").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);

    let seen = sh(&sandbox, "env; cat /run/sandbox/trust/*.pem").await;
    assert!(
        seen.contains("BEGIN CERTIFICATE") && !seen.contains(VALUE) && !seen.contains("PRIVATE")
    );
    let log = std::fs::read_to_string(sandbox.network_log()).unwrap();
    assert!(log.contains(r#""credential":"api""#), "{log}");
    for folder in [&place.dirs.state, &place.dirs.runtime] {
        assert_eq!(
            files_with(folder, &[VALUE]),
            "",
            "the value is written down"
        );
        std::fs::write(folder.join("control"), VALUE).unwrap();
        assert!(
            files_with(folder, &[VALUE]).contains("control"),
            "the search finds what is there"
        );
        std::fs::remove_file(folder.join("control")).unwrap();
    }
    sandbox.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_cannot_be_detached_and_a_missing_one_stops_the_start() {
    let place = Place::new();
    let source = Source::Value(Secret::new(VALUE).unwrap());
    let builder = sandbox_core::Sandbox::builder().dirs(place.dirs.clone());
    let refused = builder
        .secret(credential(1, source))
        .detached()
        .create()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("api") && !format!("{refused:?}").contains(VALUE));
    let source = Source::Environment("SANDBOX_NO_SUCH_VARIABLE".into());
    let builder = sandbox_core::Sandbox::builder().dirs(place.dirs.clone());
    let missing = builder
        .secret(credential(1, source))
        .create()
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    place.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_a_detached_sandbox_is_revoked_and_fetched_again() {
    let place = Place::new();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let (port, root) = serve(Arc::clone(&heads)).await;
    let rules = NetworkPolicy::deny()
        .allow(&format!("127.0.0.1/32:{port}"))
        .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), VALUE).unwrap();
    let sandbox = place
        .microvm()
        .network(rules)
        .limits(Limits::default().disk_mib(256))
        .secret(credential(port, Source::File(file.path().to_owned())))
        .root_certificates(root)
        .detached()
        .create()
        .await
        .unwrap();
    let curl =
        format!("curl -sS --noproxy '' -H \"X-Api-Key: $API_KEY\" https://127.0.0.1:{port}/a");
    assert_eq!(sh(&sandbox, &curl).await, "hello");
    sandbox.revoke_secret("api").await.unwrap();
    assert!(sh(&sandbox, &curl).await.contains("credential-revoked"));
    std::fs::write(file.path(), "the-next-value").unwrap();
    let value = Secret::new("not-sent-anywhere").unwrap();
    let refused = sandbox.replace_secret("api", value).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    sandbox.reload_secret("api").await.unwrap();
    assert_eq!(sh(&sandbox, &curl).await, "hello");
    let heads = requests(&heads);
    assert_eq!(heads.len(), 2);
    assert!(heads[0].contains(VALUE) && heads[1].contains("the-next-value"));
    let unknown = sandbox.reload_secret("other").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    sandbox.remove().await.unwrap();
}
