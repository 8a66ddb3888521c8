//! A small Internet of a test's own: three network namespaces, joined in a row, with no way out of any.
//!
//! ```text
//!   clients ──────── veth ──────── proxy ──────── veth ──────── origins, name server
//!   198.51.100.2      198.51.100.1   5.6.7.2       5.6.7.1      93.184.216.34, 1.2.3.4, 2606:2800:…,
//!   no route but this link           default route ───►         and those that nobody may dial: 10.0.0.7, …
//! ```
//!
//! Addresses are judged as they are, since nothing here is on loopback, and dialled, since each is there. What is
//! tried past the proxy has nowhere to go: no namespace has a link to the machine's own. The namespaces have no
//! names, so tests run at the same time, and the kernel deletes them, links included, once the test's process and
//! what it started are gone, however they ended.
//!
//! Root makes namespaces as it is; an ordinary user in a user namespace, for which [`isolated`] starts the test once
//! more in a process of its own. Whoever may do neither is told so by a panic.

pub(crate) mod files;
mod names;
mod node;
mod site;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::geteuid;

pub(crate) use names::{NameServer, Record};
pub(crate) use node::{Node, Ran};
pub(crate) use site::Site;

/// Where the proxy listens for clients.
pub(crate) const PROXY: &str = "198.51.100.1:3128";
/// The proxy's own address on the side of the origins.
pub(crate) const PROXYS_OWN: &str = "5.6.7.2";
pub(crate) const NAME_SERVER: &str = "9.9.9.9:53";

/// Origins at addresses that the floor lets through.
pub(crate) const PUBLIC: &str = "93.184.216.34";
pub(crate) const PUBLIC_SIX: &str = "2606:2800:220:1::34";
pub(crate) const OTHER: &str = "1.2.3.4";
/// Origins at addresses that nobody may dial, each of them there and reachable from the proxy's namespace.
pub(crate) const PRIVATE: [&str; 8] = [
    "10.0.0.7",
    "172.16.0.7",
    "192.168.7.7",
    "100.64.0.7",
    "169.254.169.254",
    "fd00:ec2::254",
    "2002:a00:7::7",
    "4000::7",
];

/// Set, to the user's number, in the process that a test of an ordinary user is run in: there it is 0.
const INSIDE: &str = "SANDBOX_TEST_INSIDE";

/// The three namespaces, with what is served in the last.
pub(crate) struct World {
    pub(crate) clients: Node,
    pub(crate) proxy: Node,
    pub(crate) origins: Node,
    pub(crate) site: Site,
    pub(crate) names: NameServer,
}

impl World {
    /// Joins the namespaces and begins to serve these names, each with a certificate, and the files of a folder.
    pub(crate) fn new(zone: &[(&str, &[Record])], files: &Path) -> Self {
        let (clients, proxy, origins) = {
            let server: SocketAddr = NAME_SERVER.parse().unwrap();
            (Node::new(), Node::resolving_at(server.ip()), Node::new())
        };
        proxy.ip(&format!(
            "link add left type veth peer name right netns {}
             address add 198.51.100.1/24 dev left
             address add 2001:db8:77::1/64 dev left nodad
             link set left up",
            clients.path()
        ));
        clients.ip("address add 198.51.100.2/24 dev right
             address add 2001:db8:77::2/64 dev right nodad
             link set right up");
        proxy.ip(&format!(
            "link add right type veth peer name left netns {}
             address add {PROXYS_OWN}/24 dev right
             address add 2606:4700:5::2/64 dev right nodad
             link set right up
             route add default via 5.6.7.1
             route add default via 2606:4700:5::1",
            origins.path()
        ));
        origins.ip("address add 5.6.7.1/24 dev left
             address add 2606:4700:5::1/64 dev left nodad
             link set left up");
        let server: SocketAddr = NAME_SERVER.parse().unwrap();
        let addresses = [PUBLIC, PUBLIC_SIX, OTHER].into_iter().chain(PRIVATE);
        for address in addresses
            .map(|text| text.parse().unwrap())
            .chain([server.ip()])
        {
            origins.own(address);
        }
        let hosts: Vec<&str> = zone.iter().map(|(name, _)| *name).collect();
        let site = Site::start(&origins, &hosts, files);
        let names = NameServer::start(&origins, server, zone);
        Self {
            clients,
            proxy,
            origins,
            site,
            names,
        }
    }

    /// Asserts that no origin was reached that nobody may dial.
    #[track_caller]
    pub(crate) fn assert_private_untouched(&self) {
        let reached = self.site.reached();
        let private = |address: &IpAddr| PRIVATE.iter().any(|text| address.to_string() == **text);
        let touched: Vec<_> = reached.into_iter().filter(private).collect();
        assert!(touched.is_empty(), "{touched:?}");
    }
}

/// Runs a test where it may make namespaces: here as root, otherwise in a process with a user namespace of its own.
///
/// # Panics
///
/// If neither is possible, with what would help.
#[track_caller]
pub(crate) fn isolated<T: FnOnce()>(test: T) {
    if geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return test();
    }
    // A closure is called after the function that it is in; the test harness leaves the crate out.
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let mut again = Command::new("unshare");
    again
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .arg("--test-threads=1")
        .env(INSIDE, geteuid().as_raw().to_string())
        .stdin(Stdio::null());
    let output = again.output().expect("unshare is part of every Linux");
    let told = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "as an ordinary user this test needs user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns):\n{told}"
    );
}
