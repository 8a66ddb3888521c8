//! Real clients through the proxy's port: each finds it, and what to trust, by its own variables.

use super::{Net, Tls, prepare};
use crate::world::{OTHER, Ran, isolated_tests};

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
  var proxy = URI.create(System.getenv("HTTPS_PROXY"));
  var at = ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort()));
  var request = HttpRequest.newBuilder(URI.create(a[0])).build();
  var answer = HttpClient.newBuilder().proxy(at).build().send(request, HttpResponse.BodyHandlers.ofString());
  System.out.println(answer.statusCode() + " " + answer.body());
} }
"#;

/// A repository with one file.
const GIT: &str = "
    export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='2020-01-01 00:00 +0000' \
        GIT_COMMITTER_DATE='2020-01-01 00:00 +0000'
    git -c init.defaultBranch=main init -q work
    seq 1 20000 >work/numbers
    git -C work add numbers
    git -C work -c user.name=t -c user.email=t@a.test commit -q -m numbers
    mkdir -p files/git
    git clone -q --bare work files/git/project.git";

/// A repository of one package, which apt is told to trust.
const APT: &str = "
    mkdir -p package/DEBIAN files/apt apt/state/lists/partial apt/cache/archives/partial
    printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@a.test>\nDescription: x\n' hello-net \
        >package/DEBIAN/control
    dpkg-deb --build --root-owner-group package files/apt/hello-net.deb
    { cat package/DEBIAN/control
      echo 'Filename: ./hello-net.deb'
      echo \"Size: $(stat -c %s files/apt/hello-net.deb)\"
      echo \"SHA256: $(sha256sum files/apt/hello-net.deb | cut -d ' ' -f 1)\"; } >files/apt/Packages";

/// apt with a system of its own, as whoever runs it.
fn apt(net: &Net, url: &str, verb: &str) -> Ran {
    let here = net.folder.path().display();
    let script = format!(
        "cd {here}; echo 'deb [trusted=yes] {url}/apt ./' >sources.list
         exec apt-get -q -o Dir::State={here}/apt/state -o Dir::State::status=/dev/null \
            -o Dir::Cache={here}/apt/cache -o Dir::Etc::SourceList={here}/sources.list \
            -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User= -o Acquire::Languages=none \
            -o Acquire::https::CAInfo=\"$SSL_CERT_FILE\" -o Acquire::Retries=0 \
            -o APT::Update::Error-Mode=any {verb}"
    );
    net.client(&["sh", "-c", &script])
}

fn git_clones(net: &mut Net) {
    prepare(net.folder.path(), GIT);
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
    prepare(net.folder.path(), APT);
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

fn java_fetches(net: &mut Net) {
    let source = net.folder.path().join("Client.java");
    std::fs::write(&source, JAVA).unwrap();
    fetches(net, &["java", source.to_str().unwrap()], "403");
}

fn all(tls: Tls) {
    let mut net = Net::new(tls);
    net.listen();
    git_clones(&mut net);
    apt_updates_and_downloads(&mut net);
    fetches(&mut net, &["python3", "-c", PYTHON], "403");
    // It says nothing of itself.
    fetches(&mut net, &["node", "-e", NODE], "");
    if std::env::var_os("SANDBOX_SLOW").is_some() {
        java_fetches(&mut net);
    }
    net.world.assert_private_untouched();
    let denied: std::net::IpAddr = OTHER.parse().unwrap();
    assert!(!net.world.site.reached().contains(&denied));
}

isolated_tests! {
    fn programs_reach_what_is_allowed_through_closed_tunnels() {
        all(Tls::Tunnelled);
    }

    fn programs_reach_what_is_allowed_through_opened_tunnels() {
        all(Tls::Inspected);
    }
}
