//! The bytes of messages, checked before hyper sees them.
//!
//! hyper reads what was meant: it takes a bare line feed for a line's end, skips empty lines, ignores a length
//! beside `Transfer-Encoding`, and drops chunk extensions. Others on the way read such messages in other ways,
//! which is how requests and answers are smuggled (RFC 9112, 11.2). So the bytes of clients and of origins pass a
//! gate first, which lets through only messages that can be read in one way, and nothing of a head before all of
//! it was seen:
//!
//! - lines end in CR LF, and neither stands alone; no folded lines, no empty line before a message;
//! - a request line has three parts and ends in `HTTP/1.0` or `HTTP/1.1`, a status line begins with one of them; a
//!   field has a token, a colon right behind it, and a value without control characters;
//! - at most one `Content-Length`, of digits only; or at most one `Transfer-Encoding`, `chunked`, in HTTP/1.1
//!   only; never both;
//! - a chunk's size is 1 to 15 hexadecimal digits and nothing else;
//! - an origin says nothing that it was not asked, and no more than a few interim answers before the final one.
//!
//! [`Gate`] is the pure part; [`Gated`] puts it on a stream. After the head of a CONNECT or of a request to upgrade
//! everything passes, since it belongs to what the connection becomes; so an answer that refuses either has to
//! close the connection.
//!
//! | module | holds |
//! |---|---|
//! | `head` | a whole head: its lines, its framing, what follows it |
//! | `stream` | the gate on a stream |

mod head;
mod stream;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

pub(super) use stream::Gated;

/// The most interim answers (100, 103) before a final one. Servers send one or two.
const INTERIM: u8 = 8;

/// What the gate found wrong with a client's bytes, once it did. The connection ends with it.
pub(super) type Stopped = Arc<OnceLock<&'static str>>;

/// Follows the messages of one side of a connection.
#[derive(Debug)]
pub(super) struct Gate {
    side: Side,
    state: State,
    /// The beginning of a head that is not whole yet.
    held: Vec<u8>,
    /// How much of the head was checked, up to a line's beginning.
    checked: usize,
    limit: usize,
}

/// Whose messages they are.
#[derive(Debug)]
enum Side {
    /// A client's. A head above the limit passes unread, because hyper is sure to refuse it.
    Requests,
    /// An origin's. A head above the limit is wrong.
    Answers {
        /// What was asked and what came of it.
        exchange: Arc<Answering>,
        interim: u8,
    },
}

/// What the origin's side and the one who asks know of each other.
#[derive(Debug, Default)]
pub(super) struct Answering {
    asked: AtomicU8,
    /// Whether the last answer has come to its end with nothing behind it.
    whole: AtomicBool,
    wrong: OnceLock<&'static str>,
}

/// What was asked, as far as the answer's length depends on it (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Asked {
    /// Nothing, or it was answered.
    Nothing,
    /// A request whose answer may have a body.
    Body,
    /// HEAD, whose answer has none whatever it says.
    Head,
    /// A request that may turn the connection into something else.
    Upgrade,
}

impl Answering {
    /// Says what is asked, before it is sent.
    pub(super) fn ask(&self, asked: Asked) {
        self.whole.store(false, Ordering::Release);
        self.asked.store(asked as u8, Ordering::Release);
    }

