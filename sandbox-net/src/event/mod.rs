//! What was decided and what became of it, as a stream that can be subscribed to and written down.
//!
//! Each event has the next sequence number. A subscriber that reads too slowly loses the oldest events, never
//! silently: the loss is an event itself, [`Kind::Gap`], with the number of those that were missed. Time comes
//! from a clock that is passed in.

mod log;

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::sync::broadcast;

pub use log::LogFile;

use crate::policy::{Denial, HostName, Rule, Target};

/// Tells the time; [`SystemTime::now`] in production.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// A connection or request was judged.
    Decision,
    /// A name was asked for inside; it was judged, and not looked up.
    Lookup,
    /// What was allowed has come to its end, with its byte counts.
    End,
    /// A request could not be read, or was ambiguous.
    Refused,
    /// A secret was put into a request.
    Credential,
    /// A credential was on its way to where it does not belong, and was stopped; or seen, if that is all that was
    /// asked for.
    Alert,
    /// Events were lost because this subscriber read too slowly, or could not be written down.
    Gap,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Decided {
    /// It was let through.
    Allow,
    /// It was not.
    Deny,
}

/// One event. Fields that do not apply are `None` and left out of the JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// The sequence number, from 0, without holes but those that a [`Kind::Gap`] tells of.
    pub seq: u64,
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// What the event tells of.
    pub kind: Kind,
    /// The sandbox, if the proxy was told its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The connection from the sandbox, counted from 0.
    pub connection: u64,
    /// The host as it was judged, in canonical form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address that was dialled, or that an upstream proxy was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The request's method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The request's path without its query, which may hold secrets; only plain HTTP has one to see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Decided>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why, as a word for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, as a sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The name of the credential that it is about, never its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Bytes sent to the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes received from the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// Milliseconds from the decision to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How many events a gap swallowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

impl Event {
    pub(crate) fn new(kind: Kind, connection: u64) -> Self {
        Self {
            seq: 0,
            time_ms: 0,
            kind,
            sandbox: None,
            connection,
            host: None,
            port: None,
            address: None,
            method: None,
            path: None,
            verdict: None,
            rule: None,
            reason: None,
            text: None,
            credential: None,
            bytes_up: None,
            bytes_down: None,
            duration_ms: None,
            missed: None,
        }
    }

    pub(crate) fn with_sandbox(mut self, sandbox: Option<&Arc<str>>) -> Self {
        self.sandbox = sandbox.map(|name| name.as_ref().to_owned());
        self
    }

    pub(crate) fn with_target(mut self, target: &Target) -> Self {
        self.host = Some(target.host.to_string());
        self.port = Some(target.port);
        self
    }

    pub(crate) fn with_name(mut self, name: &HostName) -> Self {
        self.host = Some(name.to_string());
        self
    }

    pub(crate) fn with_address(mut self, address: impl Into<Option<SocketAddr>>) -> Self {
        self.address = address.into();
        self
    }

    pub(crate) fn with_request(mut self, method: &str, path: Option<&str>) -> Self {
        self.method = Some(method.to_owned());
        self.path = path.map(str::to_owned);
        self
    }

    pub(crate) fn with_allow(mut self, rule: Option<&Rule>) -> Self {
        self.verdict = Some(Decided::Allow);
        self.rule = rule.map(Rule::to_string);
        self
    }

    pub(crate) fn with_denial(mut self, denial: &Denial) -> Self {
        self.verdict = Some(Decided::Deny);
        self.rule = denial.rule.as_ref().map(Rule::to_string);
        self.with_reason(denial.reason.as_str(), &denial.text)
    }

    pub(crate) fn with_reason(mut self, reason: &str, text: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self.text = Some(text.to_owned());
        self
    }

    /// Denies for what is, or is not, in a request; names the credential that it is about.
    #[cfg(feature = "inspect")]
    pub(crate) fn with_refusal(mut self, refusal: &crate::credentials::Refusal) -> Self {
        self.verdict = Some(Decided::Deny);
        self.credential = refusal.credential().map(str::to_owned);
        self.with_reason(refusal.reason(), &refusal.to_string())
    }

    #[cfg(feature = "inspect")]
    pub(crate) fn with_credential(mut self, name: &str) -> Self {
        self.credential = Some(name.to_owned());
        self
    }

    pub(crate) fn with_traffic(mut self, up: u64, down: u64, duration: Duration) -> Self {
        self.bytes_up = Some(up);
        self.bytes_down = Some(down);
        self.duration_ms = Some(millis(duration));
        self
    }

