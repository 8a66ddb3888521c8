//! Connections of programs that know of no proxy, handed on by the guest with the name that they looked up.
//!
//! The guest says where a connection was going; that is believed no more than what a request for the proxy says,
//! and judged by the same code. What counts as proof depends on the port:
//!
//! | port | what has to agree with the name |
//! |---|---|
//! | 80 | each request's `Host` (or URI), read and written anew as `exchange` does |
//! | 443 | the name in the ClientHello, as in a tunnel that CONNECT opened |
//! | any other | nothing: a rule has to name the port |
//!
//! A lookup is answered by the policy alone. Nothing is looked up until a connection needs it, so a name that is
//! denied never leaves this machine, nor does one that is only asked for.

use std::{
    io,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use sandbox_base::{
    BoxStream, ByteStream,
    frame::{read_message, write_message},
};
use tokio::{sync::mpsc, time::timeout};

use super::{Proxy, client::Client, connection, throttle::Throttled, tunnel::Tunnel};
use crate::{
    Error,
    decide::undecided,
    event::Kind,
    pace::Paced,
    policy::{Carriage, Denial, EgressPolicy, Facts, Host, HostName, Need, Target, Verdict},
    wire::{Admission, Answer, First, Lookup, MAX_FROM_GUEST, MAX_FROM_HOST, Told},
};

const HTTP: u16 = 80;
const HTTPS: u16 = 443;
/// The most ports that are captured. Each is a listener inside, and a question to the policy for each name.
const MAX_PORTS: usize = 64;
/// Answers that may wait for the guest to take them; it is not read from meanwhile.
const QUEUE: usize = 64;

/// Lists the ports on which connections inside are captured: 80, 443, and those that allow rules name, of every
/// layer, 64 at most. A policy that tells neither its rules nor its ports has the first two.
pub fn captured_ports(policy: &dyn EgressPolicy) -> Vec<u16> {
    let named = policy.named_ports();
    let named = named
        .into_iter()
        .filter(|port| ![HTTP, HTTPS].contains(port));
    let ports: Vec<u16> = [HTTP, HTTPS].into_iter().chain(named).collect();
    if ports.len() > MAX_PORTS {
        let left_out = &ports[MAX_PORTS..];
        tracing::warn!(?left_out, "too many ports to capture");
    }
    ports.into_iter().take(MAX_PORTS).collect()
}

impl Proxy {
    /// Serves a stream of the guest's capturing half ([`guest::capture`](crate::guest::capture)) to its end: a
    /// connection that a program made, or the stream of its name lookups.
    ///
    /// Errors on it end the stream and nothing else; one stream too many is dropped. Dropping the future closes
    /// what it opened.
    pub async fn serve_captured(&self, stream: impl ByteStream + 'static) {
        match &self.0.bandwidth {
            Some(bandwidth) => {
                let stream: BoxStream = Box::new(Throttled::new(stream, Arc::clone(bandwidth)));
                self.serve_captured_stream(stream).await;
            }
            None => self.serve_captured_stream(stream).await,
        }
    }

    async fn serve_captured_stream(&self, mut stream: impl ByteStream + 'static) {
        let shared = &self.0;
        let id = shared.connections.fetch_add(1, Relaxed);
        let client = Client::new(Arc::clone(shared), id);
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
            let text = "this sandbox has too many connections open";
            return refuse(&client, "busy", text);
        };
        let first = read_message(&mut stream, MAX_FROM_GUEST);
        match timeout(shared.limits.head_timeout, first).await {
            Ok(Ok(First::Names)) => serve_names(&client, stream).await,
            Ok(Ok(First::Connect { host, port })) => match read_target(&host, port) {
                Ok(target) => serve_connection(&client, target, stream).await,
                Err(error) => refuse(&client, "target", &error.to_string()),
            },
            Ok(Err(error)) => refuse(&client, "malformed", &error.to_string()),
            Err(_) => refuse(
                &client,
                "head-timeout",
                "the connection's head did not arrive",
            ),
        }
        drop(place);
    }
}