    /// Whether everything that was asked is answered, to the last byte and no further.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire) && self.wrong.get().is_none()
    }

    /// Returns what is wrong with the origin's bytes.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        self.wrong.get().copied()
    }

    fn asked(&self) -> Asked {
        match self.asked.load(Ordering::Acquire) {
            1 => Asked::Body,
            2 => Asked::Head,
            3 => Asked::Upgrade,
            _ => Asked::Nothing,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body {
        left: u64,
    },
    Size {
        size: u64,
        digits: u8,
    },
    SizeEnd {
        size: u64,
    },
    Chunk {
        left: u64,
    },
    ChunkEnd {
        seen: u8,
    },
    Trailer {
        line: bool,
        cr: bool,
    },
    /// A body that ends with the connection.
    ToEnd,
    /// No HTTP any more.
    Passing,
}

/// How many bytes pass, and what is wrong with those behind them. If nothing is, they are held back.
#[derive(Debug, PartialEq, Eq)]
struct Checked {
    count: usize,
    wrong: Option<&'static str>,
}

impl Gate {
    /// A gate for a client's bytes.
    pub(super) fn for_requests(limit: usize) -> Self {
        Self::new(Side::Requests, limit)
    }

    /// A gate for an origin's bytes.
    pub(super) fn for_answers(limit: usize, exchange: Arc<Answering>) -> Self {
        let interim = 0;
        Self::new(Side::Answers { exchange, interim }, limit)
    }

    fn new(side: Side, limit: usize) -> Self {
        Self {
            side,
            state: State::Head,
            held: Vec::new(),
            checked: 0,
            limit,
        }
    }

    /// Takes bytes and appends to `out` those that may pass.
    ///
    /// # Errors
    ///
    /// What is wrong. Nothing may be pushed after that.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let checked = self.check(&held);
        out.extend_from_slice(&held[..checked.count]);
        if checked.wrong.is_none() && checked.count < held.len() {
            held.drain(..checked.count);
            self.held = held;
        }
        checked.wrong.map_or(Ok(()), Err)
    }

    /// Takes bytes that stay where they are, and holds those that may not pass yet; returns how many may.
    ///
    /// Only while nothing is held.
    fn pass(&mut self, bytes: &[u8]) -> Checked {
        debug_assert!(self.held.is_empty());
        let checked = self.check(bytes);
        if checked.wrong.is_none() {
            self.held.extend_from_slice(&bytes[checked.count..]);
        }
        checked
    }

    /// Whether bytes can be passed where they stand.
    fn holds_nothing(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether everything that comes passes.
    fn is_open(&self) -> bool {
        self.state == State::Passing
    }

    /// Whether a message is only half through.
    fn is_within_body(&self) -> bool {
        self.state != State::Head
    }

    /// Checks bytes, of which the first `checked` were seen before.
    fn check(&mut self, bytes: &[u8]) -> Checked {
        let mut count = 0;
        let mut wrong = None;
        while count < bytes.len() {
            let rest = &bytes[count..];
            let stepped = match self.state {
                State::Head => self.check_head(rest),
                state => step(state, rest),
            };
            match stepped {
                Ok((0, _)) => break,
                Ok((taken, next)) => {
                    count += taken;
                    self.state = next;
                }
                Err(what) => {
                    wrong = Some(what);
                    break;
                }
            }
        }
        if let Side::Answers { exchange, .. } = &self.side {
            let whole = self.state == State::Head && count == bytes.len() && wrong.is_none();
            let whole = whole && exchange.asked() == Asked::Nothing;
            exchange.whole.store(whole, Ordering::Release);
        }
        Checked { count, wrong }
    }

    /// Returns the length of the head and what follows it; no length if it is not whole.
    fn check_head(&mut self, bytes: &[u8]) -> Result<(usize, State), &'static str> {
        if let Side::Answers { exchange, .. } = &self.side
            && exchange.asked() == Asked::Nothing
        {
            return Err("the host sent what nobody asked for");
        }
        let mut end = std::mem::take(&mut self.checked);
        while let Some(length) = bytes[end..].iter().position(|byte| *byte == b'\n') {
            let line = &bytes[end..=end + length];
            end += line.len();
            if end > self.limit {
                break;
            }
            match line {
                b"\r\n" if end == 2 => return Err("an empty line stands before the message"),
                b"\r\n" => return Ok((end, self.read_head(&bytes[..end])?)),
                [.., b'\r', b'\n'] => {}
                _ => return Err("a line ends in a bare line feed"),
            }
        }
        match (&self.side, bytes.len() > self.limit) {
            (_, false) => {
                self.checked = end;
                Ok((0, State::Head))
            }
            (Side::Requests, true) => Ok((bytes.len(), State::Passing)),
            (Side::Answers { .. }, true) => Err("the head is too long"),
        }
    }

    fn read_head(&mut self, bytes: &[u8]) -> Result<State, &'static str> {
        match &mut self.side {
            Side::Requests => head::read_request(bytes),
            Side::Answers { exchange, interim } => {
                let answer = head::read_answer(bytes, exchange.asked())?;
                if answer.is_interim {
                    *interim += 1;
                    return match *interim > INTERIM {
                        true => Err("the host sent too many interim answers"),
                        false => Ok(State::Head),
                    };
                }
                *interim = 0;
                exchange
                    .asked
                    .store(Asked::Nothing as u8, Ordering::Release);
                Ok(answer.next)
            }
        }
    }
}

