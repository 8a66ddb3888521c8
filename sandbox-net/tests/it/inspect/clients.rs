//! Real clients: each finds the proxy and the authority by its own variables, as it would inside.

use std::{net::SocketAddr, path::Path, process::Stdio};

use sandbox_net::{guest, inspect::trust};
use tokio::{net::TcpListener, process::Command};

use super::support::{Flaw, Sandbox, Site};
use crate::support::within;

/// Opens a tunnel and TLS in it by hand: not every version of Node finds a proxy by itself.
const NODE: &str = r#"
const [host, path] = process.argv.slice(1), proxy = new URL(process.env.HTTPS_PROXY);
require('http').request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: host})
  .on('connect', (_, socket) => require('https')
    .get({host, path, headers: {Host: host},
          createConnection: () => require('tls').connect({socket, servername: host.split(':')[0]})},
         answer => process.exit(answer.statusCode == 200 ? 0 : 1)))
  .end();
"#;

const PYTHON: &str = "import sys, urllib.request; \
    urllib.request.urlopen('https://' + sys.argv[1] + sys.argv[2]).read()";

const JAVA: &str = r#"
import java.net.*; import java.net.http.*;
class Client { public static void main(String[] a) throws Exception {
  var proxy = URI.create(System.getenv("HTTPS_PROXY"));
  var at = ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort()));
  var request = HttpRequest.newBuilder(URI.create("https://" + a[0] + a[1])).build();
  HttpClient.newBuilder().proxy(at).build().send(request, HttpResponse.BodyHandlers.ofString());
} }
"#;

/// A sandbox's environment, its files in a folder of this test.
struct Inside {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Inside {
    fn new(sandbox: &Sandbox, proxy: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_str().unwrap().to_owned();
        let files = trust::files(sandbox.inspector.authority().pem(), None);
        for (path, contents) in &files.own {
            std::fs::write(path.replace(trust::FOLDER, &here), contents).unwrap();
        }
        let mut variables = guest::proxy_environment(proxy);
        trust::add_variables(&mut variables);
        for (_, value) in &mut variables {
            *value = value.replace(trust::FOLDER, &here);
        }
        Self { folder, variables }
    }

    /// Runs a client; returns what it said wrong.
    async fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command.env_clear().envs(self.variables.iter().cloned());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder.path());
        let output = within(command.output())
            .await
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(said)
    }
}

