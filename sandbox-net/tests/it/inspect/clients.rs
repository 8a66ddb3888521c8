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

#[allow(clippy::print_stderr, reason = "a check that is skipped says so")]
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists());
    if !is_there {
        eprintln!("skipped: there is no {program} on this machine");
    }
    is_there
}

#[tokio::test(flavor = "multi_thread")]
async fn e75_clients_trust_the_authority_by_their_own_variables() {
    let site = Site::mirror(&["h2", "http/1.1"], Flaw::None).await;
    let sandbox = Sandbox::new(&site, &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = Inside::new(&sandbox, listener.local_addr().unwrap());
    let proxy = sandbox.proxy.clone();
    tokio::spawn(async move { proxy.listen(listener).await });
    let host = sandbox.target.as_str();
    let url = |path: &str| format!("https://{host}{path}");
    if is_there("curl") {
        inside.run("curl", &["-fsS", &url("/curl")]).await.unwrap();
        // Without its variable a client does not: it is what the variable does.
        let without = format!(
            "unset CURL_CA_BUNDLE SSL_CERT_FILE; curl -fsS {}",
            url("/x")
        );
        let stranger = inside.run("sh", &["-c", &without]).await;
        assert!(stranger.unwrap_err().contains("certificate"));
    }
    if is_there("python3") {
        inside
            .run("python3", &["-c", PYTHON, host, "/python"])
            .await
            .unwrap();
    }
    if is_there("node") {
        inside
            .run("node", &["-e", NODE, host, "/node"])
            .await
            .unwrap();
    }
    if is_there("git") {
        let said = inside
            .run("git", &["ls-remote", &url("/git")])
            .await
            .unwrap_err();
        assert!(
            !said.contains("certificate"),
            "it is no repository, and that is all: {said}"
        );
    }
    if std::env::var_os("SANDBOX_SLOW").is_some() && is_there("javac") {
        let source = inside.folder.path().join("Client.java");
        std::fs::write(&source, JAVA).unwrap();
        inside
            .run("java", &[source.to_str().unwrap(), host, "/java"])
            .await
            .unwrap();
    }
    let heads = site.heads();
    for path in ["/curl", "/python", "/node", "/git", "/java"] {
        let program = path
            .trim_start_matches('/')
            .replace("python", "python3")
            .replace("java", "javac");
        let slow = path == "/java" && std::env::var_os("SANDBOX_SLOW").is_none();
        let came = heads.iter().any(|head| head.contains(path));
        assert!(came || slow || !is_there(&program), "{path}: {heads:?}");
    }
    assert!(!heads.iter().any(|head| head.contains("/x ")));
}