    /// Returns the event as one line of JSON, without the line's end.
    ///
    /// The line is ASCII: everything else, control and bidirectional characters among it, is escaped, so that
    /// nothing that a guest chose can end the line or act on a terminal.
    pub fn to_json_line(&self) -> String {
        // A struct of strings and numbers always has a JSON form.
        let json = serde_json::to_string(self).unwrap_or_default();
        if json.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return json;
        }
        let mut line = String::with_capacity(json.len());
        for c in json.chars() {
            if matches!(c, ' '..='~') {
                line.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    line.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        line
    }
}

/// Where events go: numbered, timed, and sent to every subscriber. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Hub>);

struct Hub {
    clock: Clock,
    next: Mutex<u64>,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// A stream that keeps `capacity` events for a slow subscriber (rounded up to a power of two).
    pub fn new(capacity: usize, clock: Clock) -> Self {
        Self(Arc::new(Hub {
            clock,
            next: Mutex::new(0),
            sender: broadcast::Sender::new(capacity.max(1)),
        }))
    }

    /// Subscribes to the events from now on.
    pub fn subscribe(&self) -> Subscription {
        // Locked, so that the number and the place in the stream agree.
        let next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        Subscription {
            receiver: self.0.sender.subscribe(),
            clock: Arc::clone(&self.0.clock),
            next: *next,
        }
    }

    /// Numbers an event; makes and sends it only if somebody listens.
    pub(crate) fn emit_with(&self, make: impl FnOnce() -> Event) {
        let traced = tracing::enabled!(target: "sandbox_net::event", tracing::Level::DEBUG);
        let made = (traced || self.0.sender.receiver_count() > 0).then(make);
        let mut next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = *next;
        *next += 1;
        let Some(mut event) = made else {
            return;
        };
        event.seq = seq;
        event.time_ms = unix_millis((self.0.clock)());
        tracing::debug!(target: "sandbox_net::event", seq, event = %event.to_json_line());
        // Nobody listening is no failure.
        drop(self.0.sender.send(event));
    }
}

impl Default for Events {
    /// Keeps 4,096 events (about a megabyte at worst), timed by the system's clock.
    fn default() -> Self {
        Self::new(4096, Arc::new(SystemTime::now))
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("subscribers", &self.0.sender.receiver_count())
            .finish_non_exhaustive()
    }
}

/// One reader's place in the stream.
pub struct Subscription {
    receiver: broadcast::Receiver<Event>,
    clock: Clock,
    next: u64,
}

impl Subscription {
    /// Returns the next event, `None` once the proxy and all holders of its [`Events`] are gone.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => {
                self.next = event.seq + 1;
                Some(event)
            }
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(self.gap(missed)),
        }
    }

    /// Returns the next event if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.receiver.try_recv() {
            Ok(event) => {
                self.next = event.seq + 1;
                Some(event)
            }
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(self.gap(missed)),
            Err(_) => None,
        }
    }

    fn gap(&mut self, missed: u64) -> Event {
        let mut event = Event::new(Kind::Gap, 0);
        event.seq = self.next;
        event.time_ms = unix_millis((self.clock)());
        event.missed = Some(missed);
        self.next += missed;
        event
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(capacity: usize) -> Events {
        Events::new(
            capacity,
            Arc::new(|| UNIX_EPOCH + Duration::from_millis(1234)),
        )
    }

    #[test]
    fn e82_a_line_is_ascii_whatever_the_guest_chose() {
        let event = Event::new(Kind::Refused, 7).with_reason(
            "malformed",
            "a\nb\r\u{1b}[2J\u{202e}\u{7f}\u{85}\u{1f600}\"\\",
        );
        let line = event.to_json_line();
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line}"
        );
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["text"], event.text.unwrap());
    }

    #[tokio::test]
    async fn a_slow_reader_learns_what_it_missed() {
        let events = events(4);
        let mut reader = events.subscribe();
        for connection in 0..10 {
            events.emit_with(|| Event::new(Kind::Decision, connection));
        }
        let gap = reader.next().await.unwrap();
        assert_eq!((gap.kind, gap.seq, gap.missed), (Kind::Gap, 0, Some(6)));
        for seq in 6..10 {
            let event = reader.next().await.unwrap();
            assert_eq!((event.seq, event.time_ms), (seq, 1234));
        }
        drop(events);
        assert_eq!(reader.next().await, None);
    }
}
