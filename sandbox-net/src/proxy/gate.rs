//! The bytes of requests, checked before hyper sees them.
//!
//! hyper reads what was meant: it takes a bare line feed for a line's end, skips empty lines, ignores a length
//! beside `Transfer-Encoding`, and drops chunk extensions. Others on the way read such messages in other ways,
//! which is how requests are smuggled (RFC 9112, 11.2). So a client's bytes pass a gate first, which lets through
//! only messages that can be read in one way, and nothing of a head before all of it was seen:
//!
//! - lines end in CR LF, and neither stands alone; no folded lines, no empty line before a request;
//! - a request line has three parts and ends in `HTTP/1.0` or `HTTP/1.1`; a field has a token, a colon right
//!   behind it, and a value without control characters;
//! - at most one `Content-Length`, of digits only; or at most one `Transfer-Encoding`, `chunked`, in HTTP/1.1
//!   only; never both;
//! - a chunk's size is 1 to 15 hexadecimal digits and nothing else.
//!
//! [`Gate`] is the pure part; [`Gated`] puts it on a stream. After the head of a CONNECT everything passes, since
//! it belongs to the tunnel; so the answer to a CONNECT that opens none has to close the connection.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use sandbox_base::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper gets in place of a head that was stopped: the request by which the service is called, to answer
/// what is wrong.
const STAND_IN: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";
/// How much is read from the client at a time.
const READ: usize = 16 * 1024;

/// What the gate found wrong, once it did. The connection ends with it.
pub(super) type Stopped = Arc<OnceLock<&'static str>>;

/// Follows the messages of a connection.
#[derive(Debug)]
pub(super) struct Gate {
    state: State,
    /// The head so far, without what was let through.
    head: Vec<u8>,
    /// Longer heads pass unread, because hyper is sure to refuse them.
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body { left: u64 },
    Size { size: u64, digits: u8 },
    SizeEnd { size: u64 },
    Chunk { left: u64 },
    ChunkEnd { seen: u8 },
    Trailer { line: bool, cr: bool },
    Passing,
}

impl Gate {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            state: State::Head,
            head: Vec::new(),
            limit,
        }
    }

    /// Takes bytes and appends to `out` those that may pass.
    ///
    /// # Errors
    ///
    /// What is wrong. Nothing may be pushed after that.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let (taken, next) = match self.state {
                State::Head => self.push_head(bytes, out)?,
                state => {
                    let (taken, next) = step(state, bytes)?;
                    out.extend_from_slice(&bytes[..taken]);
                    (taken, next)
                }
            };
            bytes = &bytes[taken..];
            self.state = next;
        }
        Ok(())
    }

    /// Whether everything that comes passes.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Passing
    }

    /// Whether a message is only half through.
    pub(super) fn is_within_body(&self) -> bool {
        self.state != State::Head
    }

    fn push_head(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, State), &'static str> {
        let mut taken = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            taken += line.len();
            self.head.extend_from_slice(line);
            if self.head.len() > self.limit {
                out.append(&mut self.head);
                return Ok((taken, State::Passing));
            }
            if line.ends_with(b"\n") && !self.head.ends_with(b"\r\n") {
                return Err("a line ends in a bare line feed");
            }
            if self.head == b"\r\n" {
                return Err("an empty line stands before the request");
            }
            if self.head.ends_with(b"\r\n\r\n") {
                let next = read_head(&self.head)?;
                out.append(&mut self.head);
                return Ok((taken, next));
            }
        }
        Ok((taken, State::Head))
    }
}

/// Moves through a body; returns how many bytes pass and what comes after them. The bytes are not empty.
fn step(state: State, bytes: &[u8]) -> Result<(usize, State), &'static str> {
    let first = bytes[0];
    let next = match state {
        State::Head | State::Passing => return Ok((bytes.len(), state)),
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

/// Checks a whole head and returns what follows it.
fn read_head(head: &[u8]) -> Result<State, &'static str> {
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut lines = lines.split(|byte| *byte == b'\n').map(|line| {
        // Every line feed here has its carriage return before it.
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let (connect, version) = read_request_line(lines.next().unwrap_or_default())?;
    let mut framing = Framing::default();
    lines.try_for_each(|line| framing.add_field(line))?;
    framing
        .state(version)
        .map(|next| if connect { State::Passing } else { next })
}

/// The two versions that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// Returns whether the method is CONNECT, and the version.
fn read_request_line(line: &[u8]) -> Result<(bool, Version), &'static str> {
    const WRONG: &str = "the request line is not a method, a target and a version, one space apart";
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(WRONG);
    };
    let visible = target.iter().all(|byte| matches!(byte, b'!'..=b'~'));
    if !is_token(method) || target.is_empty() || !visible {
        return Err(WRONG);
    }
    match version {
        b"HTTP/1.0" => Ok((method == b"CONNECT", Version::Http10)),
        b"HTTP/1.1" => Ok((method == b"CONNECT", Version::Http11)),
        _ => Err("the version is neither HTTP/1.0 nor HTTP/1.1"),
    }
}

