//! QEMU's control protocol: JSON objects on lines (`docs/interop/qmp-spec`).
//!
//! The peer is QEMU itself, which a hostile guest may have taken over: lines are bounded, and what does
//! not decode ends the conversation.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A conversation with one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Qmp {
    /// Reads the greeting and leaves the negotiation mode. Returns QEMU's version with the conversation.
    pub(super) async fn greet(stream: UnixStream) -> io::Result<(Self, String)> {
        let (reader, writer) = stream.into_split();
        let mut qmp = Self {
            reader: BufReader::new(reader),
            writer,
        };
        let greeting = qmp.line().await?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let version = format!(
            "{}.{}.{}",
            version["major"], version["minor"], version["micro"]
        );
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, version))
    }

    /// Executes a command and returns what it answers; events on the way are passed over.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await?;
        loop {
            let mut answer = self.line().await?;
            if let Some(error) = answer.get("error") {
                let text = error["desc"].as_str().unwrap_or("no reason given");
                return Err(io::Error::other(format!("{command}: {text}")));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    async fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let count = (&mut self.reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn with_peer(said: &'static str) -> io::Result<(Qmp, String)> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        Qmp::greet(ours).await
    }

    #[tokio::test]
    async fn events_before_an_answer_are_passed_over() {
        let said = concat!(
            r#"{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22}},"capabilities":[]}}"#,
            "\n{\"event\":\"RESUME\"}\n{\"return\":{}}\n"
        );
        assert_eq!(with_peer(said).await.unwrap().1, "7.2.22");
    }

    #[tokio::test]
    async fn junk_ends_the_conversation() {
        let error = with_peer("you are mine now\n").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_with_its_reason() {
        let said = "{\"QMP\":{}}\n{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n";
        assert!(
            with_peer(said)
                .await
                .unwrap_err()
                .to_string()
                .ends_with(": no")
        );
    }
}
