//! A sign of life that leaves no trace.
//!
//! A multiplexer answers a ping by itself, whatever else it does, and is afterwards as it was
//! ([yamux](https://github.com/hashicorp/yamux/blob/master/spec.md), "Ping"). So a guest can be found ready
//! in a session that has not begun: another host can take it up from its first frame, after the guest was
//! saved and restored.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version 0 and the type of a ping.
const PING: [u8; 2] = [0, 2];
const ASKED: u16 = 1;
const ANSWERED: u16 = 2;

/// What nobody else's ping carries.
const OURS: u32 = 0x5a17_11fe;

/// Waits until the other side answers. To be called before a channel is started on the stream, and under a time
/// limit.
///
/// Not cancel safe: a future dropped half-way leaves the stream in the middle of a frame.
///
/// # Errors
///
/// `UnexpectedEof` when the other side is gone, `InvalidData` when it says anything but pings.
pub(crate) async fn sign_of_life(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    stream.write_all(&ping(ASKED, OURS)).await?;
    loop {
        let mut frame = [0; 12];
        stream.read_exact(&mut frame).await?;
        let [v, kind, f0, f1, s0, s1, s2, s3, v0, v1, v2, v3] = frame;
        if [v, kind] != PING || [s0, s1, s2, s3] != [0; 4] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match (
            u16::from_be_bytes([f0, f1]),
            u32::from_be_bytes([v0, v1, v2, v3]),
        ) {
            (ANSWERED, OURS) => return Ok(()),
            // It measures how long answers take, which it must not wait for in what is saved.
            (ASKED, value) => stream.write_all(&ping(ANSWERED, value)).await?,
            _ => {}
        }
    }
}

fn ping(flags: u16, value: u32) -> [u8; 12] {
    let ([f0, f1], [v0, v1, v2, v3]) = (flags.to_be_bytes(), value.to_be_bytes());
    [PING[0], PING[1], f0, f1, 0, 0, 0, 0, v0, v1, v2, v3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Channel, Side};

    #[tokio::test]
    async fn r10_a_session_that_was_asked_begins_as_if_it_had_not_been() {
        let (mut host, guest) = tokio::io::duplex(4096);
        let (_guest, mut from_host) = Channel::start(Box::new(guest), Side::Guest);
        for _ in 0..3 {
            sign_of_life(&mut host).await.unwrap();
        }
        let (channel, _incoming) = Channel::start(Box::new(host), Side::Host);
        let mut here = channel.open().await.unwrap();
        here.write_all(b"first").await.unwrap();
        here.shutdown().await.unwrap();
        let mut text = String::new();
        let mut there = from_host.next().await.unwrap();
        there.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first");
    }

    #[tokio::test]
    async fn a_stranger_gives_no_sign() {
        for said in [
            &b"\0\0\0\0\0\0\0\0\0\0\0\0"[..],
            b"you are mine now",
            b"\0\x02\0",
        ] {
            let (mut host, mut guest) = tokio::io::duplex(4096);
            guest.write_all(said).await.unwrap();
            drop(guest);
            sign_of_life(&mut host).await.unwrap_err();
        }
    }
}
