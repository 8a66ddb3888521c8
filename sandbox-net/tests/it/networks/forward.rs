//! curl through the proxy, with every kind of address.

use std::time::Instant;

use http::Version;

use super::{Net, REFUSED, Tls};
use crate::support::HANG;
use crate::world::{OTHER, PRIVATE, PUBLIC, PUBLIC_SIX, isolated};

/// curl's options: quiet, short of patience, and the status last.
const CURL: [&str; 5] = ["curl", "-sS", "--max-time", "20", "-w\n%{http_code}"];

fn curl(net: &Net, arguments: &[&str]) -> crate::world::Ran {
    net.client(&[&CURL, arguments].concat())
}

#[test]
fn allowed_hosts_are_reached_at_their_public_addresses() {
    isolated(|| {
        for tls in [Tls::Tunnelled, Tls::Inspected] {
            let mut net = Net::new(tls);
            net.listen();
            for (url, host, address) in [
                ("http://www.allowed.test/", "www.allowed.test", PUBLIC),
                ("https://www.allowed.test/", "www.allowed.test", PUBLIC),
                ("https://six.allowed.test/", "six.allowed.test", PUBLIC_SIX),
                ("http://six.allowed.test/", "six.allowed.test", PUBLIC_SIX),
                ("https://alias.allowed.test/", "alias.allowed.test", OTHER),
                ("http://mixed.allowed.test/", "mixed.allowed.test", PUBLIC),
                ("http://many.allowed.test/", "many.allowed.test", PUBLIC),
            ] {
                net.world.names.asked();
                let ran = curl(&net, &[url]);
                assert_eq!(ran.well(), format!("hello from {host}\n200"), "{url}");
                assert_eq!(
                    net.world.site.reached(),
                    [address.parse::<std::net::IpAddr>().unwrap()]
                );
                net.assert_decided(host, None);
                // E31, E50. An answer of forty addresses does not fit into a datagram.
                if host == "many.allowed.test" {
                    assert_eq!(net.world.names.asked().len(), 3);
                } else {
                    net.world.names.assert_asked_once(&[host]);
                }
                let seen = net.world.site.requests();
                assert_eq!(seen.len(), 1);
                let http2 = url.starts_with("https:");
                let version = if http2 {
                    Version::HTTP_2
                } else {
                    Version::HTTP_11
                };
                assert_eq!((seen[0].version, seen[0].secure), (version, http2));
            }
        }
    });
}

#[test]
fn e30_e35_e50_e86_what_is_denied_is_neither_dialled_nor_asked_for() {
    isolated(|| {
        let mut net = Net::new(Tls::Tunnelled);
        net.listen();
        for url in [
            "http://denied.test/",
            "https://denied.test/",
            "http://secret.data.denied.test/",
        ] {
            let ran = curl(&net, &["-f", url]);
            ran.refused("403");
            let host = url.trim_end_matches('/').rsplit('/').next().unwrap();
            net.assert_decided(host, Some("not-allowed"));
        }
        net.world.names.assert_asked_once(&[]);
        for host in REFUSED {
            for scheme in ["http", "https"] {
                let ran = curl(&net, &["-f", &format!("{scheme}://{host}/")]);
                ran.refused("403");
                net.assert_decided(host, Some("address-refused"));
            }
        }
        net.world.names.asked();
        for address in PRIVATE.iter().chain(&[OTHER]) {
            let host = if address.contains(':') {
                format!("[{address}]")
            } else {
                (*address).to_owned()
            };
            curl(&net, &["-f", "-g", &format!("http://{host}/")]).refused("403");
        }
        net.world.names.assert_asked_once(&[]);
        assert!(net.world.site.reached().is_empty());
        // They are there, for whoever dials.
        for address in PRIVATE {
            let address = (address.parse::<std::net::IpAddr>().unwrap(), 80);
            let dial = tokio::net::TcpStream::connect(address);
            net.world.proxy.run(async move { dial.await.unwrap() });
        }
        let (mut reached, begun) = (0, Instant::now());
        while reached < PRIVATE.len() {
            reached += net.world.site.reached().len();
            assert!(begun.elapsed() < HANG, "{reached} were reached");
        }
    });
}

#[test]
fn e52_e83_past_the_proxy_there_is_no_way() {
    isolated(|| {
        let net = Net::new(Tls::Tunnelled);
        net.listen();
        let direct = |arguments: &[&str]| {
            let line = [&CURL[..], &["--noproxy", "*"], arguments].concat();
            net.world.clients.program(&line, &net.trusting())
        };
        for address in [PUBLIC, OTHER, "5.6.7.1", "9.9.9.9"] {
            direct(&[&format!("http://{address}/")]).refused("Failed to connect");
        }
        direct(&["-g", &format!("http://[{PUBLIC_SIX}]/")]).refused("Failed to connect");
        // Nor through the proxy's machine as a router.
        net.world.clients.ip("route add default via 198.51.100.1
            route add default via 2001:db8:77::1");
        let by_router = [&CURL[..2], &["--connect-timeout", "1", "--noproxy", "*"]].concat();
        for url in [
            format!("http://{PUBLIC}/"),
            format!("http://[{PUBLIC_SIX}]/"),
        ] {
            let line = [&by_router[..], &["-g", &url]].concat();
            assert!(!net.world.clients.program(&line, &[]).succeeded);
        }
        assert!(net.world.site.reached().is_empty());
        // And with the proxy there is.
        assert_eq!(
            curl(&net, &["http://www.allowed.test/"]).well(),
            "hello from www.allowed.test\n200"
        );
    });
}

#[test]
fn e54_a_redirect_is_judged_as_any_request() {
    isolated(|| {
        for tls in [Tls::Tunnelled, Tls::Inspected] {
            let mut net = Net::new(tls);
            net.listen();
            for scheme in ["http", "https"] {
                let follow = |net: &Net, to: &str| {
                    let url = format!("{scheme}://www.allowed.test/to/{to}");
                    curl(net, &["-f", "-L", "--proto-redir", "=http", &url])
                };
                let ran = follow(&net, "alias.allowed.test/");
                assert_eq!(ran.well(), "hello from alias.allowed.test\n200");
                net.decided();
                for (to, reason) in [
                    ("denied.test/", "not-allowed"),
                    ("inside.allowed.test/", "address-refused"),
                    ("169.254.169.254/latest/meta-data/", "not-allowed"),
                ] {
                    follow(&net, to).refused("403");
                    let decided = net.decided();
                    let last = decided.last().unwrap();
                    assert_eq!(last.0, to.split('/').next().unwrap());
                    assert_eq!(last.1.as_deref(), Some(reason));
                }
            }
            net.world.assert_private_untouched();
        }
    });
}
