//! The state of a machine's devices, put together from two files.
//!
//! A template's state begins with what says which machine it is and with the little memory that is no file (the
//! firmware); the devices follow. That beginning is the same for as long as a machine runs. QEMU writes the devices of
//! a running machine without it (`xen-save-devices-state`, made for another hypervisor's memory), so
//! the state of a running machine is the beginning of the state from which it was restored, and its devices.
//!
//! The form is QEMU's own (`migration/savevm.c`, `migration/ram.c`): numbers are big-endian, a section says its kind,
//! its number and, at first, its name; that of the memory is a list of entries. What is not known here is refused, so
//! that a later version cannot be misread.

use std::io::{self, Read};

/// What each file begins with.
const MAGIC: [u8; 4] = *b"QEVM";
const VERSION: u32 = 3;

/// The kinds of sections.
const END: u8 = 0;
const START: u8 = 1;
const PART: u8 = 2;
const LAST_PART: u8 = 3;
const FULL: u8 = 4;
const SUBSECTION: u8 = 5;
const DESCRIPTION: u8 = 6;
const CONFIGURATION: u8 = 7;
const FOOTER: u8 = 0x7e;

/// The flags of an entry of memory, in the low bits of its address.
const ZERO: u64 = 0x02;
const BLOCKS: u64 = 0x04;
const CONTENTS: u64 = 0x08;
const END_OF_ENTRIES: u64 = 0x10;
const SAME_BLOCK: u64 = 0x20;
const FLAGS: u64 = 0xfff;
const PAGE: usize = 4096;

const MEMORY: &[u8] = b"ram";
const CAPABILITIES: &[u8] = b"configuration/capabilities";

/// The only capability that changes the form, and that our files have.
const WITHOUT_SHARED_MEMORY: &[u8] = b"x-ignore-shared";

/// Longest file that is read: a template's state has a third of a megabyte.
const LONGEST: u64 = 64 << 20;

/// Returns how many bytes of a state come before its devices.
///
/// # Errors
///
/// `InvalidData` when it is not what a template of ours is.
pub(super) fn beginning(state: &[u8]) -> io::Result<usize> {
    let mut reader = Reader {
        rest: state,
        length: state.len(),
    };
    reader.head()?;
    reader.configuration()?;
    let mut number = None;
    loop {
        let kind = reader.byte()?;
        let section = reader.number()?;
        match (kind, number) {
            (START, None) => {
                if reader.text()? != MEMORY {
                    return Err(unknown("memory is not its first section"));
                }
                // Which one of the name, and the version of its form.
                reader.bytes(8)?;
                number = Some(section);
            }
            (PART | LAST_PART, Some(memory)) if memory == section => {}
            _ => {
                return Err(unknown(
                    "it has a section of another kind before its devices",
                ));
            }
        }
        reader.entries()?;
        if reader.byte()? != FOOTER || reader.number()? != section {
            return Err(unknown("a section of it has no end"));
        }
        if kind == LAST_PART {
            return Ok(reader.position());
        }
    }
}

/// Puts the state of a machine together from the beginning of one and the devices of another, as QEMU writes
/// them alone.
///
/// # Errors
///
/// `InvalidData` when the devices are not in that form.
pub(super) fn with_devices(beginning: &[u8], devices: &[u8]) -> io::Result<Vec<u8>> {
    let mut reader = Reader {
        rest: devices,
        length: devices.len(),
    };
    reader.head()?;
    let sections = reader.rest;
    if sections.first() != Some(&FULL) || sections.last() != Some(&END) {
        return Err(unknown("the devices' state has another form"));
    }
    let mut state = [beginning, sections].concat();
    // What QEMU looks for at the end: a description, which may be empty.
    state.push(DESCRIPTION);
    state.extend_from_slice(&0u32.to_be_bytes());
    Ok(state)
}

/// Reads a state, as long as it may be.
pub(super) fn read(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LONGEST {
        true => Err(unknown("it is too long")),
        false => Ok(bytes),
    }
}

fn unknown(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a machine's state cannot be read: {why}"),
    )
}

struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    fn bytes(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| unknown("it ends early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn long(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Reads a name with its length before it.
    fn text(&mut self) -> io::Result<&'a [u8]> {
        let length = self.byte()?;
        self.bytes(length.into())
    }

    fn head(&mut self) -> io::Result<()> {
        if self.array()? != MAGIC || self.number()? != VERSION {
            return Err(unknown("it is of another version"));
        }
        Ok(())
    }

    /// Reads which machine it is, and in which form the memory is.
    fn configuration(&mut self) -> io::Result<()> {
        if self.byte()? != CONFIGURATION {
            return Err(unknown("it does not say which machine it is"));
        }
        let name = self.number()?;
        self.bytes(name as usize)?;
        let shape = || unknown("its memory is in another form");
        if self.byte()? != SUBSECTION || self.text()? != CAPABILITIES {
            return Err(shape());
        }
        let (_version, count) = (self.number()?, self.number()?);
        match count == 1 && self.text()? == WITHOUT_SHARED_MEMORY {
            true => Ok(()),
            false => Err(shape()),
        }
    }

    /// Reads the entries of a section of memory.
    fn entries(&mut self) -> io::Result<()> {
        loop {
            let entry = self.long()?;
            let (mut flags, address) = (entry & FLAGS, entry & !FLAGS);
            match flags {
                END_OF_ENTRIES => return Ok(()),
                BLOCKS => {
                    self.blocks(address)?;
                    continue;
                }
                _ => {}
            }
            if flags & SAME_BLOCK == 0 {
                self.text()?;
            }
            flags &= !SAME_BLOCK;
            self.bytes(match flags {
                ZERO => 1,
                CONTENTS => PAGE,
                _ => return Err(unknown("its memory has an entry of another kind")),
            })?;
        }
    }

    /// Reads the list of blocks, which are `total` bytes long together.
    fn blocks(&mut self, total: u64) -> io::Result<()> {
        let mut listed = 0u64;
        while listed < total {
            self.text()?;
            let (length, _address) = (self.long()?, self.long()?);
            if length == 0 {
                return Err(unknown("a block of its memory is empty"));
            }
            listed = listed.saturating_add(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &mut Vec<u8>, text: &[u8]) {
        bytes.push(text.len() as u8);
        bytes.extend_from_slice(text);
    }

    fn section(bytes: &mut Vec<u8>, kind: u8, entries: &[u8]) {
        bytes.push(kind);
        bytes.extend_from_slice(&2u32.to_be_bytes());
        if kind == START {
            text(bytes, MEMORY);
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4]);
        }
        bytes.extend_from_slice(entries);
        bytes.extend_from_slice(&END_OF_ENTRIES.to_be_bytes());
        bytes.push(FOOTER);
        bytes.extend_from_slice(&2u32.to_be_bytes());
    }

    fn head() -> Vec<u8> {
        [&MAGIC[..], &VERSION.to_be_bytes()].concat()
    }

    /// A state's beginning as QEMU 7.2 writes it.
    fn sample() -> Vec<u8> {
        let mut state = head();
        state.push(CONFIGURATION);
        state.extend_from_slice(&7u32.to_be_bytes());
        state.extend_from_slice(b"microvm");
        state.push(SUBSECTION);
        text(&mut state, CAPABILITIES);
        state.extend_from_slice(&1u32.to_be_bytes());
        state.extend_from_slice(&1u32.to_be_bytes());
        text(&mut state, WITHOUT_SHARED_MEMORY);
        let mut blocks = (0x3000 | BLOCKS).to_be_bytes().to_vec();
        for (name, length) in [(&b"m"[..], 0x2000u64), (b"pc.bios", 0x1000)] {
            text(&mut blocks, name);
            blocks.extend_from_slice(&length.to_be_bytes());
            blocks.extend_from_slice(&0u64.to_be_bytes());
        }
        section(&mut state, START, &blocks);
        let mut pages = CONTENTS.to_be_bytes().to_vec();
        text(&mut pages, b"pc.bios");
        pages.extend_from_slice(&[7; PAGE]);
        pages.extend_from_slice(&(0x1000 | ZERO | SAME_BLOCK).to_be_bytes());
        pages.push(0);
        section(&mut state, PART, &pages);
        section(&mut state, LAST_PART, &[]);
        state
    }

    fn devices() -> Vec<u8> {
        [&head()[..], &[FULL, 0, 0, 0, 9], b"timer", &[END]].concat()
    }

    #[test]
    fn the_devices_of_a_running_machine_follow_the_beginning_of_its_template() {
        let beginning_there = sample();
        let template = [&beginning_there[..], &[FULL], b"old devices"].concat();
        let end = beginning(&template).unwrap();
        assert_eq!(end, beginning_there.len());
        let state = with_devices(&template[..end], &devices()).unwrap();
        let expected = [
            &beginning_there[..],
            &[FULL, 0, 0, 0, 9],
            b"timer",
            &[END, DESCRIPTION, 0, 0, 0, 0],
        ];
        assert_eq!(state, expected.concat());
        // What was put together can be the beginning of another.
        assert_eq!(beginning(&state).unwrap(), end);
    }

    #[test]
    fn r13_a_form_that_is_not_known_is_refused() {
        let state = sample();
        for length in 0..state.len() {
            beginning(&state[..length]).unwrap_err();
        }
        let position = |wanted: &[u8]| {
            let found = state.windows(wanted.len()).position(|part| part == wanted);
            found.unwrap()
        };
        for (at, byte) in [
            (0, b'X'),
            (7, 4),
            (8, FULL),
            (position(WITHOUT_SHARED_MEMORY), b'y'),
            (position(MEMORY), b'R'),
            (position(&[FOOTER, 0, 0, 0, 2]), 0),
        ] {
            let mut changed = state.clone();
            changed[at] = byte;
            beginning(&changed).unwrap_err();
        }
        for wrong in [&b""[..], b"QEVM\0\0\0\x03", b"QEVM\0\0\0\x03\x04abc"] {
            with_devices(&state, wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_state_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            drop(beginning(&bytes));
            drop(with_devices(&bytes, &bytes));
            let mut state = sample();
            state.truncate(cut.min(state.len()));
            state.extend_from_slice(&bytes);
            if let Ok(end) = beginning(&state) {
                prop_assert!(end <= state.len());
            }
        }
    }
}
