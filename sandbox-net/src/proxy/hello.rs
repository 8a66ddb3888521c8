//! The name in a TLS ClientHello, read from the client's first bytes; pure and bounded.
//!
//! Every field is checked against the space that holds it, and the message has to come out even, because a
//! reader that is more lenient than the server behind it would see another name than the server does. The
//! handshake message may be spread over records as the client likes (RFC 8446, 5.1). Work is linear in the
//! bytes that arrive, however they are cut.
//!
//! What the module ignores: every extension but `server_name`. With Encrypted ClientHello the outer name counts,
//! which is the only one that can be seen; so names hidden behind a shared outer name fail.

use crate::policy::{Hello, HostName};

/// The most bytes that a ClientHello may take, records and all. Today's take up to 2 KiB with post-quantum keys.
pub(crate) const MAX_HELLO: usize = 32 * 1024;

const RECORD_HEADER: usize = 5;
const MAX_FRAGMENT: usize = 1 << 14;
const HANDSHAKE_HEADER: usize = 4;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Collects the client's first bytes until they show its name.
#[derive(Debug, Default)]
pub(crate) struct HelloReader {
    /// All bytes so far, to be sent on as they came.
    raw: Vec<u8>,
    /// Where the next record begins.
    next: usize,
    /// The handshake message, put together from records.
    message: Vec<u8>,
}

impl HelloReader {
    /// Takes more bytes; returns what they said once that is certain.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<Hello> {
        self.raw.extend_from_slice(bytes);
        match self.advance() {
            Ok(None) if self.raw.len() >= MAX_HELLO => Some(Hello::Unreadable(
                "the TLS handshake's first message is longer than 32 KiB",
            )),
            Ok(found) => found,
            Err(what) => Some(Hello::Unreadable(what)),
        }
    }

    /// Returns all bytes that were taken, to be sent on.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.raw
    }

    fn advance(&mut self) -> Result<Option<Hello>, &'static str> {
        while let Some(fragment) = next_fragment(&self.raw[self.next..])? {
            self.message.extend_from_slice(fragment);
            self.next += RECORD_HEADER + fragment.len();
            if let Some(body) = whole_message(&self.message)? {
                return read_client_hello(body).map(Some);
            }
        }
        Ok(None)
    }
}

/// Returns the content of the record that the bytes begin with, `None` if it is not complete.
fn next_fragment(bytes: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    if first != CONTENT_HANDSHAKE {
        return Err("the tunnel does not begin with a TLS handshake");
    }
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Err("the tunnel begins with a TLS record of an unknown version");
    }
    let Some(&[high, low]) = bytes.get(3..RECORD_HEADER) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > MAX_FRAGMENT {
        return Err("a TLS record is empty or too long");
    }
    Ok(bytes.get(RECORD_HEADER..RECORD_HEADER + length))
}

/// Returns the body of the handshake message once it is complete.
fn whole_message(message: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err("the TLS handshake does not begin with a ClientHello");
    }
    let Some(&[_, a, b, c]) = message.get(..HANDSHAKE_HEADER) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match message[HANDSHAKE_HEADER..].len() {
        have if have < length => Ok(None),
        have if have > length => Err("something follows the ClientHello in its record"),
        _ => Ok(Some(&message[HANDSHAKE_HEADER..])),
    }
}

/// RFC 8446, 4.1.2.
fn read_client_hello(body: &[u8]) -> Result<Hello, &'static str> {
    walk(body).ok_or("the ClientHello is malformed")?
}

fn walk(body: &[u8]) -> Option<Result<Hello, &'static str>> {
    let mut body = Cursor(body);
    body.take(2 + 32)?; // legacy_version, random
    (body.vector8()?.len() <= 32).then_some(())?; // legacy_session_id
    let suites = body.vector16()?;
    (!suites.is_empty() && suites.len() % 2 == 0).then_some(())?;
    (!body.vector8()?.is_empty()).then_some(())?; // legacy_compression_methods
    if body.0.is_empty() {
        return Some(Ok(Hello::Unnamed)); // TLS 1.2 without extensions
    }
    let mut extensions = Cursor(body.vector16()?);
    body.0.is_empty().then_some(())?;
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        if kind == SERVER_NAME && name.replace(content).is_some() {
            return None; // RFC 8446, 4.2: no extension twice
        }
    }
    match name {
        None => Some(Ok(Hello::Unnamed)),
        Some(content) => read_server_name(content),
    }
}

/// RFC 6066, 3: a list with at most one name of each type, and there is one type.
fn read_server_name(content: &[u8]) -> Option<Result<Hello, &'static str>> {
    let mut content = Cursor(content);
    let mut list = Cursor(content.vector16()?);
    content.0.is_empty().then_some(())?;
    (list.u8()? == HOST_NAME).then_some(())?;
    let name = list.vector16()?;
    list.0.is_empty().then_some(())?;
    let name = std::str::from_utf8(name)
        .ok()
        .and_then(|name| HostName::parse(name).ok());
    Some(
        name.map(Hello::Named)
            .ok_or("the TLS handshake names something that is no host name"),
    )
}

