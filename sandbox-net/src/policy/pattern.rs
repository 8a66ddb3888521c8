//! What a rule names: hosts, addresses, networks, each with or without a port.
//!
//! | pattern | fits |
//! |---|---|
//! | `example.com` | that name |
//! | `*.example.com` | names with exactly one more label (in a block list: with one or more) |
//! | `**.example.com` | names with one or more labels more, never `example.com` itself |
//! | `1.2.3.4`, `[2001:db8::1]` | that address |
//! | `10.0.0.0/8`, `[fc00::/7]` | addresses of that network, asked for literally or resolved to |
//! | any of these with `:PORT` | that port only |
//!
//! Without a port an allow fits 80 and 443, and a block fits every port. An IPv6 address or network without
//! a port may stand without brackets. A text has one meaning or none: whatever is not exactly one of these
//! forms (a scheme, a path, white space, `*` anywhere else, host bits set in a network) is an error when the
//! rule is loaded.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::IpNet;

use crate::{
    Error,
    policy::{HostName, name, target::split_port},
};

/// A parsed pattern; its text form is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    pub(super) kind: Kind,
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Exact(HostName),
    Child(HostName),
    Descendant(HostName),
    Network(IpNet),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// `Invalid` with the reason.
    pub fn parse(text: &str) -> Result<Self, Error> {
        read(text).map_err(|reason| {
            Error::invalid(format!("read pattern `{}`", text.escape_debug()), reason)
        })
    }

    /// Returns the port that the pattern names.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the network that the pattern names; an address is a network of one.
    pub fn network(&self) -> Option<IpNet> {
        match self.kind {
            Kind::Network(network) => Some(network),
            _ => None,
        }
    }

    /// Tells why an allow rule with this pattern would open more than its writer can know of.
    pub(super) fn too_wide(&self) -> Option<String> {
        match &self.kind {
            Kind::Child(suffix) | Kind::Descendant(suffix) if is_public_suffix(suffix) => Some(
                format!("`{suffix}` is a public suffix, where anyone can register a name"),
            ),
            _ => None,
        }
    }
}

/// Whether strangers register names directly below this one: the Public Suffix List with its private section
/// (hosting and storage services), and every top-level name.
fn is_public_suffix(name: &HostName) -> bool {
    name.parent().is_none()
        || psl::suffix(name.as_str().as_bytes())
            .is_some_and(|suffix| suffix.as_bytes() == name.as_str().as_bytes())
}

fn read(text: &str) -> Result<Pattern, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if let Some(wrong) = text.chars().find(|c| !is_expected(*c)) {
        return Err(format!(
            "`{}` has no place in a pattern; write a host, `*.host`, `**.host`, an address or a \
             network, with `:port` if need be",
            wrong.escape_debug()
        ));
    }
    if text.contains("://") {
        return Err("it has a scheme; write the host alone".into());
    }
    // An IPv6 address or network without brackets has no port.
    if !text.starts_with('[') && text.matches(':').count() > 1 {
        let kind = read_network(text)?;
        return Ok(Pattern { kind, port: None });
    }
    let (host, port) = split_port(text)?;
    let kind = read_host(host)?;
    Ok(Pattern { kind, port })
}

fn is_expected(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*' | ':' | '/' | '[' | ']' | '@')
}

fn read_host(host: &str) -> Result<Kind, String> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("a bracket is not closed")?;
        if !inner.contains(':') {
            return Err("brackets hold an IPv6 address or network and nothing else".into());
        }
        return read_network(inner);
    }
    if host.contains('/') || host.parse::<Ipv4Addr>().is_ok() {
        return read_network(host);
    }
    if let Some(suffix) = host.strip_prefix("**.") {
        return read_name(suffix).map(Kind::Descendant);
    }
    if let Some(suffix) = host.strip_prefix("*.") {
        return read_name(suffix).map(Kind::Child);
    }
    if host.contains('*') {
        return Err(
            "`*` stands only as the whole first label, `*.` or `**.`, before a name".into(),
        );
    }
    read_name(host).map(Kind::Exact)
}

fn read_name(text: &str) -> Result<HostName, String> {
    let name = name::canonical(text)?;
    HostName::parse(&name).map_err(|_| "it is not a host name".into())
}

