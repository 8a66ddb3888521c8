//! The arguments, and the rules that they make.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Parser, ValueEnum};
use sandbox_net::{
    UpstreamProxy,
    policy::{Mode, RuleSet},
};

use crate::Failure;

/// A forward proxy that judges by name and by address.
#[derive(Debug, Parser)]
#[command(name = "egress-proxy", version, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3128")]
    pub(crate) listen: SocketAddr,
    /// What happens to hosts that no rule names; a rules file has its own
    #[arg(long, value_name = "MODE")]
    pub(crate) policy: Option<Policy>,
    /// Let a host through: name, *.name, address or network, with or without :port
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Vec<String>,
    /// Block a host, whatever else allows it
    #[arg(long, value_name = "HOST")]
    pub(crate) block_host: Vec<String>,
    /// A file of rules in JSON: {"mode": "deny", "allow": ["*.example.com"], "block": []}
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
    /// Ask this name server, not the system's resolver; more than one: the next where one does not answer
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = name_server)]
    pub(crate) name_server: Vec<SocketAddr>,
    /// Reach the world through another proxy: http, https or socks5://host:port; a login does not belong here
    #[arg(long, value_name = "URL", group = "upstream")]
    pub(crate) upstream_proxy: Option<String>,
    /// The same, its URL with its login read from a file
    #[arg(long, value_name = "FILE", group = "upstream")]
    pub(crate) upstream_proxy_file: Option<PathBuf>,
    /// The same, as http_proxy, https_proxy, all_proxy and no_proxy say
    #[arg(long, group = "upstream")]
    pub(crate) upstream_proxy_from_env: bool,
    /// Send names to that proxy, not the addresses that were judged
    #[arg(long, requires = "upstream")]
    pub(crate) upstream_proxy_names: bool,
    /// Hosts that are reached without that proxy, as in NO_PROXY
    #[arg(long, value_name = "LIST", requires = "upstream")]
    pub(crate) no_upstream_proxy: Option<String>,
    /// Where events go, one JSON object a line: a file, - for standard output, none
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) events: String,
    /// The most connections at a time; one more is answered 503
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub(crate) connections: usize,
    /// Look into TLS, and write the certificate that clients have to trust to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) authority: Option<PathBuf>,
    /// A host whose TLS is looked into although no rule needs it
    #[arg(long, value_name = "HOST", requires = "authority")]
    pub(crate) inspect: Vec<String>,
    /// A host whose TLS is never looked into
    #[arg(long, value_name = "HOST", requires = "authority")]
    pub(crate) bypass: Vec<String>,
    /// Certificates that vouch for inspected hosts, beside the system's
    #[arg(long, value_name = "FILE", requires = "authority")]
    pub(crate) root_certificates: Option<PathBuf>,
    /// How long what is under way may go on after the first signal
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) grace: humantime::Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Public hosts are let through, on ports 80 and 443
    Allow,
    /// They are not
    Deny,
}

impl Arguments {
    /// Returns the proxy that the world is reached through, if one is named.
    pub(crate) fn upstream(&self) -> Result<Option<UpstreamProxy>, Failure> {
        let upstream = match (&self.upstream_proxy, &self.upstream_proxy_file) {
            (Some(url), _) => {
                let upstream = UpstreamProxy::at(url)?;
                if upstream.has_login() {
                    return Err(
                        "every user of this machine sees arguments: name a login in a file".into(),
                    );
                }
                Some(upstream)
            }
            (None, Some(path)) => {
                let url = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                Some(UpstreamProxy::at(url.trim())?)
            }
            (None, None) if self.upstream_proxy_from_env => {
                UpstreamProxy::from_variables(|name| std::env::var(name).ok())?
            }
            (None, None) => None,
        };
        Ok(upstream.map(|upstream| {
            let upstream = upstream.except(self.no_upstream_proxy.as_deref().unwrap_or_default());
            match self.upstream_proxy_names {
                true => upstream.names(),
                false => upstream,
            }
        }))
    }

    /// Returns the rules of the file, if one is named, and those of the arguments on top.
    pub(crate) fn rules(&self) -> Result<RuleSet, Failure> {
        let mut rules = match &self.rules {
            None => RuleSet::deny(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                serde_json::from_str(&text)
                    .map_err(|error| format!("cannot load {}: {error}", path.display()))?
            }
        };
        if let Some(policy) = self.policy {
            let mode = match policy {
                Policy::Allow => Mode::Allow,
                Policy::Deny => Mode::Deny,
            };
            if self.rules.is_some() && rules.mode() != mode {
                return Err("--policy says otherwise than the rules file".into());
            }
            rules = if self.rules.is_some() {
                rules
            } else {
                RuleSet::new(mode)
            };
        }
        for host in &self.allow_host {
            rules = rules.allow(host)?;
        }
        for host in &self.block_host {
            rules = rules.block(host)?;
        }
        Ok(rules)
    }
}

/// Reads a name server's address; its port is that of DNS unless it says otherwise.
fn name_server(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    const DNS: u16 = 53;
    let address: Result<IpAddr, _> = text.parse();
    address.map_or_else(|_| text.parse(), |address| Ok((address, DNS).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(line: &[&str]) -> Result<RuleSet, Failure> {
        let line = ["egress-proxy"].iter().chain(line);
        Arguments::try_parse_from(line)?.rules()
    }

    #[test]
    fn arguments_add_to_a_file_that_has_its_own_mode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            r#"{"mode": "allow", "allow": ["a.test"], "block": ["b.test"]}"#,
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let made = rules(&["--rules", path, "--block-host", "c.test"]).unwrap();
        assert_eq!(made.mode(), Mode::Allow);
        assert_eq!((made.allowed().len(), made.blocked().len()), (1, 2));
        assert!(rules(&["--rules", path, "--policy", "deny"]).is_err());
    }

    #[test]
    fn name_servers_are_addresses_with_or_without_a_port() {
        for (text, read) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2620:fe::9", "[2620:fe::9]:53"),
            ("[2620:fe::9]:853", "[2620:fe::9]:853"),
        ] {
            assert_eq!(name_server(text).unwrap().to_string(), read);
        }
        for text in ["dns.test", "9.9.9.9:", ":53", "127.1", ""] {
            assert!(name_server(text).is_err());
        }
    }

    #[test]
    fn e34_a_login_does_not_stand_among_the_arguments() {
        let upstream = |line: &[&str]| {
            let line = ["egress-proxy"].iter().chain(line);
            Arguments::try_parse_from(line).unwrap().upstream()
        };
        assert!(upstream(&[]).unwrap().is_none());
        let plain = upstream(&["--upstream-proxy", "proxy.test:3128"]);
        assert_eq!(
            plain.unwrap().unwrap().locations(),
            ["http://proxy.test:3128"]
        );
        let told = upstream(&["--upstream-proxy", "http://me:s3cret@proxy.test"]).unwrap_err();
        assert!(!told.to_string().contains("s3cret"), "{told}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "http://me:s3cret@proxy.test\n").unwrap();
        let path = file.path().to_str().unwrap();
        let read = upstream(&["--upstream-proxy-file", path]).unwrap().unwrap();
        assert!(read.has_login());
    }

    #[test]
    fn e47_nothing_named_is_nothing_allowed_and_junk_is_refused() {
        assert_eq!(rules(&[]).unwrap().mode(), Mode::Deny);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"mode": "allow", "allow": ["*"]}"#).unwrap();
        assert!(rules(&["--rules", file.path().to_str().unwrap()]).is_err());
        assert!(rules(&["--allow-host", "http://a.test/"]).is_err());
    }
}
