//! What does not go through an upstream proxy: `NO_PROXY`, where curl and Go agree about it.
//!
//! There is no standard. Where they differ, this is how most programs have it: `.example.com` fits `example.com`, too
//! (Go: only what is below it). The port of an entry is Go's; in curl such an entry fits nothing.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::{Host, HostName, Target};

/// The entries of such lists.
#[derive(Debug, Clone, Default)]
pub(super) struct Exceptions {
    everything: bool,
    entries: Vec<(Reach, Option<u16>)>,
}

#[derive(Debug, Clone)]
enum Reach {
    /// A name and all below it.
    Below(HostName),
    Network(IpNet),
}

impl Exceptions {
    pub(super) fn add(&mut self, list: &str) {
        let entries = list.split(|c: char| c == ',' || c.is_ascii_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()) {
            match (entry, read(entry)) {
                ("*", _) => self.everything = true,
                (_, Some(read)) => self.entries.push(read),
                // Other programs pass over it, too, and it sends no more than before past the proxy.
                (_, None) => tracing::warn!(entry, "this exception to the proxy fits nothing"),
            }
        }
    }

    pub(super) fn hold(&self, target: &Target) -> bool {
        let fits = |(reach, port): &(Reach, Option<u16>)| {
            port.is_none_or(|port| port == target.port) && reach.holds(&target.host)
        };
        self.everything || self.entries.iter().any(fits)
    }
}

impl Reach {
    fn holds(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Below(base), Host::Name(name)) => {
                let above = name.as_str().strip_suffix(base.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Self::Network(network), Host::Address(address)) => {
                network.contains(&address.to_canonical())
            }
            _ => false,
        }
    }
}

fn read(entry: &str) -> Option<(Reach, Option<u16>)> {
    if let Some(network) = network(entry) {
        return Some((Reach::Network(network), None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        None => (entry, None),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Some(network) = network(bare.unwrap_or(host)) {
        return Some((Reach::Network(network), port));
    }
    let name = host.strip_prefix('*').unwrap_or(host);
    let name = name.strip_prefix('.').unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = HostName::parse(&name.to_ascii_lowercase()).ok()?;
    Some((Reach::Below(name), port))
}

fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok();
    let address = || address().map(|address| IpNet::from(address.to_canonical()));
    text.parse().ok().or_else(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(list: &str, target: &str) -> bool {
        let mut exceptions = Exceptions::default();
        exceptions.add(list);
        exceptions.hold(&target.parse().unwrap())
    }

    #[test]
    fn names_fit_with_all_below_them() {
        for list in [
            "example.com",
            ".example.com",
            "*.example.com",
            "EXAMPLE.com.",
        ] {
            assert!(holds(list, "example.com:443"), "{list}");
            assert!(holds(list, "a.b.example.com:80"), "{list}");
            assert!(!holds(list, "evil-example.com:443"), "{list}");
            assert!(!holds(list, "example.com.evil.com:443"), "{list}");
        }
    }

    #[test]
    fn addresses_and_networks_fit_addresses() {
        let list = "10.0.0.0/8, 192.168.1.1 ::1,2001:db8::/32";
        for inside in [
            "10.255.0.1:80",
            "192.168.1.1:443",
            "[::1]:80",
            "[2001:db8::9]:1",
        ] {
            assert!(holds(list, inside), "{inside}");
        }
        assert!(holds(list, "[::ffff:10.0.0.1]:80"));
        for outside in [
            "11.0.0.1:80",
            "192.168.1.2:443",
            "[::2]:80",
            "example.com:80",
        ] {
            assert!(!holds(list, outside), "{outside}");
        }
    }

    #[test]
    fn a_port_narrows_and_a_star_fits_everything() {
        assert!(holds("example.com:8080", "example.com:8080"));
        assert!(!holds("example.com:8080", "example.com:443"));
        assert!(holds("10.1.2.3:80", "10.1.2.3:80"));
        assert!(!holds("10.1.2.3:80", "10.1.2.3:81"));
        assert!(holds("[::1]:80", "[::1]:80"));
        assert!(!holds("[::1]:80", "[::1]:81"));
        assert!(holds("x.test,*", "example.com:443"));
        assert!(holds("*", "8.8.8.8:443"));
    }

    #[test]
    fn what_is_none_of_these_fits_nothing() {
        for junk in [
            "",
            ",, ,",
            "a b:x:0",
            "http://example.com",
            "example.com:0",
            "ex*mple.com",
            "/8",
        ] {
            assert!(!holds(junk, "example.com:443"), "{junk}");
        }
    }
}