fn read_network(text: &str) -> Result<Kind, String> {
    let wrong = || "it is neither an address nor a network (`10.0.0.0/8`)".to_owned();
    if !text.contains('/') {
        let address: IpAddr = text.parse().map_err(|_| wrong())?;
        return whole(IpNet::from(address)).map(Kind::Network);
    }
    let network: IpNet = text.parse().map_err(|_| wrong())?;
    if network.trunc() != network {
        return Err(format!(
            "it has bits set after its prefix; the network is `{}`",
            network.trunc()
        ));
    }
    whole(network).map(Kind::Network)
}

/// Refuses IPv6 spellings of IPv4: they are judged as IPv4, so a rule in that form would never fit.
fn whole(network: IpNet) -> Result<IpNet, String> {
    match network {
        IpNet::V6(inner)
            if inner.prefix_len() >= 96 && inner.network().to_ipv4_mapped().is_some() =>
        {
            Err("it is IPv4 in an IPv6 form; write it as IPv4".into())
        }
        _ => Ok(network),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Exact(name) => write!(f, "{name}")?,
            Kind::Child(suffix) => write!(f, "*.{suffix}")?,
            Kind::Descendant(suffix) => write!(f, "**.{suffix}")?,
            Kind::Network(IpNet::V4(network)) => write_network(f, network.prefix_len(), network)?,
            Kind::Network(IpNet::V6(network)) => {
                f.write_str("[")?;
                write_network(f, network.prefix_len(), network)?;
                f.write_str("]")?;
            }
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn write_network(
    f: &mut fmt::Formatter<'_>,
    prefix: u8,
    network: &impl fmt::Display,
) -> fmt::Result {
    let text = network.to_string();
    let full = text
        .parse::<IpNet>()
        .is_ok_and(|net| net.max_prefix_len() == prefix);
    match text.split_once('/') {
        Some((address, _)) if full => f.write_str(address),
        _ => f.write_str(&text),
    }
}

impl FromStr for Pattern {
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
            "example.com",
            "*.example.com",
            "**.example.com:8443",
            "1.2.3.4",
            "1.2.3.4:22",
            "10.0.0.0/8:5432",
            "[2001:db8::1]",
            "[2001:db8::1]:443",
            "[fc00::/7]:443",
        ] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
        for (text, canonical) in [
            ("Example.COM.", "example.com"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("fc00::/7", "[fc00::/7]"),
            ("1.2.3.4/32", "1.2.3.4"),
        ] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn e45_junk_is_an_error() {
        for text in [
            "",
            "*",
            "**",
            "*.",
            "**.",
            "*:443",
            "***.a.com",
            "*a.com",
            "a.*.com",
            "*.*.com",
            "a.*",
            "https://a.com",
            "a.com/",
            "a.com/path",
            "a.com:",
            "a.com:0",
            "a.com:x",
            "a.com:80:80",
            " a.com",
            "a.com ",
            "a.com\n",
            "u@a.com",
            "[a.com]",
            "[1.2.3.4]",
            "[::1",
            "::1]",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "127.1",
            "0x7f.1",
            "::ffff:1.2.3.4",
            "fe80::1%eth0",
            "exämple.com",
            "a,b",
            "/",
            "1.2.3.4/",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn e45_wildcards_over_public_suffixes_are_too_wide_to_allow() {
        for text in [
            "*.com",
            "**.com",
            "*.co.uk",
            "*.github.io",
            "**.s3.amazonaws.com",
            "*.internal",
        ] {
            assert!(Pattern::parse(text).unwrap().too_wide().is_some(), "{text}");
        }
        for text in [
            "com",
            "*.example.com",
            "*.example.co.uk",
            "me.github.io",
            "**.me.github.io",
        ] {
            assert!(Pattern::parse(text).unwrap().too_wide().is_none(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(cases())]

        /// Twin of the fuzz target `pattern`, with the one behind.
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            drop(Pattern::parse(&text));
        }

        #[test]
        fn what_is_read_has_one_canonical_form(text in "[*a-f0-9.:/\\[\\]-]{0,24}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&pattern.to_string()).unwrap(), pattern);
            }
        }
    }
}
