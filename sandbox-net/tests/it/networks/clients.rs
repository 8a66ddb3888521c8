//! Real clients through the proxy's port: each finds it, and what to trust, by its own variables.

use super::{Net, Tls};
use crate::world::{
    Node, OTHER, Ran,
    files::{self, apt_get},
    isolated,
};

const PYTHON: &str = "import sys, urllib.request; \
    print(urllib.request.urlopen(sys.argv[1]).read().decode())";

/// Opens a tunnel and TLS in it by hand: not every version of Node finds a proxy by itself.
const NODE: &str = r#"
const url = new URL(process.argv[1]), proxy = new URL(process.env.HTTPS_PROXY), host = url.hostname;
require('http').request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: host + ':443'})
  .on('connect', (answer, socket) => answer.statusCode != 200 ? process.exit(answer.statusCode - 400)
    : require('https').get({host, path: url.pathname, headers: {Host: host},
          createConnection: () => require('tls').connect({socket, servername: host})},
        answer => answer.on('data', data => process.stdout.write(data))))
  .end();
"#;

const JAVA: &str = r#"
import java.net.*; import java.net.http.*;
class Client { public static void main(String[] a) throws Exception {
  var client = HttpClient.newBuilder();
  // It reads no variable by itself.
  if (System.getenv("HTTPS_PROXY") != null) {
    var proxy = URI.create(System.getenv("HTTPS_PROXY"));
    client.proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())));
  }
  var request = HttpRequest.newBuilder(URI.create(a[0])).build();
  var answer = client.build().send(request, HttpResponse.BodyHandlers.ofString());
  System.out.println(answer.statusCode() + " " + answer.body());
} }
"#;

/// apt with a system of its own, as whoever runs it.
fn apt(net: &Net, url: &str, verb: &str) -> Ran {
    net.client(&["sh", "-c", &apt_get(net.folder.path(), url, verb)])
}

fn git_clones(net: &mut Net) {
    files::repository(net.folder.path());
    let clone = |net: &Net, host: &str, to: &str| {
        let to = net.folder.path().join(to);
        let url = format!("https://{host}/git/project.git");
        net.client(&["git", "clone", "-q", &url, to.to_str().unwrap()])
    };
    clone(net, "www.allowed.test", "clone").well();
    let read = |path: &str| std::fs::read(net.folder.path().join(path)).unwrap();
    assert_eq!(read("clone/numbers"), read("work/numbers"));
    net.assert_decided("www.allowed.test", None);
    clone(net, "denied.test", "no").refused("403");
    net.assert_decided("denied.test", Some("not-allowed"));
}

fn apt_updates_and_downloads(net: &mut Net) {
    files::packages(net.folder.path());
    for scheme in ["http", "https"] {
        apt(net, &format!("{scheme}://www.allowed.test"), "update").well();
        apt(
            net,
            &format!("{scheme}://www.allowed.test"),
            "download hello-net",
        )
        .well();
        let package = net.folder.path().join("hello-net_1.0_all.deb");
        let served = std::fs::read(net.folder.path().join("files/apt/hello-net.deb")).unwrap();
        assert_eq!(std::fs::read(&package).unwrap(), served);
        std::fs::remove_file(package).unwrap();
        net.assert_decided("www.allowed.test", None);
        apt(net, &format!("{scheme}://denied.test"), "update").refused("403");
        net.assert_decided("denied.test", Some("not-allowed"));
    }
}

/// Has a program fetch a greeting, and be refused one.
fn fetches(net: &mut Net, line: &[&str], refusal: &str) {
    let fetch = |net: &Net, host: &str| {
        let url = format!("https://{host}/");
        net.client(&[line, &[&url]].concat())
    };
    let ran = fetch(net, "www.allowed.test");
    assert!(
        ran.well().contains("hello from www.allowed.test"),
        "{ran:?}"
    );
    net.assert_decided("www.allowed.test", None);
    let ran = fetch(net, "denied.test");
    assert!(!ran.succeeded && !ran.stdout.contains("hello"), "{ran:?}");
    ran.refused(refusal);
    net.assert_decided("denied.test", Some("not-allowed"));
    fetch(net, "inside.allowed.test").refused(refusal);
    net.assert_decided("inside.allowed.test", Some("address-refused"));
}

/// Whether Java is tried: it takes seconds to start, and half a gigabyte to install.
fn is_slow() -> bool {
    std::env::var_os("SANDBOX_SLOW").is_some()
}

/// Writes the client down; returns where.
fn java(net: &Net) -> String {
    let source = net.folder.path().join("Client.java");
    std::fs::write(&source, JAVA).unwrap();
    source.display().to_string()
}

/// Programs that know what to trust and of no proxy: git, Python, Node and apt-get.
pub(super) fn without_a_proxy(net: &Net, node: &Node) {
    let here = net.folder.path().to_str().unwrap();
    files::repository(net.folder.path());
    files::packages(net.folder.path());
    let git = format!("git clone -q https://www.allowed.test/git/project.git {here}/clone");
    let apt = |verb: &str| apt_get(net.folder.path(), "https://www.allowed.test", verb);
    let fetch = |line: &str| format!("{line} https://www.allowed.test/");
    for line in [
        git,
        apt("update"),
        apt("download hello-net"),
        fetch(&format!("python3 -c \"{PYTHON}\"")),
        fetch("node -e \"fetch(process.argv[1]).then(a => a.text()).then(console.log)\""),
    ] {
        node.program(&["sh", "-c", &line], &net.trusting()).well();
    }
    if is_slow() {
        let source = java(net);
        let line = ["java", source.as_str(), "https://www.allowed.test/"];
        let ran = node.program(&line, &net.trusting());
        assert_eq!(ran.well(), "200 hello from www.allowed.test\n");
    }
    let read = |path: &str| std::fs::read(net.folder.path().join(path)).unwrap();
    assert_eq!(read("clone/numbers"), read("work/numbers"));
    let served = read("files/apt/hello-net.deb");
    assert_eq!(read("hello-net_1.0_all.deb"), served);
}

fn all(tls: Tls) {
    let mut net = Net::new(tls);
    net.listen();
    git_clones(&mut net);
    apt_updates_and_downloads(&mut net);
    fetches(&mut net, &["python3", "-c", PYTHON], "403");
    // It says nothing of itself.
    fetches(&mut net, &["node", "-e", NODE], "");
    if is_slow() {
        let source = java(&net);
        fetches(&mut net, &["java", &source], "");
    }
    net.world.assert_private_untouched();
    let denied: std::net::IpAddr = OTHER.parse().unwrap();
    assert!(!net.world.site.reached().contains(&denied));
}

#[test]
fn programs_reach_what_is_allowed_through_closed_tunnels() {
    isolated(|| {
        all(Tls::Tunnelled);
    });
}

#[test]
fn programs_reach_what_is_allowed_through_opened_tunnels() {
    isolated(|| {
        all(Tls::Inspected);
    });
}
