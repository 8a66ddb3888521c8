//! Where a connection is to go, in canonical form.
//!
//! A [`Target`] is built once from what a client said, and nothing downstream sees any other string. Host
//! names follow [`HostName`]; addresses are accepted in one spelling only (four decimal numbers; any RFC 4291
//! text in brackets, without a zone), because every other spelling means different things to different
//! software.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{Error, policy::HostName};

/// A host: a name that has to be resolved, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Host {
    /// A name in canonical form.
    Name(HostName),
    /// An address as it was written; IPv4 inside IPv6 is unwrapped when it is judged.
    Address(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URI or in the target of CONNECT: an IPv6 address in brackets, an IPv4
    /// address or a name without.
    ///
    /// # Errors
    ///
    /// `Invalid` with the reason.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner
                .strip_suffix(']')
                .ok_or("a bracket is not closed")
                .and_then(|inner| {
                    inner.parse::<Ipv6Addr>().map_err(
                        |_| "brackets hold an IPv6 address, without a zone, and nothing else",
                    )
                });
            return address
                .map(|address| Self::Address(address.into()))
                .map_err(|reason| unreadable("host", text, reason));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        HostName::parse(text).map(Self::Name)
    }

    /// Returns the name, if it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
}

impl Target {
    /// Builds a target from its parts; port 0 is refused when it is judged.
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Reads `host:port`, as in the target of CONNECT. The port is required.
    ///
    /// # Errors
    ///
    /// `Invalid` with the reason: no port, a port that is not written as a plain decimal number from 1 to
    /// 65535, user information, or a host that [`Host::parse`] refuses.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match Self::split(text)? {
            (host, Some(port)) => Ok(Self { host, port }),
            (_, None) => Err(unreadable("target", text, "it has no port")),
        }
    }

    /// Reads `host` or `host:port`, as in the authority of a URI, with `default` where no port is written.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), a missing port aside.
    pub fn parse_with_default_port(text: &str, default: u16) -> Result<Self, Error> {
        let (host, port) = Self::split(text)?;
        Ok(Self {
            host,
            port: port.unwrap_or(default),
        })
    }

    fn split(text: &str) -> Result<(Host, Option<u16>), Error> {
        let (host, port) = split_port(text).map_err(|reason| unreadable("target", text, reason))?;
        Ok((Host::parse(host)?, port))
    }
}

/// Splits `host[:port]`; a host with colons must stand in brackets.
pub(super) fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if text.contains('@') {
        return Err("it has user information");
    }
    let after_brackets = text.rfind(']').map_or(0, |end| end + 1);
    match text[after_brackets..].find(':') {
        None => Ok((text, None)),
        Some(at) => {
            let (host, port) = text.split_at(after_brackets + at);
            Ok((host, Some(parse_port(&port[1..])?)))
        }
    }
}

/// Reads a port: decimal digits, no sign, no leading zero, 1 to 65535.
fn parse_port(text: &str) -> Result<u16, &'static str> {
    const WRONG: &str = "its port is not a plain number from 1 to 65535";
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WRONG);
    }
    text.parse().map_err(|_| WRONG)
}

fn unreadable(what: &str, text: &str, reason: &'static str) -> Error {
    Error::invalid(format!("read {what} `{}`", text.escape_debug()), reason)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_read_back_as_themselves() {
        for text in [
            "example.com:443",
            "1.2.3.4:80",
            "[2001:db8::1]:8443",
            "[::ffff:1.2.3.4]:1",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn e19_addresses_in_odd_spellings_are_refused() {
        for text in [
            "127.1:80",
            "0177.0.0.1:80",
            "0x7f.0.0.1:80",
            "2130706433:80",
            "127.0.0.01:80",
            "127.0.0.1.:80",
            "[127.0.0.1]:80",
            "::1:80",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn e26_zones_are_refused() {
        for text in ["[fe80::1%eth0]:80", "[fe80::1%25eth0]:80", "[::1%]:80"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn e42_brackets_hold_an_ipv6_address_and_nothing_else() {
        for text in [
            "[example.com]:443",
            "[1.2.3.4]:443",
            "[]:443",
            "[::1:443",
            "::1]:443",
            "[[::1]]:443",
            "a[::1]:443",
            "[::1]a:443",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
        assert!(Target::parse("[2001:db8::1]:443").is_ok());
    }

    #[test]
    fn e40_user_information_is_refused() {
        for text in ["user@example.com:80", "example.com:80@evil.com:80", "@a:1"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ports_have_one_spelling() {
        for text in [
            "a:0", "a:+443", "a:0443", "a:99999", "a:", "a: 80", "a:80:80", "a", "a:８０",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            drop(Target::parse(&text));
        }

        #[test]
        fn near_targets_never_panic_and_round_trip(text in "[\\[\\]a-f0-9:.@%xn-]{0,30}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
            }
        }
    }
}
