//! Programs that know of no proxy: what they send is captured where it leaves their machine, as in a guest.
//!
//! ```text
//!   container ── veth ── programs ── veth ── agent: every address is local ══ streams ══ the proxy's namespace
//! ```

use std::{io, net::SocketAddrV4};

use sandbox_base::BoxStream;
use sandbox_net::{
    captured_ports,
    event::{Decided, Kind},
    guest::capture,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::AbortHandle,
};

use super::{Net, REFUSED, Tls};
use crate::world::{Node, OTHER, PRIVATE, PUBLIC, PUBLIC_SIX, Ran, isolated};

/// The agent's namespace. What runs on its node's threads is in it.
struct Agent;

impl capture::Network for Agent {
    async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    async fn bind(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        UdpSocket::bind(address).await
    }
}

/// A machine whose programs know of no proxy.
struct Machine {
    net: Net,
    programs: Node,
    _agent: Node,
    capture: AbortHandle,
    /// Whether the host is gone: streams to it break, and none can be opened.
    host_is_away: watch::Sender<bool>,
}

impl Machine {
    fn new(tls: Tls) -> Self {
        let net = Net::new(tls);
        let (programs, agent) = (Node::resolving_at(capture::RESOLVER), Node::new());
        let (own, gateway, length) = (capture::ADDRESS, capture::RESOLVER, capture::PREFIX);
        programs.ip(&format!(
            "link add egress0 type veth peer name agent0 netns {}
             address add {own}/{length} dev egress0
             link set egress0 up
             route add default via {gateway}",
            agent.path()
        ));
        // As the agent of a machine does it.
        agent.ip(&format!(
            "address add {gateway}/{length} dev agent0
             link set agent0 up
             rule add pref 5 iif lo lookup main
             rule add pref 10 lookup local
             rule del pref 0
             rule add unreachable pref 3 iif agent0 ipproto icmp
             route add local default dev lo table local
             route add default via {own}"
        ));
        agent.set("ipv4/conf/agent0/forwarding", "1");
        let host_is_away = watch::Sender::new(false);
        let open = {
            let (proxy, away) = (net.proxy.clone(), host_is_away.subscribe());
            let host = net.world.proxy.handle();
            move || {
                let (proxy, host, mut away) = (proxy.clone(), host.clone(), away.clone());
                async move {
                    if *away.borrow() {
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    let (near, far) = tokio::io::duplex(64 << 10);
                    host.spawn(async move {
                        tokio::select! {
                            () = proxy.serve_captured(far) => {}
                            _ = away.wait_for(|away| *away) => {}
                        }
                    });
                    Ok(Box::new(near) as BoxStream)
                }
            }
        };
        let ports = captured_ports(&*net.proxy.policy());
        let capture = agent.run(async move { capture::start(Agent, &ports, open).await.unwrap() });
        let capture = agent.spawn(capture.run()).abort_handle();
        Self {
            net,
            programs,
            _agent: agent,
            capture,
            host_is_away,
        }
    }

    /// Runs a program that knows what to trust, and of no proxy.
    #[track_caller]
    fn program(&self, line: &[&str]) -> Ran {
        self.programs.program(line, &self.net.trusting())
    }

    #[track_caller]
    fn curl(&self, arguments: &[&str]) -> Ran {
        self.program(&[&["curl", "-sS", "--max-time", "20"], arguments].concat())
    }

    /// The names that were asked for inside since the last time, with the reason of those that are denied.
    fn lookups(&mut self) -> Vec<(String, Option<String>)> {
        let events = std::iter::from_fn(|| self.net.events.try_next());
        let lookups = events.filter(|event| event.kind == Kind::Lookup);
        lookups
            .map(|event| {
                let denied = event.verdict == Some(Decided::Deny);
                (event.host.unwrap(), event.reason.filter(|_| denied))
            })
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.capture.abort();
    }
}

/// Answers what becomes of a connection, a datagram, a name.
const PYTHON: &str = r#"
import socket, struct, sys, time
def at_once(act):
    start = time.monotonic()
    try: said = act()
    except OSError as error: said = type(error).__name__
    assert time.monotonic() - start < 4, 'it took long'
    return said
def connect(host, port):
    def act():
        with socket.create_connection((host, port), 20) as s:
            s.settimeout(20); s.sendall(b'\x16'); return s.recv(9)
    return at_once(act)
def datagram(host, port, family=socket.AF_INET, wait=20):
    def act():
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(wait); s.connect((host, port)); s.send(b'x'); return s.recv(99)
    return at_once(act)
def ping(host):
    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
            s.settimeout(20)
            s.sendto(struct.pack('!BBHHH', 8, 0, 0xf7ff - 7, 7, 1), (host, 0))
            while (kind := s.recv(999)[20]) == 8: pass
            return 'unreachable' if kind == 3 else kind
    return at_once(act)
def spoof(source, destination, fragment):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40, 7, fragment, 64, 6, 0, socket.inet_aton(source), socket.inet_aton(destination))
    syn = struct.pack('!HHIIBBHHH', 4444, 443, 1, 0, 0x50, 2, 999, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(head + syn, (destination, 0))
    return 'sent'
"#;

impl Machine {
    /// Evaluates expressions of Python, which are given back as text.
    #[track_caller]
    fn python(&self, expressions: &[String]) -> Vec<String> {
        let prints = expressions.iter().map(|one| format!("print({one})\n"));
        let script = format!("{PYTHON}{}", prints.collect::<String>());
        let ran = self.program(&["python3", "-c", &script]);
        ran.well().lines().map(str::to_owned).collect()
    }
}

#[test]
fn e79_programs_that_know_of_no_proxy_reach_what_is_allowed() {
    isolated(|| {
        for tls in [Tls::Tunnelled, Tls::Inspected] {
            let mut machine = Machine::new(tls);
            for (url, host, address) in [
                ("http://www.allowed.test/", "www.allowed.test", PUBLIC),
                ("https://www.allowed.test/", "www.allowed.test", PUBLIC),
                // IPv4 inside, IPv6 outside.
                ("https://six.allowed.test/", "six.allowed.test", PUBLIC_SIX),
                ("https://alias.allowed.test/", "alias.allowed.test", OTHER),
            ] {
                machine.net.world.names.asked();
                let ran = machine.curl(&[url]);
                assert_eq!(ran.well(), format!("hello from {host}"), "{url}");
                assert_eq!(
                    machine.net.world.site.reached(),
                    [address.parse::<std::net::IpAddr>().unwrap()]
                );
                machine.net.assert_decided(host, None);
                machine.net.world.names.assert_asked_once(&[host]);
            }
            super::clients::without_a_proxy(&machine.net, &machine.programs);
            machine.net.world.assert_private_untouched();
        }
    });
}

#[test]
fn e30_e50_names_that_are_denied_are_none_and_refused_addresses_are_never_dialled() {
    isolated(|| {
        let mut machine = Machine::new(Tls::Tunnelled);
        for url in ["http://denied.test/", "https://secret.data.denied.test/"] {
            machine.curl(&[url]).refused("Could not resolve host");
            let host = url.trim_end_matches('/').rsplit('/').next().unwrap();
            let lookups = machine.lookups();
            assert!(!lookups.is_empty());
            assert!(
                lookups
                    .iter()
                    .all(|one| *one == (host.to_owned(), Some("not-allowed".to_owned())))
            );
        }
        machine.net.world.names.assert_asked_once(&[]);
        for host in REFUSED {
            machine
                .curl(&["-f", &format!("http://{host}/")])
                .refused("403");
            machine.net.assert_decided(host, Some("address-refused"));
            machine.curl(&[&format!("https://{host}/")]).refused("");
            machine.net.assert_decided(host, Some("address-refused"));
        }
        for address in PRIVATE
            .iter()
            .chain(&[OTHER])
            .filter(|address| !address.contains(':'))
        {
            machine
                .curl(&["-f", &format!("http://{address}/")])
                .refused("403");
            machine.net.assert_decided(address, Some("not-allowed"));
        }
        assert!(machine.net.world.site.reached().is_empty());
    });
}

#[test]
fn e52_e53_e86_nothing_but_judged_streams_leaves() {
    isolated(|| {
        let machine = Machine::new(Tls::Tunnelled);
        let said = machine.python(&[
            "connect('93.184.216.34', 853)".into(),
            "connect('93.184.216.34', 22)".into(),
            "connect('8.8.8.8', 443)".into(),
            "datagram('9.9.9.9', 53)".into(),
            "datagram('93.184.216.34', 443)".into(),
            // Whom a multicast does not reach does not answer.
            "datagram('224.0.0.251', 5353, wait=0.5)".into(),
            "ping('93.184.216.34')".into(),
            format!("connect('{PUBLIC_SIX}', 443)"),
            format!("datagram('{PUBLIC_SIX}', 443, socket.AF_INET6)"),
        ]);
        let expected = [
            "ConnectionRefusedError",
            "ConnectionRefusedError",
            "ConnectionResetError",
            "ConnectionRefusedError",
            "ConnectionRefusedError",
            "TimeoutError",
            "unreachable",
            "OSError",
            "OSError",
        ];
        assert_eq!(said, expected);
        assert!(machine.net.world.site.reached().is_empty());
        machine.net.world.names.assert_asked_once(&[]);
    });
}

#[test]
fn e83_without_a_host_there_is_nothing() {
    isolated(|| {
        let machine = Machine::new(Tls::Tunnelled);
        assert_eq!(
            machine.curl(&["http://www.allowed.test/"]).well(),
            "hello from www.allowed.test"
        );
        machine.net.world.site.reached();
        machine.host_is_away.send_replace(true);
        // A resolver that fails is tried again: two times four seconds.
        let ran = machine.curl(&["http://www.allowed.test/"]);
        assert!(!ran.succeeded && ran.stderr.contains("resolve"), "{ran:?}");
        machine.curl(&["http://93.184.216.34/"]).refused("");
        assert!(machine.net.world.site.reached().is_empty());
        machine.host_is_away.send_replace(false);
        assert_eq!(
            machine.curl(&["http://www.allowed.test/"]).well(),
            "hello from www.allowed.test"
        );
    });
}

#[test]
fn e85_forged_packets_reach_nobody_and_harm_nobody() {
    isolated(|| {
        let mut machine = Machine::new(Tls::Tunnelled);
        let said = machine.python(&[
            format!("spoof('{OTHER}', '{PUBLIC}', 0)"),
            format!("spoof('198.18.0.1', '{PUBLIC}', 0)"),
            format!("spoof('5.6.7.2', '{PUBLIC}', 0)"),
            // The first and the last of fragments that never come together.
            format!("spoof('198.18.0.2', '{PUBLIC}', 0x2000)"),
            format!("spoof('198.18.0.2', '{PUBLIC}', 0x1fff)"),
        ]);
        assert_eq!(said, ["sent"; 5]);
        // A second address of the machine, and one that is the agent's.
        machine.programs.ip("address add 203.0.113.9/32 dev egress0
            address add 10.0.0.7/32 dev egress0");
        let from = |address: &str, host: &str| {
            machine.curl(&["--interface", address, &format!("http://{host}/")])
        };
        assert_eq!(
            from("203.0.113.9", "www.allowed.test").well(),
            "hello from www.allowed.test"
        );
        from("10.0.0.7", "denied.test").refused("Could not resolve");
        assert_eq!(machine.net.world.site.reached().len(), 1);
        assert_eq!(machine.net.world.site.requests().len(), 1);
        // The agent's own address is nobody's: the host is not even asked.
        machine.net.decided();
        machine.curl(&["http://198.18.0.1/"]).refused("");
        assert_eq!(machine.net.decided(), []);
    });
}

#[test]
fn e79_containers_inside_are_captured_too() {
    isolated(|| {
        let mut machine = Machine::new(Tls::Tunnelled);
        let container = Node::resolving_at(capture::RESOLVER);
        // As a container engine does it, without its masquerade: answers find the way back by the route.
        machine.programs.ip(&format!(
            "link add bridge0 type veth peer name eth0 netns {}
             address add 172.17.0.1/16 dev bridge0
             link set bridge0 up",
            container.path()
        ));
        container.ip("address add 172.17.0.2/16 dev eth0
             link set eth0 up
             route add default via 172.17.0.1");
        machine.programs.set("ipv4/ip_forward", "1");
        let curl = |machine: &Machine, url: &str| {
            container.program(
                &["curl", "-fsS", "--max-time", "20", url],
                &machine.net.trusting(),
            )
        };
        for scheme in ["http", "https"] {
            let ran = curl(&machine, &format!("{scheme}://www.allowed.test/"));
            assert_eq!(ran.well(), "hello from www.allowed.test");
            machine.net.assert_decided("www.allowed.test", None);
            curl(&machine, &format!("{scheme}://denied.test/")).refused("Could not resolve host");
            curl(&machine, &format!("{scheme}://inside.allowed.test/")).refused("");
            machine
                .net
                .assert_decided("inside.allowed.test", Some("address-refused"));
        }
        machine.net.world.assert_private_untouched();
    });
}
