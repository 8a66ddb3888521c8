//! Name lookups, answered without looking anything up: DNS messages, and the addresses that stand for names.
//!
//! A program asks for a name and gets an address of [`Pool`], which means that name and nothing else until long
//! after the answer has expired. So a connection's address tells which name was meant, and the name is what is
//! judged. Real addresses never come in here: the name is looked up on the host, once it is allowed, when it is
//! connected to.
//!
//! What the answers say (RFC 1035, RFC 2308, RFC 6761, RFC 6891):
//!
//! | question | answer |
//! |---|---|
//! | A, allowed | one address, for [`TTL`] |
//! | AAAA, HTTPS, SVCB and any other type, allowed | no data: no IPv6, no alternative ways to a host |
//! | any type, denied | no such name |
//! | `localhost` | `127.0.0.1` and `::1` |
//! | addresses (`in-addr.arpa`, `ip6.arpa`), names that no host has | no such name |
//! | more than one question, compression in it, a length that does not come out even | format error |
//! | anything but a query of class IN | not implemented |
//!
//! The reader takes only what is one plain query and cannot panic. What it ignores: all sections behind the
//! question but for an OPT record right behind it, which is answered by one.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

/// How long an answer may be kept. Short, since a name that is denied now may be allowed soon.
pub const TTL: Duration = Duration::from_secs(60);
/// How long an address keeps its name at least after it was last given out or used: far longer than programs
/// keep an expired answer.
pub const LEASE: Duration = Duration::from_secs(15 * 60);
/// The addresses that stand for names: a half of the network for benchmarks (RFC 2544), which is no part of the
/// internet and which people do not use for containers. At the 50 names in a second that the host answers, it
/// takes longer than a [`LEASE`] to use them up.
pub const POOL: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// How many addresses the pool has.
pub const POOL_SIZE: u32 = 1 << 16;

const HEADER: usize = 12;
const MAX_NAME: usize = 253;
const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
/// The largest answer is far below 512 bytes; this is what DNS software agrees on (DNS flag day 2020).
const UDP_SIZE: u16 = 1232;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// Nothing that has an answer.
    Nothing,
    /// What needs nothing more to be answered.
    Answered(Vec<u8>),
    /// A question about a name, which the host has to be asked about.
    Asked(Question),
}

/// A question about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    head: Head,
    /// The question as it was written, whose letters' case is kept.
    raw: Vec<u8>,
    name: String,
    kind: u16,
    has_opt: bool,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Known {
    /// It has this address.
    Address(Ipv4Addr),
    /// It exists, and has nothing of the kind that was asked for.
    NoData,
    /// It does not exist, or is denied.
    NoSuchName,
    /// That cannot be said now.
    Failure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    id: [u8; 2],
    /// The operation and whether recursion is desired, as in the query's first byte of flags.
    flags: u8,
}

/// The codes of RFC 1035, 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
}

/// Reads a message that a program has sent.
pub fn read(message: &[u8]) -> Heard {
    let Some((head, rest)) = message.split_at_checked(HEADER) else {
        return Heard::Nothing;
    };
    if head[2] & 0x80 != 0 {
        return Heard::Nothing; // an answer; answering it could go on for ever
    }
    let header = Head {
        id: [head[0], head[1]],
        flags: head[2],
    };
    let bare = |code| Heard::Answered(header.answer(code, 0, 0, 0));
    if head[2] & 0x78 != 0 {
        return bare(Code::NotImplemented);
    }
    if head[4..6] != [0, 1] {
        return bare(Code::FormatError);
    }
    let Some((raw, rest)) = split_question(rest) else {
        return bare(Code::FormatError);
    };
    let (labels, tail) = raw.split_at(raw.len() - 4);
    let class = u16::from_be_bytes([tail[2], tail[3]]);
    if class != CLASS_IN {
        return bare(Code::NotImplemented);
    }
    let question = Question {
        head: header,
        raw: raw.to_vec(),
        name: name_of(labels).unwrap_or_default(),
        kind: u16::from_be_bytes([tail[0], tail[1]]),
        has_opt: has_opt(head, rest),
    };
    match question.known_here() {
        Some(answer) => Heard::Answered(answer),
        None => Heard::Asked(question),
    }
}

