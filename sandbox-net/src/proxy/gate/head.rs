//! A whole head, read strictly: what it says of the length of its body, and so what follows it; pure.

use super::{Asked, State};

/// Checks the head of a request and returns what follows it.
pub(super) fn read_request(head: &[u8]) -> Result<State, &'static str> {
    let mut lines = lines(head);
    let (connect, version) = read_request_line(lines.next().unwrap_or_default())?;
    let mut framing = Framing::default();
    lines.try_for_each(|line| framing.add_field(line))?;
    let next = framing.state(version)?.unwrap_or(State::Head);
    match (connect, framing.upgrade) {
        (true, _) => Ok(State::Passing),
        // What the connection becomes may begin right behind the head. Nothing is upgraded by a request with a body.
        (false, true) if next == State::Head => Ok(State::Passing),
        (false, _) => Ok(next),
    }
}

/// What the head of an answer says.
#[derive(Debug)]
pub(super) struct Answer {
    /// Whether the final answer is still to come.
    pub(super) is_interim: bool,
    pub(super) next: State,
}

/// Checks the head of an answer to what was asked.
pub(super) fn read_answer(head: &[u8], asked: Asked) -> Result<Answer, &'static str> {
    let mut lines = lines(head);
    let (version, status) = read_status_line(lines.next().unwrap_or_default())?;
    let mut framing = Framing::default();
    lines.try_for_each(|line| framing.add_field(line))?;
    let next = framing.state(version)?;
    let is_interim = (100..200).contains(&status) && status != 101;
    let next = match (status, asked) {
        (101, Asked::Upgrade) => State::Passing,
        (101, _) => return Err("the host upgrades what nobody asked to upgrade"),
        (100..200 | 204, _) if framing.is_framed() => {
            return Err("an answer that has no body has a length");
        }
        (100..200 | 204 | 304, _) | (_, Asked::Head) => State::Head,
        _ => next.unwrap_or(State::ToEnd),
    };
    Ok(Answer { is_interim, next })
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    lines.split(|byte| *byte == b'\n').map(|line| {
        // Every line feed here has its carriage return before it.
        line.strip_suffix(b"\r").unwrap_or(line)
    })
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

/// Returns the version and the status.
fn read_status_line(line: &[u8]) -> Result<(Version, u16), &'static str> {
    const WRONG: &str = "the status line is not a version, three digits and a reason";
    let version = match line.get(..9) {
        Some(b"HTTP/1.0 ") => Version::Http10,
        Some(b"HTTP/1.1 ") => Version::Http11,
        _ => return Err("the answer does not begin with HTTP/1.0 or HTTP/1.1"),
    };
    let (digits, reason) = line[9..].split_at_checked(3).ok_or(WRONG)?;
    let is_clear = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
    let reason_is_fine = reason.is_empty() || reason[0] == b' ' && reason.iter().all(is_clear);
    if !matches!(digits, [b'1'..=b'5', rest @ ..] if rest.iter().all(u8::is_ascii_digit))
        || !reason_is_fine
    {
        return Err(WRONG);
    }
    let status = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    Ok((version, status))
}

/// What a head says about the length of its body.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
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
            self.upgrade |= name.eq_ignore_ascii_case(b"upgrade");
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

    /// Whether a length is declared at all.
    fn is_framed(&self) -> bool {
        self.length.is_some() || self.chunked
    }

    /// Returns what follows the head, `None` if no length is declared.
    fn state(&self, version: Version) -> Result<Option<State>, &'static str> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err("Content-Length stands beside Transfer-Encoding"),
            (None, true) if version == Version::Http10 => Err("HTTP/1.0 has no Transfer-Encoding"),
            (None, true) => Ok(Some(State::Size { size: 0, digits: 0 })),
            (None, false) => Ok(None),
            (Some(0), false) => Ok(Some(State::Head)),
            (Some(left), false) => Ok(Some(State::Body { left })),
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
