//! Facts in, verdict out: the vocabulary of every decision.
//!
//! Facts arrive one after the other, and each costs more than the one before: name and port, then the
//! addresses, then the name in the TLS handshake, then the requests themselves. A policy is asked again with all
//! that is known; it allows, denies, or says which fact it needs next. So a name that will be denied is never
//! looked up, a tunnel that will be denied never carries a byte, and TLS is opened only for a policy that has to
//! see inside.
//!
//! ```text
//! name, port ──► Need::Addresses ──► addresses ──► Need::Hello ──► TLS name ──► Need::Request ──► request ──► Allow
//!      │                                 │             │  may connect,    │           │  each one      │
//!      └──► Deny                         └──► Deny     │  may not send    └──► Deny   │  by itself     └──► Deny
//! ```
//!
//! A fact may also be given before it is asked for, as the request line of plain HTTP is; a policy then may deny
//! at once, before anything is looked up.

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::policy::{Allowed, Candidate, Class, HostName, Layer, RequestLine, Target};

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
    /// Whether an upstream proxy is to look the name up, and this host cannot: there will be no addresses to judge.
    pub by_name: bool,
    /// What the client's first bytes said, once known.
    pub hello: Option<&'a Hello>,
    /// The one request that is judged, once known.
    pub request: Option<&'a RequestLine>,
    /// Whether somebody who may do so approved the target: it stands for a rule that allows it, and for no more.
    pub approved: bool,
}

impl<'a> Facts<'a> {
    /// Starts with what a client's request says.
    pub fn new(target: &'a Target, carriage: Carriage) -> Self {
        Self {
            target,
            carriage,
            candidates: None,
            by_name: false,
            hello: None,
            request: None,
            approved: false,
        }
    }

    /// Adds the addresses.
    #[must_use]
    pub fn with_candidates(mut self, candidates: &'a [Candidate]) -> Self {
        self.candidates = Some(candidates);
        self
    }

    /// Adds that the name alone decides. A policy that does not know of this goes on asking for addresses, and is
    /// taken to deny.
    #[must_use]
    pub fn by_name_alone(mut self) -> Self {
        self.by_name = true;
        self
    }

    /// Adds the client's first bytes.
    #[must_use]
    pub fn with_hello(mut self, hello: &'a Hello) -> Self {
        self.hello = Some(hello);
        self
    }

    /// Adds the request.
    #[must_use]
    pub fn with_request(mut self, request: &'a RequestLine) -> Self {
        self.request = Some(request);
        self
    }

    /// Adds that the target was approved.
    #[must_use]
    pub fn with_approval(mut self) -> Self {
        self.approved = true;
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
    /// The request. For plain HTTP: its request line. For a tunnel: its TLS has to be opened, and each request in
    /// it asked for by itself, before any of it goes on.
    Request {
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
    /// The addresses that may be dialled, in the resolver's order; empty only where the name alone decided.
    pub addresses: Vec<Allowed<SocketAddr>>,
    /// Whether it holds for this one request only. Whoever forwards it removes
    /// [`OVERRIDES`](crate::policy::OVERRIDES), and asks again for the next request.
    pub by_request: bool,
}

impl Allow {
    /// Allows these addresses.
    pub fn new(addresses: Vec<Allowed<SocketAddr>>) -> Self {
        Self {
            rule: None,
            addresses,
            by_request: false,
        }
    }

    /// Names the rule that decided.
    #[must_use]
    pub fn with_rule(mut self, rule: Option<Rule>) -> Self {
        self.rule = rule;
        self
    }

    /// Says whether it holds for one request only.
    #[must_use]
    pub fn for_request(mut self, by_request: bool) -> Self {
        self.by_request = by_request;
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

    /// Tells whether it came about for want of a rule that allows the target, and against none: what somebody who
    /// may do so can approve. A block, a limit and the floor are explicit, and so is a rule that allows a host's
    /// other requests.
    pub fn is_implicit(&self) -> bool {
        matches!(self.reason, Reason::NotAllowed | Reason::Port)
    }

    /// Returns the layer that decided, if one did.
    pub fn layer(&self) -> Option<Layer> {
        match self.reason {
            Reason::Address(_) | Reason::Localhost => Some(Layer::BuiltIn),
            _ => self.rule.as_ref().and_then(Rule::layer),
        }
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
    /// A limit leaves it out, whatever else allows it.
    Limit,
    /// The host is allowed, this request is not.
    Request,
    /// The request can be read in more than one way, and a rule would have to choose.
    Ambiguous,
    /// A rule has to see the requests inside TLS, and this proxy does not open it.
    Uninspected,
    /// Somebody was asked to approve it and did not.
    NotApproved,
    /// Every address that the host has is refused by the floor; the class is that of the first.
    Address(Class),
    /// The name means this machine itself.
    Localhost,
    /// The name has no address, or none could be learned in time.
    Unresolved,
    /// The host is the proxy that this host itself goes through.
    UpstreamProxy,
    /// An upstream proxy would look the name up, and only some network's own name server knows it.
    InternalName,
    /// More is asked for than the limits allow.
    Busy,
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
            Self::Limit => "limited",
            Self::Request => "request-not-allowed",
            Self::Ambiguous => "ambiguous-request",
            Self::Uninspected => "not-inspected",
            Self::NotApproved => "not-approved",
            Self::Address(_) => "address-refused",
            Self::Localhost => "localhost",
            Self::Unresolved => "unresolved",
            Self::UpstreamProxy => "upstream-proxy",
            Self::InternalName => "internal-name",
            Self::Busy => "busy",
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

/// A reference to a rule: its list, its text, and the layer that holds it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    layer: Option<Layer>,
    text: Arc<str>,
}

impl Rule {
    /// Names a rule by the text that people will look for, such as `allow *.example.com`.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self {
            layer: None,
            text: text.into(),
        }
    }

    /// Names the layer that holds it.
    #[must_use]
    pub fn in_layer(mut self, layer: Option<Layer>) -> Self {
        self.layer = layer;
        self
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the layer; `None` if there is only one set of rules.
    pub fn layer(&self) -> Option<Layer> {
        self.layer
    }
}

impl fmt::Display for Rule {
    /// The text, after the layer's name if there are layers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{layer}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}