impl Question {
    /// Returns the name in lower case, without its last dot; never empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells whether an IPv4 address is asked for.
    pub fn wants_address(&self) -> bool {
        self.kind == TYPE_A
    }

    /// Returns the answer: at most 512 bytes.
    pub fn answer(&self, known: Known) -> Vec<u8> {
        match known {
            Known::Address(address) => self.record(TYPE_A, &address.octets()),
            Known::NoData => self.without_record(Code::NoError),
            Known::NoSuchName => self.without_record(Code::NameError),
            Known::Failure => self.without_record(Code::ServerFailure),
        }
    }

    /// Answers what the host need not be asked.
    fn known_here(&self) -> Option<Vec<u8>> {
        let below = |parent: &str| {
            let before = self.name.strip_suffix(parent);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        if below("localhost") {
            return Some(match self.kind {
                TYPE_A => self.record(TYPE_A, &Ipv4Addr::LOCALHOST.octets()),
                TYPE_AAAA => self.record(TYPE_AAAA, &std::net::Ipv6Addr::LOCALHOST.octets()),
                _ => self.without_record(Code::NoError),
            });
        }
        let nobodys = self.name.is_empty() || below("in-addr.arpa") || below("ip6.arpa");
        nobodys.then(|| self.without_record(Code::NameError))
    }

    fn without_record(&self, code: Code) -> Vec<u8> {
        let mut answer = self.begin(code, 0);
        self.end(&mut answer);
        answer
    }

    fn record(&self, kind: u16, data: &[u8]) -> Vec<u8> {
        let mut answer = self.begin(Code::NoError, 1);
        // The name is the question's, which begins right behind the header (RFC 1035, 4.1.4).
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(kind.to_be_bytes());
        answer.extend(CLASS_IN.to_be_bytes());
        answer.extend((TTL.as_secs() as u32).to_be_bytes());
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend_from_slice(data);
        self.end(&mut answer);
        answer
    }

    fn begin(&self, code: Code, records: u8) -> Vec<u8> {
        let mut answer = self.head.answer(code, 1, records, self.has_opt.into());
        answer.extend_from_slice(&self.raw);
        answer
    }

    /// RFC 6891, 6.1.1: who understands OPT answers it by one.
    fn end(&self, answer: &mut Vec<u8>) {
        if self.has_opt {
            answer.push(0);
            answer.extend(TYPE_OPT.to_be_bytes());
            answer.extend(UDP_SIZE.to_be_bytes());
            answer.extend([0; 6]);
        }
    }
}

impl Head {
    fn answer(self, code: Code, questions: u8, answers: u8, additional: u8) -> Vec<u8> {
        // An answer, of the same operation, recursion as desired; recursion is available.
        let flags = [0x80 | (self.flags & 0x79), 0x80 | code as u8];
        let counts = [0, questions, 0, answers, 0, 0, 0, additional];
        [&self.id[..], &flags, &counts].concat()
    }
}

/// Splits the question from what follows it: labels, type, class.
fn split_question(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Two bits above are compression and what never came to be (RFC 1035, 4.1.4; RFC 6891, 5).
        if length > 63 {
            return None;
        }
        at += length;
        // Two bytes more than as text: the first length and the end.
        if at + 1 > MAX_NAME + 2 {
            return None;
        }
    }
    bytes.split_at_checked(at + 4)
}

/// Returns a name as text if it can be a host's: what HTTP, TLS and rules have no spelling for is nobody's name.
fn name_of(mut labels: &[u8]) -> Option<String> {
    let mut name = String::new();
    while let Some((&length @ 1.., rest)) = labels.split_first() {
        let (label, rest) = rest.split_at_checked(length.into())?;
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(is_plain) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(
            label
                .iter()
                .map(|byte| char::from(byte.to_ascii_lowercase())),
        );
        labels = rest;
    }
    Some(name)
}