/// What a head says about the length of its body.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    fn add_field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line
            .first()
            .is_some_and(|byte| matches!(byte, b' ' | b'\t'))
        {
            return Err("a header line is folded");
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or("a header line has no colon")?);
        if !is_token(name) {
            return Err("a header's name is not a token, or white space stands before its colon");
        }
        let value = trim(&value[1..]);
        if value
            .iter()
            .any(|byte| byte.is_ascii_control() && *byte != b'\t')
        {
            return Err("a header's value has a control character");
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.add_length(value)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.add_coding(value)
        } else {
            Ok(())
        }
    }

    fn add_length(&mut self, value: &[u8]) -> Result<(), &'static str> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits);
        let length = length.and_then(|text| text.parse().ok());
        let length = length.ok_or("Content-Length is not a plain number")?;
        match self.length.replace(length) {
            None => Ok(()),
            Some(_) => Err("there is more than one Content-Length"),
        }
    }

    fn add_coding(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err("Transfer-Encoding is not `chunked`");
        }
        match std::mem::replace(&mut self.chunked, true) {
            false => Ok(()),
            true => Err("there is more than one Transfer-Encoding"),
        }
    }

    fn state(&self, version: Version) -> Result<State, &'static str> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err("Content-Length stands beside Transfer-Encoding"),
            (None, true) if version == Version::Http10 => Err("HTTP/1.0 has no Transfer-Encoding"),
            (None, true) => Ok(State::Size { size: 0, digits: 0 }),
            (None | Some(0), false) => Ok(State::Head),
            (Some(left), false) => Ok(State::Body { left }),
        }
    }
}

/// RFC 9110, 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(in_token)
}

/// Removes the optional white space of RFC 9110, 5.6.3, and no other.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A client's stream with a gate before its reader.
#[derive(Debug)]
pub(super) struct Gated<S> {
    stream: S,
    gate: Gate,
    stopped: Stopped,
    /// What passed the gate and was not read yet, from `at` on.
    passed: Vec<u8>,
    at: usize,
}

impl<S> Gated<S> {
    /// Puts a gate on a stream; what it finds wrong is left in `stopped`.
    pub(super) fn new(stream: S, limit: usize, stopped: Stopped) -> Self {
        Self {
            stream,
            gate: Gate::new(limit),
            stopped,
            passed: Vec::new(),
            at: 0,
        }
    }

    /// Gives out what has passed, as much as fits. Returns whether there was anything.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = &self.passed[self.at..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.at += count;
        if self.at == self.passed.len() {
            self.passed.clear();
            self.at = 0;
        }
        count > 0
    }

    /// Returns the stream, and what was read from it and by nobody since.
    #[cfg(feature = "inspect")]
    pub(super) fn into_parts(mut self) -> (S, Vec<u8>) {
        let mut unread = self.passed.split_off(self.at);
        unread.append(&mut self.gate.head);
        (self.stream, unread)
    }

    fn stop(&mut self, what: &'static str) -> io::Result<()> {
        // Set once, because nothing is read after it.
        self.stopped.get_or_init(|| what);
        if self.gate.is_within_body() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.passed.extend_from_slice(STAND_IN);
        Ok(())
    }
}

impl<S: ByteStream> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if buffer.remaining() == 0 || this.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            if this.stopped.get().is_some() {
                // Not the end of the stream: hyper would close before the answer is written. The answer itself
                // ends the connection.
                return Poll::Pending;
            }
            if this.gate.is_open() {
                return Pin::new(&mut this.stream).poll_read(cx, buffer);
            }
            let mut bytes = [0; READ];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(what) = this.gate.push(read.filled(), &mut this.passed) {
                this.stop(what)?;
            }
        }
    }
}

impl<S: ByteStream> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn pass(text: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        Gate::new(8192).push(text, &mut out).map(|()| out)
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
            "5\rhello",
        ] {
            let text =
                format!("POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert!(pass(text.as_bytes()).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_head_passes_only_when_it_is_whole() {
        let mut gate = Gate::new(8192);
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
                let mut gate = Gate::new(8192);
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
