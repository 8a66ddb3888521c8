//! Length-delimited messages with a bound on both sides.
//!
//! A message is its length as four bytes, little end first, then its fields in the
//! [postcard](https://postcard.jamesmunns.com/wire-format) wire format. The reader names the longest
//! message it accepts and reserves nothing before the length has passed that bound, so a hostile peer
//! can make it hold `limit` bytes and no more. Decoding cannot panic, and bytes left over after a message
//! are an error: two versions that disagree about a message find out at once.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads one message of at most `limit` bytes.
///
/// Not cancel safe: a future dropped half-way leaves the stream in the middle of a message.
///
/// # Errors
///
/// `UnexpectedEof` when the peer closed, `InvalidData` when the message is longer than `limit` or does
/// not decode.
pub async fn read_message<T, R>(reader: &mut R, limit: usize) -> io::Result<T>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin + ?Sized,
{
    let length = reader.read_u32_le().await? as usize;
    if length > limit {
        return Err(invalid(format!("message of {length} bytes, limit {limit}")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    decode(&body)
}

/// Writes one message of at most `limit` bytes and flushes it.
///
/// Not cancel safe: a future dropped half-way leaves the stream in the middle of a message.
///
/// # Errors
///
/// `InvalidInput` when the message would be longer than `limit` (nothing is written then), or what the
/// stream answers.
pub async fn write_message<T, W>(writer: &mut W, message: &T, limit: usize) -> io::Result<()>
where
    T: Serialize + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    let frame = encode(message, limit)?;
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// Encodes a message with its length in front, as [`write_message`] sends it.
///
/// # Errors
///
/// `InvalidInput` when the message would be longer than `limit`.
pub fn encode<T: Serialize + ?Sized>(message: &T, limit: usize) -> io::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= limit)
        .ok_or_else(|| {
            let reason = format!("message of {length} bytes, limit {limit}");
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        })?;
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(invalid(format!(
            "{} bytes left over in a message",
            rest.len()
        ))),
        Err(error) => Err(invalid(format!("message does not decode: {error}"))),
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_read() {
        let mut wire: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        let error = block_on(read_message::<Vec<u8>, _>(&mut wire, 16)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(wire.len(), 3, "nothing of the body was consumed");
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut frame = encode(&7u8, 16).unwrap();
        frame[0] += 1;
        frame.push(0);
        let error = block_on(read_message::<u8, _>(&mut frame.as_slice(), 16)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_message_over_the_limit_is_not_written() {
        let mut out = Vec::new();
        let error = block_on(write_message(&mut out, &vec![0u8; 100], 16)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message: (u32, String, Vec<(String, Vec<u8>)>)) {
            let frame = encode(&message, 1 << 20).unwrap();
            let read = block_on(read_message(&mut frame.as_slice(), 1 << 20)).unwrap();
            prop_assert_eq!(message, read);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            drop(decode::<(u32, String, Vec<(String, Option<Vec<u8>>)>)>(&bytes));
        }
    }
}