/// Moves through a body; returns how many bytes pass and what comes after them. The bytes are not empty.
fn step(state: State, bytes: &[u8]) -> Result<(usize, State), &'static str> {
    let first = bytes[0];
    let next = match state {
        State::Head | State::Passing | State::ToEnd => return Ok((bytes.len(), state)),
        State::Body { left } => {
            let (taken, left) = skip(left, bytes);
            let next = if left == 0 {
                State::Head
            } else {
                State::Body { left }
            };
            return Ok((taken, next));
        }
        State::Chunk { left } => {
            let (taken, left) = skip(left, bytes);
            let next = if left == 0 {
                State::ChunkEnd { seen: 0 }
            } else {
                State::Chunk { left }
            };
            return Ok((taken, next));
        }
        State::Size { size, digits } => step_size(size, digits, first)?,
        State::SizeEnd { size } => match (first, size) {
            (b'\n', 0) => State::Trailer {
                line: false,
                cr: false,
            },
            (b'\n', left) => State::Chunk { left },
            _ => return Err("a chunk's size ends in a bare carriage return"),
        },
        State::ChunkEnd { seen: 0 } if first == b'\r' => State::ChunkEnd { seen: 1 },
        State::ChunkEnd { seen: 1 } if first == b'\n' => State::Size { size: 0, digits: 0 },
        State::ChunkEnd { .. } => return Err("a chunk is longer than its size"),
        State::Trailer { line, cr } => step_trailer(line, cr, first)?,
    };
    Ok((1, next))
}

fn skip(left: u64, bytes: &[u8]) -> (usize, u64) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (taken, left - taken as u64)
}

fn step_size(size: u64, digits: u8, byte: u8) -> Result<State, &'static str> {
    match char::from(byte).to_digit(16) {
        Some(digit) if digits < 15 => Ok(State::Size {
            size: size << 4 | u64::from(digit),
            digits: digits + 1,
        }),
        Some(_) => Err("a chunk's size is too long"),
        None if byte == b'\r' && digits > 0 => Ok(State::SizeEnd { size }),
        None => Err("a chunk's size is not a plain hexadecimal number"),
    }
}

/// Trailers are looked at for their line ends only: the proxy drops them, and hyper bounds them.
fn step_trailer(line: bool, cr: bool, byte: u8) -> Result<State, &'static str> {
    match (byte, cr) {
        (b'\n', true) if !line => Ok(State::Head),
        (b'\n', true) => Ok(State::Trailer {
            line: false,
            cr: false,
        }),
        (b'\r', false) => Ok(State::Trailer { line, cr: true }),
        (b'\n', false) | (_, true) => Err("a trailer's line does not end in CR LF"),
        (_, false) => Ok(State::Trailer {
            line: true,
            cr: false,
        }),
    }
}

#[cfg(fuzzing)]
pub(super) mod fuzzing {
    //! The ways in for fuzz targets.

    use super::*;

    const LIMIT: usize = 8192;

    pub(in crate::proxy) fn requests(
        bytes: &[u8],
        piece: usize,
    ) -> (Vec<u8>, Result<(), &'static str>) {
        pass(Gate::for_requests(LIMIT), bytes, piece)
    }

    pub(in crate::proxy) fn answers(
        bytes: &[u8],
        piece: usize,
        exchange: Arc<Answering>,
    ) -> (Vec<u8>, Result<(), &'static str>) {
        pass(Gate::for_answers(LIMIT, exchange), bytes, piece)
    }