fn refuse(client: &Client, reason: &str, text: &str) {
    client.emit(Kind::Refused, |event| event.with_reason(reason, text));
}

fn read_target(host: &str, port: u16) -> Result<Target, Error> {
    let host = Host::parse(host)?;
    match port {
        0 => Err(Error::invalid(
            format!("reach `{host}`"),
            "there is no port 0",
        )),
        port => Ok(Target::new(host, port)),
    }
}

async fn serve_connection(client: &Client, target: Target, mut stream: impl ByteStream + 'static) {
    if target.port == HTTP {
        // Each request is judged by itself, and a denial is told in words.
        if admit(&mut stream, Admission::Open).await.is_ok() {
            connection::serve_captured(client, target, stream).await;
        }
        return;
    }
    if client.take_turn().is_err() {
        drop(admit(&mut stream, Admission::Refused).await);
        return;
    }
    match Tunnel::to(client, &target, None).await {
        Ok(tunnel) => {
            if admit(&mut stream, Admission::Open).await.is_ok() {
                connection::run_tunnel(client, tunnel, (stream, Vec::new())).await;
            }
        }
        // Whoever refuses has told why.
        Err(_) => drop(admit(&mut stream, Admission::Refused).await),
    }
}

async fn admit(stream: &mut impl ByteStream, admission: Admission) -> io::Result<()> {
    write_message(stream, &admission, MAX_FROM_HOST).await
}

/// Answers lookups and tells the ports, until the stream ends.
async fn serve_names(client: &Client, stream: impl ByteStream + 'static) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (answers, mut queue) = mpsc::channel(QUEUE);
    let answering = async move {
        loop {
            let Lookup { name } = read_message(&mut reader, MAX_FROM_GUEST).await?;
            let answer = judge_name(client, &name);
            // The other half is never dropped before this one.
            drop(answers.send(Told::Answer { name, answer }).await);
        }
    };
    let mut policy = client.shared.policy.subscribe();
    let telling = async move {
        policy.mark_changed();
        loop {
            let told = tokio::select! {
                changed = policy.changed() => {
                    changed.map_err(io::Error::other)?;
                    let policy = Arc::clone(&policy.borrow_and_update().policy);
                    Told::Ports(captured_ports(&*policy))
                }
                Some(answer) = queue.recv() => answer,
            };
            write_message(&mut writer, &told, MAX_FROM_HOST).await?;
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = answering => ended,
        ended = telling => ended,
    };
    if let Err(error) = ended
        && error.kind() == io::ErrorKind::InvalidData
    {
        refuse(client, "malformed", &error.to_string());
    }
}

/// Tells whether a name may be known inside, and tells of it.
fn judge_name(client: &Client, name: &str) -> Answer {
    let shared = &client.shared;
    let paced = {
        let mut pace = shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        pace.take(Instant::now())
    };
    if let Paced::Excess { tell } = paced {
        if tell {
            let text = "this sandbox looks up too many names";
            client.emit(Kind::Lookup, |event| event.with_reason("busy", text));
        }
        return Answer::Busy;
    }
    let name = match HostName::parse(name) {
        Ok(name) => name,
        Err(error) => {
            client.emit(Kind::Lookup, |event| {
                event.with_reason("target", &error.to_string())
            });
            return Answer::Denied;
        }
    };
    let policy = Arc::clone(&shared.policy.borrow().policy);
    let known = may_be_known(&*policy, name.clone(), shared.approvals.is_some());
    client.emit(Kind::Lookup, |event| {
        let event = event.with_name(&name);
        match &known {
            Ok(Known::Allowed) => event.with_allow(None),
            Ok(Known::Askable) => {
                let text = "somebody is asked once it is connected to";
                event.with_allow(None).with_reason("approval", text)
            }
            Err(denial) => event.with_denial(denial),
        }
    });
    match known {
        Ok(_) => Answer::Allowed,
        Err(_) => Answer::Denied,
    }
}

/// Why a name may be known inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Something at it may be connected to.
    Allowed,
    /// Something at it can be approved, for which it has to be connected to.
    Askable,
}