/// What is left to read; every step returns `None` past the end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_cases::cases;
    use proptest::prelude::*;

    fn vector16(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        [&length.to_be_bytes(), content].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        let entry = [&[HOST_NAME][..], &vector16(name)].concat();
        [&SERVER_NAME.to_be_bytes()[..], &vector16(&vector16(&entry))].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(vector16(extensions));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO, length[1], length[2], length[3]][..], &body].concat()
    }

    fn record(fragment: &[u8]) -> Vec<u8> {
        [&[CONTENT_HANDSHAKE, 3, 1][..], &vector16(fragment)].concat()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        // An extension before and one after, as clients send them.
        let extensions = [&[0, 23, 0, 0][..], &server_name(name), &[0xff, 1, 0, 1, 0]].concat();
        record(&message(&extensions))
    }

    fn read(bytes: &[u8]) -> Option<Hello> {
        HelloReader::default().push(bytes)
    }

    fn expected(name: &str) -> Option<Hello> {
        Some(Hello::Named(name.parse().unwrap()))
    }

    /// What curl 7.88 with OpenSSL 3.0 sends for www.example.com, less the zeros of its padding.
    const OF_CURL: &str = "1603010200010001fc030365cd814865bcab31edcecf7aee5faa4c58511e2f0138eb60b13b82902ebd21f220\
        9e7c6a46aa11e4acf44ee456a532924857f70494f6e9bdc3663d0686d5d683ee003e130213031301c02cc030\
        009fcca9cca8ccaac02bc02f009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d\
        003c0035002f00ff0100017500000014001200000f7777772e6578616d706c652e636f6d000b000403000102\
        000a00160014001d0017001e00190018010001010102010301040010000e000c02683208687474702f312e31\
        001600000017000000310000000d002a0028040305030603080708080809080a080b08040805080604010501\
        0601030303010302040205020602002b0009080304030303020301002d00020101003300260024001d002098\
        5714252a8d12c2c7d020b69123a3d728ea877913f62d590210facdaa32806f001500ae";

    #[test]
    fn the_hello_of_a_real_client_is_read() {
        let hex = format!("{OF_CURL}{}", "00".repeat(0xae));
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(read(&bytes), expected("www.example.com"));
    }

    #[test]
    fn a_name_is_read_in_canonical_form() {
        assert_eq!(read(&named(b"Example.COM")), expected("example.com"));
    }

    #[test]
    fn e02_what_is_not_a_named_client_hello_is_told_apart() {
        assert_eq!(read(&record(&message(&[]))), Some(Hello::Unnamed));
        let mut data = record(&message(&[]));
        data[0] = 23;
        for bytes in [
            data,
            b"SSH-2.0-OpenSSH\r\n".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![CONTENT_HANDSHAKE, 2, 0],
            record(&[2, 0, 0, 0]),
            vec![CONTENT_HANDSHAKE, 3, 1, 0, 0],
            vec![CONTENT_HANDSHAKE, 3, 1, 0xff, 0xff],
        ] {
            assert!(
                matches!(read(&bytes), Some(Hello::Unreadable(_))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn e01_two_names_in_any_form_are_unreadable() {
        let twice = [server_name(b"a.com"), server_name(b"b.com")].concat();
        let entry = [&[HOST_NAME][..], &vector16(b"a.com")].concat();
        let list = [entry.clone(), entry].concat();
        let both = [&SERVER_NAME.to_be_bytes()[..], &vector16(&vector16(&list))].concat();
        for extensions in [twice, both] {
            let hello = read(&record(&message(&extensions)));
            assert!(matches!(hello, Some(Hello::Unreadable(_))));
        }
    }

    #[test]
    fn e41_names_that_are_none_are_unreadable() {
        for name in [
            &b"a\0.com"[..],
            b"",
            b"1.2.3.4",
            b"a b",
            "ä.com".as_bytes(),
            b"[::1]",
            b"a.com:443",
        ] {
            assert!(
                matches!(read(&named(name)), Some(Hello::Unreadable(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn lengths_that_do_not_come_out_even_are_unreadable() {
        let good = named(b"example.com");
        let mut longer = good.clone();
        longer[4] += 1;
        longer.push(0);
        assert!(matches!(read(&longer), Some(Hello::Unreadable(_))));
        assert_eq!(read(&good[..good.len() - 1]), None, "incomplete, not wrong");
    }

    #[test]
    fn an_endless_hello_is_cut_off() {
        let endless = record(&[&[CLIENT_HELLO, 0xff, 0xff, 0xff][..], &[0; 16000]].concat());
        let mut reader = HelloReader::default();
        assert_eq!(reader.push(&endless), None);
        assert_eq!(reader.push(&record(&[0; 16000])), None);
        let last = reader.push(&record(&[0; 16000]));
        assert!(matches!(last, Some(Hello::Unreadable(_))));
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn records_and_reads_may_be_cut_anywhere(
            cuts in prop::collection::vec(1usize..40, 1..12),
            reads in prop::collection::vec(1usize..40, 1..12),
        ) {
            let whole = message(&server_name(b"example.com"));
            let mut wire = Vec::new();
            let (mut rest, mut cut) = (&whole[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                wire.extend(record(now));
                rest = later;
            }
            let mut reader = HelloReader::default();
            let (mut rest, mut step, mut found) = (&wire[..], reads.iter().cycle(), None);
            while !rest.is_empty() && found.is_none() {
                let (now, later) = rest.split_at((*step.next().unwrap()).min(rest.len()));
                found = reader.push(now);
                rest = later;
            }
            prop_assert_eq!(found, expected("example.com"));
            let taken = reader.into_bytes();
            prop_assert_eq!(&wire[..taken.len()], &taken[..]);
        }

        /// Twin of the fuzz target `hello`, with those around it.
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            drop(read(&bytes));
            drop(read(&record(&[&bytes[..], &[0]].concat())));
            drop(read_client_hello(&bytes));
        }

        #[test]
        fn a_changed_byte_never_panics(
            at in 0usize..120,
            to: u8,
        ) {
            let mut wire = named(b"example.com");
            let at = at % wire.len();
            wire[at] = to;
            drop(read(&wire));
        }
    }
}