    fn pass(mut gate: Gate, bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), &'static str>) {
        let mut out = Vec::new();
        let mut pieces = bytes.chunks(piece.max(1));
        let passed = pieces.try_for_each(|piece| gate.push(piece, &mut out));
        (out, passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn pass(text: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        Gate::for_requests(8192).push(text, &mut out).map(|()| out)
    }

    fn refused(fields: &str) -> bool {
        pass(format!("POST http://a/ HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).is_err()
    }

    const TWO: &str = "POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n\
        0\r\nX: y\r\n\r\nPUT http://a/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET http://a/ HTTP/1.0\r\n\r\n";

    #[test]
    fn clear_messages_pass_unchanged_one_after_the_other() {
        assert_eq!(pass(TWO.as_bytes()).unwrap(), TWO.as_bytes());
    }

    #[test]
    fn e09_e10_e11_lengths_that_can_be_read_in_two_ways_are_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length: -5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:\u{b}chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\t: chunked",
            "X: a\r\n Transfer-Encoding: chunked",
            "X: a\nTransfer-Encoding: chunked",
            "X: a\rTransfer-Encoding: chunked",
            "X: a\0",
            ": a",
            "X",
        ] {
            assert!(refused(fields), "{fields:?}");
        }
        assert!(pass(b"GET http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn e14_fields_that_only_look_like_framing_pass_and_frame_nothing() {
        for fields in [
            "Transfer_Encoding: chunked",
            "Content-Encoding: chunked",
            "Content_Length: 5",
        ] {
            assert!(!refused(fields), "{fields}");
        }
    }

    #[test]
    fn e11_request_lines_have_one_form() {
        for line in [
            "GET  http://a/ HTTP/1.1\r\n\r\n",
            "GET http://a/\r\n\r\n",
            "GET http://a/ HTTP/1.1 \r\n\r\n",
            "GET http://a/ HTTP/2.0\r\n\r\n",
            "G(T http://a/ HTTP/1.1\r\n\r\n",
            "\r\nGET http://a/ HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\n\n",
            " GET http://a/ HTTP/1.1\r\n\r\n",
        ] {
            assert!(pass(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn e12_chunks_have_one_form() {
        for body in [
            "5;x=y\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n",
            "5\r\nhelloo\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "\r\n",
            "FFFFFFFFFFFFFFFF\r\n",
            "0000000000000000\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\n",
            "0\r\n\n",
            "5\rhello",
        ] {
            let text =
                format!("POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert!(pass(text.as_bytes()).is_err(), "{body:?}");
        }
    }

    /// Gives the answer to one request to a gate; returns what the gate says of it.
    fn answer(asked: Asked, text: &str) -> Result<(), &'static str> {
        let exchange = Arc::new(Answering::default());
        exchange.ask(asked);
        Gate::for_answers(8192, exchange).push(text.as_bytes(), &mut Vec::new())
    }

    #[test]
    fn e13_e63_what_nobody_asked_for_is_refused() {
        const EVIL: &str = "HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 0\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert!(answer(Asked::Body, &format!("{head}hello")).is_ok());
        assert!(answer(Asked::Head, head).is_ok());
        for (asked, text) in [
            (Asked::Nothing, EVIL.to_owned()),
            (Asked::Head, format!("{}{EVIL}", head.replace('5', "500"))),
            (Asked::Body, format!("{head}hello{EVIL}")),
        ] {
            assert!(answer(asked, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn e63_an_answers_head_has_a_bound_and_does_not_pass_beyond_it() {
        let line = format!("X: {}\r\n", "y".repeat(1000));
        let head = |lines| format!("HTTP/1.1 200 OK\r\n{}", line.repeat(lines));
        assert!(answer(Asked::Body, &head(8)).is_ok());
        assert!(answer(Asked::Body, &head(9)).is_err());
    }

    #[test]
    fn a_head_passes_only_when_it_is_whole() {
        let mut gate = Gate::for_requests(8192);
        let mut out = Vec::new();
        gate.push(b"GET http://a/ HTTP/1.1\r\nX: y\r\n\r", &mut out)
            .unwrap();
        assert!(out.is_empty());
        gate.push(b"\n", &mut out).unwrap();
        assert!(out.ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn after_connect_everything_passes() {
        let text = b"CONNECT a:1 HTTP/1.1\r\n\r\n\n\0anything";
        assert_eq!(pass(text).unwrap(), text);
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn how_the_bytes_are_cut_changes_nothing(
            text in "(POST|GET|\r\n| |http://a/|HTTP/1.1|Content-Length: 3|Transfer-Encoding: chunked|3|abc|0|\n){0,24}",
            cut in 1usize..9,
        ) {
            for text in [text.as_bytes(), TWO.as_bytes()] {
                let mut gate = Gate::for_requests(8192);
                let mut out = Vec::new();
                let pieces = text.chunks(cut).try_for_each(|piece| gate.push(piece, &mut out));
                match pass(text) {
                    Ok(whole) => {
                        prop_assert!(pieces.is_ok());
                        prop_assert_eq!(out, whole);
                    }
                    Err(what) => prop_assert_eq!(pieces.unwrap_err(), what),
                }
            }
        }

        /// Twin of the fuzz target `answers`.
        #[test]
        fn how_an_answers_bytes_are_cut_changes_nothing(
            text in "(HTTP/1.1 (200|103|101) x|\r\n|Content-Length: 3|Transfer-Encoding: chunked|3|abc|0){0,24}",
            cut in 1usize..9,
        ) {
            let pass = |piece: usize| {
                let exchange = Arc::new(Answering::default());
                exchange.ask(Asked::Body);
                let mut gate = Gate::for_answers(8192, exchange);
                let mut out = Vec::new();
                let mut pieces = text.as_bytes().chunks(piece);
                let passed = pieces.try_for_each(|piece| gate.push(piece, &mut out));
                passed.map(|()| out)
            };
            prop_assert_eq!(pass(cut), pass(usize::MAX));
        }

        /// Twin of the fuzz target `heads`, with those around it.
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            drop(pass(&bytes));
            let head = b"POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
            drop(pass(&[&head[..], &bytes].concat()));
        }

        /// What passes is a prefix of what came: nothing is repaired.
        #[test]
        fn nothing_is_changed(text in "(POST|\r\n|[ -~]){0,40}") {
            if let Ok(out) = pass(text.as_bytes()) {
                prop_assert!(text.as_bytes().starts_with(&out));
            }
        }
    }
}
