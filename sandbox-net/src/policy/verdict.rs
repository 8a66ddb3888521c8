//! Facts in, verdict out: the vocabulary of every decision.
//!
//! Facts arrive one after the other, and each costs more than the one before: name and port, then the
//! addresses, then the name in the TLS handshake. A policy is asked again with all that is known; it allows,
//! denies, or says which fact it needs next. So a name that will be denied is never looked up, and a tunnel
//! that will be denied never carries a byte.
//!
//! ```text
//! name, port ──► Need::Addresses ──► addresses ──► Need::Hello ──► TLS name ──► Allow
//!      │                                 │             │  may connect,    │
//!      └──► Deny                         └──► Deny     │  may not send    └──► Deny
//! ```

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::policy::{Allowed, Candidate, Class, HostName, Target};

/// How bytes are to reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Carriage {
    /// Plain HTTP requests, each read and written anew by the proxy.
    Http,
    /// Bytes as they come, after CONNECT.
    Tunnel,
}

/// What the first bytes of a tunnel said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hello {
    /// A TLS ClientHello for this name.
    Named(HostName),
    /// A TLS ClientHello without a name.
    Unnamed,
    /// Anything else, or a ClientHello that cannot be read; the text says what is wrong.
    Unreadable(&'static str),
}

/// What is known about a connection so far.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Facts<'a> {
    /// Where it is to go.
    pub target: &'a Target,
    /// How its bytes are to travel.
    pub carriage: Carriage,
    /// What the target resolved to, once known.
    pub candidates: Option<&'a [Candidate]>,
    /// What the client's first bytes said, once known.
    pub hello: Option<&'a Hello>,
}

impl<'a> Facts<'a> {
    /// Starts with what a client's request says.
    pub fn new(target: &'a Target, carriage: Carriage) -> Self {
        Self {
            target,
            carriage,
            candidates: None,
            hello: None,
        }
    }

    /// Adds the addresses.
    #[must_use]
    pub fn with_candidates(mut self, candidates: &'a [Candidate]) -> Self {
        self.candidates = Some(candidates);
        self
    }

    /// Adds the client's first bytes.
    #[must_use]
    pub fn with_hello(mut self, hello: &'a Hello) -> Self {
        self.hello = Some(hello);
        self
    }
}

/// What a policy answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The connection may be made and used.
    Allow(Allow),
    /// It may not.
    Deny(Denial),
    /// The facts do not suffice.
    Need(Need),
}

impl Verdict {
    /// Returns the denial, if it is one.
    pub fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Deny(denial) => Some(denial),
            _ => None,
        }
    }

    /// Tells whether the connection is allowed with nothing left to learn.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// The fact that a policy needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// The target's addresses: it may be looked up, nothing more.
    Addresses,
    /// The client's first bytes: these addresses may be connected to, but nothing may be sent yet.
    Hello {
        /// The addresses that may be connected to.
        addresses: Vec<Allowed<SocketAddr>>,
    },
}

/// Leave to connect and to send.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allow {
    /// The rule that decided; `None` if the mode did.
    pub rule: Option<Rule>,
    /// The addresses that may be dialled, in the resolver's order, never empty.
    pub addresses: Vec<Allowed<SocketAddr>>,
}

impl Allow {
    /// Allows these addresses.
    pub fn new(addresses: Vec<Allowed<SocketAddr>>) -> Self {
        Self {
            rule: None,
            addresses,
        }
    }

    /// Names the rule that decided.
    #[must_use]
    pub fn with_rule(mut self, rule: Option<Rule>) -> Self {
        self.rule = rule;
        self
    }
}

/// A refusal with its reason; a value, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people: one sentence, without addresses that the client did not name itself.
    pub text: Cow<'static, str>,
    /// What would make it work, if anything does.
    pub remedy: Option<Cow<'static, str>>,
    /// The rule that decided; `None` if the absence of one did.
    pub rule: Option<Rule>,
}

impl Denial {
    /// Refuses for a reason.
    pub fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            text: text.into(),
            remedy: None,
            rule: None,
        }
    }

    /// Says what would make it work.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Names the rule that decided.
    #[must_use]
    pub fn with_rule(mut self, rule: Option<Rule>) -> Self {
        self.rule = rule;
        self
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(rule) = &self.rule {
            write!(f, " (rule: {rule})")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// Why something is denied, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No rule allows the host.
    NotAllowed,
    /// A rule blocks it.
    Blocked,
    /// The host is allowed, this port is not.
    Port,
    /// Every address that the host has is refused by the floor; the class is that of the first.
    Address(Class),
    /// The name means this machine itself.
    Localhost,
    /// The name has no address, or none could be learned in time.
    Unresolved,
    /// The name in the TLS handshake is another one than the tunnel was asked for.
    TlsName,
    /// The tunnel's first bytes are not a TLS handshake with a name, and no rule names this port.
    NotTls,
    /// Tunnels to this port need a rule that names it.
    Tunnel,
    /// The policy could not decide.
    Undecided,
    /// An embedder's own reason; the text says which.
    Custom,
}

impl Reason {
    /// Returns the reason as a lower-case word, as it appears in events and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "not-allowed",
            Self::Blocked => "blocked",
            Self::Port => "port-not-allowed",
            Self::Address(_) => "address-refused",
            Self::Localhost => "localhost",
            Self::Unresolved => "unresolved",
            Self::TlsName => "tls-name-mismatch",
            Self::NotTls => "not-tls",
            Self::Tunnel => "tunnel-not-allowed",
            Self::Undecided => "undecided",
            Self::Custom => "custom",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reference to a rule: its list and its text. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule(Arc<str>);

impl Rule {
    /// Names a rule by the text that people will look for, such as `allow *.example.com`.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