fn has_opt(head: &[u8], behind_question: &[u8]) -> bool {
    let only_additional = head[6..10] == [0; 4] && head[10..12] != [0, 0];
    let [high, low] = TYPE_OPT.to_be_bytes();
    only_additional && behind_question.starts_with(&[0, high, low])
}

/// The addresses that stand for names.
///
/// An address has one name at a time and a name one address. It gets another name only when no connection to it
/// is open and it has not been given out or used for a [`LEASE`], and then the one that has been idle for
/// longest. Time is an argument: how long ago something was is all that counts.
#[derive(Debug)]
pub struct Pool {
    first: u32,
    size: u32,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, u32>,
    /// Those without a connection, by the time of their last use.
    idle: BTreeSet<(Duration, u32)>,
}

#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    used: Duration,
    connections: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(POOL, POOL_SIZE)
    }
}

impl Pool {
    /// A pool of this many addresses from the first one on.
    pub fn new(first: Ipv4Addr, size: u32) -> Self {
        Self {
            first: first.to_bits(),
            size: size.min(u32::MAX - first.to_bits()),
            slots: Vec::new(),
            by_name: HashMap::new(),
            idle: BTreeSet::new(),
        }
    }

    /// Tells whether an address is one of the pool's, whether or not it stands for a name.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let past_first = address.to_bits().checked_sub(self.first);
        past_first.is_some_and(|index| index < self.size)
    }

    /// Returns the address of a name, `None` if all are taken.
    pub fn address_of(&mut self, name: &str, now: Duration) -> Option<Ipv4Addr> {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => self.take(name, now)?,
        };
        self.touch(index, now);
        Some(Ipv4Addr::from_bits(self.first + index))
    }

    /// Returns the name of an address and keeps it for a connection, until [`Self::release`].
    pub fn hold(&mut self, address: Ipv4Addr, now: Duration) -> Option<Arc<str>> {
        let index = self.index(address)?;
        self.touch(index, now);
        let slot = &mut self.slots[index as usize];
        if slot.connections == 0 {
            self.idle.remove(&(slot.used, index));
        }
        slot.connections += 1;
        Some(Arc::clone(&slot.name))
    }

    /// Ends a connection to an address that was held for it.
    pub fn release(&mut self, address: Ipv4Addr, now: Duration) {
        let Some(index) = self.index(address) else {
            return;
        };
        let slot = &mut self.slots[index as usize];
        slot.connections = slot.connections.saturating_sub(1);
        slot.used = slot.used.max(now);
        if slot.connections == 0 {
            self.idle.insert((slot.used, index));
        }
    }

    fn index(&self, address: Ipv4Addr) -> Option<u32> {
        let index = address.to_bits().checked_sub(self.first)?;
        ((index as usize) < self.slots.len()).then_some(index)
    }

    fn touch(&mut self, index: u32, now: Duration) {
        let slot = &mut self.slots[index as usize];
        let was_idle = self.idle.remove(&(slot.used, index));
        slot.used = slot.used.max(now);
        if was_idle {
            self.idle.insert((slot.used, index));
        }
    }

    /// Gives a name an address that nobody can mean anything else by.
    fn take(&mut self, name: &str, now: Duration) -> Option<u32> {
        let name: Arc<str> = name.into();
        let slot = Slot {
            name: Arc::clone(&name),
            used: now,
            connections: 0,
        };
        let unused = self.slots.len() as u32;
        let index = if unused < self.size {
            self.slots.push(slot);
            unused
        } else {
            let &(used, index) = self.idle.first()?;
            if now.saturating_sub(used) < LEASE {
                return None;
            }
            self.idle.remove(&(used, index));
            let old = std::mem::replace(&mut self.slots[index as usize], slot);
            self.by_name.remove(&old.name);
            index
        };
        self.idle.insert((now, index));
        self.by_name.insert(name, index);
        Some(index)
    }
}

#[cfg(test)]
mod tests;
