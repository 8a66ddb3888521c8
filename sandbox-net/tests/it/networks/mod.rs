//! Real addresses and real programs, in a [world](crate::world) of the test's own.
//!
//! The proxy is in this process, on threads that are in its namespace: so its events are seen as values, TLS can be
//! opened, and a defence that is taken out of the source is seen to be missing. The built programs, and a microVM, are
//! in the same world in the tests of the examples.

mod captured;
mod clients;
mod forward;

use std::{net::SocketAddr, sync::Arc};

use sandbox_net::{
    Proxy,
    event::{Decided, Event, Kind, Subscription},
    guest,
    inspect::{Inspector, trust},
    policy::RuleSet,
    resolve::DnsResolver,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::world::{
    NAME_SERVER, Node, OTHER, PROXY, PUBLIC, PUBLIC_SIX, Ran, Record, World, isolated,
};

/// The names of this world. What is below `allowed.test` is allowed, whatever its address.
const ZONE: &[(&str, &[Record])] = {
    use Record::{Address, Alias};
    &[
        ("www.allowed.test", &[Address(PUBLIC), Address(PUBLIC_SIX)]),
        ("six.allowed.test", &[Address(PUBLIC_SIX)]),
        ("alias.allowed.test", &[Alias("edge.elsewhere.test")]),
        ("edge.elsewhere.test", &[Address(OTHER)]),
        ("inside.allowed.test", &[Alias("db.internal.test")]),
        ("db.internal.test", &[Address("10.0.0.7")]),
        ("a.allowed.test", &[Address("172.16.0.7")]),
        ("b.allowed.test", &[Address("192.168.7.7")]),
        ("c.allowed.test", &[Address("100.64.0.7")]),
        ("d.allowed.test", &[Address("169.254.169.254")]),
        ("e.allowed.test", &[Address("fd00:ec2::254")]),
        ("f.allowed.test", &[Address("2002:a00:7::7")]),
        ("g.allowed.test", &[Address("4000::7")]),
        (
            "mixed.allowed.test",
            &[Address("10.0.0.7"), Address(PUBLIC)],
        ),
        ("own.allowed.test", &[Address("5.6.7.2")]),
        ("many.allowed.test", &[Address(PUBLIC); 40]),
        ("denied.test", &[Address(OTHER)]),
    ]
};

/// Allowed names all of whose addresses are refused.
const REFUSED: [&str; 9] = [
    "inside.allowed.test",
    "a.allowed.test",
    "b.allowed.test",
    "c.allowed.test",
    "d.allowed.test",
    "e.allowed.test",
    "f.allowed.test",
    "g.allowed.test",
    "own.allowed.test",
];

/// What becomes of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    /// It passes closed.
    Tunnelled,
    /// It is opened.
    Inspected,
}

/// A world with a proxy in it, and clients that know what to trust.
struct Net {
    world: World,
    proxy: Proxy,
    events: Subscription,
    folder: TempDir,
}

impl Net {
    fn new(tls: Tls) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let world = World::new(ZONE, &folder.path().join("files"));
        let rules = RuleSet::deny().allow("*.allowed.test").unwrap();
        let resolver = DnsResolver::new([NAME_SERVER.parse().unwrap()]);
        let mut proxy = Proxy::builder(Arc::new(rules)).resolver(Arc::new(resolver));
        let mut trusted = world.site.root.clone();
        if tls == Tls::Inspected {
            let inspector = Inspector::builder().inspect("*.allowed.test").unwrap();
            let inspector = inspector.root_certificates(world.site.root.as_bytes());
            let inspector = inspector.unwrap().without_system_roots().build().unwrap();
            // Only the proxy trusts the site.
            trusted = inspector.authority().pem().to_owned();
            proxy = proxy.inspector(inspector);
        }
        let proxy = proxy.build();
        let here = folder.path().to_str().unwrap();
        for (path, contents) in trust::files(&trusted, None).own {
            std::fs::write(path.replace(trust::FOLDER, here), contents).unwrap();
        }
        Self {
            events: proxy.subscribe(),
            world,
            proxy,
            folder,
        }
    }

    /// Serves the proxy's port to the clients' side.
    fn listen(&self) {
        let address: SocketAddr = PROXY.parse().unwrap();
        let node = &self.world.proxy;
        let listener = node.run(async move { TcpListener::bind(address).await.unwrap() });
        let proxy = self.proxy.clone();
        node.spawn(async move { proxy.listen(listener).await });
    }

    /// The variables of a client that trusts what it has to.
    fn trusting(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        trust::add_variables(&mut variables);
        let here = self.folder.path().to_str().unwrap();
        for (_, value) in &mut variables {
            *value = value.replace(trust::FOLDER, here);
        }
        variables.push(("HOME".into(), here.into()));
        variables
    }

    /// The same, and those that name the proxy.
    fn variables(&self) -> Vec<(String, String)> {
        let mut variables = guest::proxy_environment(PROXY.parse().unwrap());
        variables.extend(self.trusting());
        variables
    }

    /// Runs a client that knows of the proxy.
    #[track_caller]
    fn client(&self, line: &[&str]) -> Ran {
        self.world.clients.program(line, &self.variables())
    }

    /// What was decided about hosts since the last time: host, and the reason if it was denied.
    fn decided(&mut self) -> Vec<(String, Option<String>)> {
        decided(&mut self.events)
    }

    /// Asserts that something was decided since the last time, and that all of it was this.
    #[track_caller]
    fn assert_decided(&mut self, host: &str, reason: Option<&str>) {
        let decided = self.decided();
        assert!(!decided.is_empty(), "nothing was decided about {host}");
        for (about, why) in decided {
            assert_eq!((about.as_str(), why.as_deref()), (host, reason));
        }
    }
}

fn decided(events: &mut Subscription) -> Vec<(String, Option<String>)> {
    let events = std::iter::from_fn(|| events.try_next());
    events
        .filter(|event: &Event| event.kind == Kind::Decision)
        .map(|event| {
            let denied = event.verdict == Some(Decided::Deny);
            let reason = event.reason.filter(|_| denied);
            (event.host.unwrap_or_default(), reason)
        })
        .collect()
}

#[test]
fn nothing_is_left_of_a_world_whose_test_panics() {
    isolated(|| {
        use std::os::unix::fs::MetadataExt;
        let namespaces = || {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let spaces =
                processes.filter_map(|one| std::fs::metadata(one.path().join("ns/net")).ok());
            spaces.map(|space| space.ino()).collect::<Vec<_>>()
        };
        let mut made = Vec::new();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let folder = tempfile::tempdir().unwrap();
            let world = World::new(ZONE, folder.path());
            let nodes: [&Node; 3] = [&world.clients, &world.proxy, &world.origins];
            made = nodes
                .map(|node| std::fs::metadata(node.path()).unwrap().ino())
                .to_vec();
            // A program that would go on.
            let mut sleep = tokio::process::Command::new("sleep");
            sleep.arg("600").kill_on_drop(true);
            let sleep = world.clients.run(async move { sleep.spawn().unwrap() });
            world.clients.spawn(async move { { sleep }.wait().await });
            panic!("as a test does");
        }));
        assert!(panicked.is_err() && made.len() == 3);
        let begun = std::time::Instant::now();
        while namespaces().iter().any(|one| made.contains(one)) {
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(10),
                "a process is left in one"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
}
