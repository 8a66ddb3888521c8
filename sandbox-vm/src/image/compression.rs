//! Plain, gzip or zstd: told by the first bytes, as archives' names and media types are not always right.
//!
//! All decoders are pure Rust, so that images are made on every host without a C library. Both formats are
//! read as sequences of members or frames, which parallel compressors and lazily pulled layers write.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Uncompresses what `source` holds, if it is compressed.
pub(super) fn uncompressed<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = Peeked {
        front: Vec::new(),
        source,
    };
    let start = source.peek(4)?;
    Ok(if start.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(source))
    } else if start == ZSTD || is_skippable(start) {
        Box::new(Zstd {
            state: State::Between(source),
        })
    } else {
        Box::new(source)
    })
}

/// Zstd's frames that hold no data have sixteen magic numbers (RFC 8878, section 3.1.2).
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// A stream whose next bytes can be looked at before they are read.
struct Peeked<S> {
    front: Vec<u8>,
    source: S,
}

impl<S: Read> Peeked<S> {
    /// Returns the next `count` bytes, fewer at the end. What is peeked at is read afterwards.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        let missing = count.saturating_sub(self.front.len()) as u64;
        self.source
            .by_ref()
            .take(missing)
            .read_to_end(&mut self.front)?;
        Ok(&self.front)
    }
}

impl<S: Read> Read for Peeked<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.front.is_empty() {
            return self.source.read(buffer);
        }
        let length = self.front.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.front[..length]);
        self.front.drain(..length);
        Ok(length)
    }
}

/// A sequence of zstd frames.
struct Zstd<S: Read> {
    state: State<S>,
}

enum State<S: Read> {
    Between(Peeked<S>),
    Inside(Box<StreamingDecoder<Peeked<S>, FrameDecoder>>),
    Done,
}

impl<S: Read> Read for Zstd<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(0),
                State::Between(source) => self.state = next_frame(source)?,
                State::Inside(mut frame) => match frame.read(buffer)? {
                    0 => self.state = State::Between(frame.into_inner()),
                    read => {
                        self.state = State::Inside(frame);
                        return Ok(read);
                    }
                },
            }
        }
    }
}

fn next_frame<S: Read>(mut source: Peeked<S>) -> io::Result<State<S>> {
    loop {
        let start = source.peek(4)?;
        if start.is_empty() {
            return Ok(State::Done);
        }
        if !is_skippable(start) {
            let frame = StreamingDecoder::new(source)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok(State::Inside(Box::new(frame)));
        }
        let mut head = [0; 8];
        source.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        io::copy(
            &mut source.by_ref().take(u64::from(length)),
            &mut io::sink(),
        )?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        uncompressed(bytes)?.read_to_end(&mut all).map(|_| all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    #[test]
    fn every_form_is_told_by_its_first_bytes() {
        for plain in [&b""[..], b"x", b"plain text"] {
            assert_eq!(read(plain).unwrap(), plain);
            assert_eq!(read(&gzip(plain)).unwrap(), plain);
            assert_eq!(read(&zstd(plain)).unwrap(), plain);
        }
    }

    #[test]
    fn several_members_are_one_stream() {
        assert_eq!(read(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
        let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0xyz".to_vec();
        let frames = [skippable.clone(), zstd(b"a"), skippable, zstd(b"b")].concat();
        assert_eq!(read(&frames).unwrap(), b"ab");
    }

    #[test]
    fn a_cut_off_stream_is_an_error() {
        let text = b"some text that is compressed".repeat(50);
        for whole in [gzip(&text), zstd(&text)] {
            read(&whole[..whole.len() - 5]).unwrap_err();
        }
    }
}