/// Fails without a program that the test is about: `scripts/setup test` installs it.
fn require(program: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists());
    assert!(
        is_there,
        "there is no {program} on this machine: scripts/setup test"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn e75_clients_trust_the_authority_by_their_own_variables() {
    for program in ["curl", "python3", "node", "git"] {
        require(program);
    }
    let site = Site::mirror(&["h2", "http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = Inside::new(&sandbox, listener.local_addr().unwrap());
    let proxy = sandbox.proxy.clone();
    tokio::spawn(async move { proxy.listen(listener).await });
    let host = sandbox.target.as_str();
    let url = |path: &str| format!("https://{host}{path}");
    inside.run("curl", &["-fsS", &url("/curl")]).await.unwrap();
    // Without its variable a client does not: it is what the variable does.
    let without = format!(
        "unset CURL_CA_BUNDLE SSL_CERT_FILE; curl -fsS {}",
        url("/x")
    );
    let stranger = inside.run("sh", &["-c", &without]).await;
    assert!(stranger.unwrap_err().contains("certificate"));
    inside
        .run("python3", &["-c", PYTHON, host, "/python"])
        .await
        .unwrap();
    inside
        .run("node", &["-e", NODE, host, "/node"])
        .await
        .unwrap();
    let said = inside
        .run("git", &["ls-remote", &url("/git")])
        .await
        .unwrap_err();
    assert!(
        !said.contains("certificate"),
        "it is no repository, and that is all: {said}"
    );
    let slow = std::env::var_os("SANDBOX_SLOW").is_some();
    if slow {
        require("javac");
        let source = inside.folder.path().join("Client.java");
        std::fs::write(&source, JAVA).unwrap();
        inside
            .run("java", &[source.to_str().unwrap(), host, "/java"])
            .await
            .unwrap();
    }
    let heads = site.heads();
    for path in ["/curl", "/python", "/node", "/git", "/java"] {
        let came = heads.iter().any(|head| head.contains(path));
        assert_eq!(came, slow || path != "/java", "{path}: {heads:?}");
    }
    assert!(!heads.iter().any(|head| head.contains("/x ")));
}

#[cfg(feature = "sigv4")]
#[tokio::test(flavor = "multi_thread")]
async fn e65_what_a_client_signs_with_the_placeholder_arrives_as_signed_with_the_real_keys() {
    use sandbox_net::credentials::{Credential, Credentials, Grant, Place, Secret, Source};

    require("curl");
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let grant = Grant::new(&site.host(), [Place::SigV4(100)]).unwrap();
    let keys = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let source = Source::Value(Secret::new(keys).unwrap());
    let credentials = Credentials::load([Credential::new("ours", source).grant(grant)]).await;
    let sandbox = Sandbox::with(&site, credentials.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = Inside::new(&sandbox, listener.local_addr().unwrap());
    let proxy = sandbox.proxy.clone();
    tokio::spawn(async move { proxy.listen(listener).await });
    let root = inside.folder.path().join("root");
    std::fs::write(&root, &site.root).unwrap();
    // The same client straight to the host, with the real keys, says what has to arrive.
    let resolve = format!("{}:127.0.0.1", site.host());
    let straight = [
        "--noproxy",
        "*",
        "--resolve",
        &resolve,
        "--cacert",
        root.to_str().unwrap(),
    ];
    let guest = format!("{0}:{0}", sandbox.placeholder);
    let long = "x".repeat(101);
    let signed = async |service: &str, user: &str, path: &str, more: &[&str]| {
        let scope = format!("aws:amz:eu-west-1:{service}");
        let url = format!("https://{}{path}", site.host());
        let own = ["-fsS", "--aws-sigv4", &scope, "--user", user];
        inside
            .run("curl", &[&own[..], more, &[&url]].concat())
            .await
    };
    let header = |name: &str| {
        let head = site.heads().pop().unwrap();
        let at = head
            .find(&format!("(\"{name}\", "))
            .unwrap_or_else(|| panic!("{head}"));
        head[at..].split('"').nth(3).unwrap().to_owned()
    };
    let unsigned = "x-amz-content-sha256: UNSIGNED-PAYLOAD";
    for (service, path, body) in [
        ("service", "/a/b", &[][..]),
        ("service", "/a%20b/c", &["--data", "held to be signed"]),
        ("s3", "/bucket/a%2Bb", &["--data", &long, "-H", unsigned]),
    ] {
        // Both have to be signed in the same second.
        for attempt in 0.. {
            let direct = [&straight[..], body].concat();
            signed(service, keys, path, &direct).await.unwrap();
            let (date, expected) = (header("x-amz-date"), header("authorization"));
            signed(service, &guest, path, body).await.unwrap();
            assert!(expected.contains(" Credential=AKIDEXAMPLE/"), "{expected}");
            if header("x-amz-date") == date {
                assert_eq!(header("authorization"), expected, "{service} {path}");
                break;
            }
            assert!(
                attempt < 20,
                "this machine is too slow for two clients in one second"
            );
        }
    }
    let count = site.heads().len();
    let refused = signed("service", &guest, "/", &["--data", &long]).await;
    assert!(refused.unwrap_err().contains("403"), "too long to be held");
    let refused = signed(
        "service",
        &format!("{}:guess", sandbox.placeholder),
        "/",
        &[],
    )
    .await;
    assert!(refused.unwrap_err().contains("403"), "another secret key");
    let refused = signed("service", "AKIDOTHER:key", "/", &[]).await;
    assert!(refused.unwrap_err().contains("403"), "another account");
    let query = format!("/?X-Amz-Credential={}%2F20260830", sandbox.placeholder);
    let refused = inside
        .run(
            "curl",
            &["-fsS", &format!("https://{}{query}", site.host())],
        )
        .await;
    assert!(refused.unwrap_err().contains("403"), "presigned");
    assert_eq!(site.heads().len(), count, "nothing of that went on");
}