/// Asks the policy whether anything at a name may be connected to, in a way that is captured.
///
/// # Errors
///
/// The denial for port 443, if every port is denied for good.
fn may_be_known(policy: &dyn EgressPolicy, name: HostName, can_ask: bool) -> Result<Known, Denial> {
    let mut first_denial = None;
    let mut askable = false;
    let mut target = Target::new(Host::Name(name), HTTPS);
    // Most names are for port 443, and that denial says most.
    let ports = captured_ports(policy).into_iter();
    for port in std::iter::once(HTTPS).chain(ports.filter(|port| *port != HTTPS)) {
        target.port = port;
        let carriage = match port {
            HTTP => Carriage::Http,
            _ => Carriage::Tunnel,
        };
        let facts = Facts::new(&target, carriage);
        let denial = match policy.judge(&facts) {
            Verdict::Need(Need::Addresses) => return Ok(Known::Allowed),
            Verdict::Deny(denial) => denial,
            // A policy that would connect before it has seen an address is taken to deny, as everywhere.
            _ => undecided(),
        };
        askable |= can_ask
            && denial.is_implicit()
            && policy.judge(&facts.with_approval()) == Verdict::Need(Need::Addresses);
        first_denial.get_or_insert(denial);
    }
    match askable {
        true => Ok(Known::Askable),
        false => Err(first_denial.unwrap_or_else(undecided)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Layers, Reason, RuleSet};

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn the_ports_are_the_webs_and_those_that_rules_name() {
        let rules = RuleSet::deny().allow("a.com:5432").unwrap();
        let rules = rules.allow("*.b.com").unwrap().allow("10.0.0.0/8:22");
        let rules = rules.unwrap().allow("c.com:443").unwrap();
        assert_eq!(captured_ports(&rules), [80, 443, 22, 5432]);
        let above = RuleSet::deny().allow("d.com:6379").unwrap();
        let layers = Layers::new().organization(above).sandbox(rules);
        assert_eq!(captured_ports(&layers), [80, 443, 22, 5432, 6379]);
        let many = (1000..1100).fold(RuleSet::deny(), |rules, port| {
            rules.allow(&format!("a.com:{port}")).unwrap()
        });
        assert_eq!(captured_ports(&many).len(), MAX_PORTS);
    }

    #[test]
    fn all_ports_fit_one_message() {
        let ports: Vec<u16> = (0..MAX_PORTS as u16).map(|n| u16::MAX - n).collect();
        let told = Told::Ports(ports);
        assert!(sandbox_base::frame::encode(&told, MAX_FROM_HOST).is_ok());
        let longest = Told::Answer {
            name: "a".repeat(253),
            answer: Answer::Busy,
        };
        assert!(sandbox_base::frame::encode(&longest, MAX_FROM_HOST).is_ok());
        let longest = First::Connect {
            host: "a".repeat(253),
            port: u16::MAX,
        };
        assert!(sandbox_base::frame::encode(&longest, MAX_FROM_GUEST).is_ok());
    }

    #[test]
    fn e50_a_name_is_known_if_any_of_its_ports_is_allowed() {
        let rules = RuleSet::deny().allow("db.com:5432").unwrap();
        assert!(may_be_known(&rules, name("db.com"), false).is_ok());
        let denial = may_be_known(&rules, name("other.com"), false).unwrap_err();
        assert_eq!(denial.reason, Reason::NotAllowed);
        // Where somebody can be asked, the name has to be connected to for that.
        let known = may_be_known(&rules, name("other.com"), true);
        assert_eq!(known, Ok(Known::Askable));
        let rules = RuleSet::open().block("evil.com").unwrap();
        assert!(may_be_known(&rules, name("good.com"), false).is_ok());
        assert!(may_be_known(&rules, name("evil.com"), true).is_err());
        let denial = may_be_known(&rules, name("evil.com"), false).unwrap_err();
        assert_eq!(denial.reason, Reason::Blocked);
        let denial = may_be_known(&rules, name("localhost"), false).unwrap_err();
        assert_eq!(denial.reason, Reason::Localhost);
    }
}
