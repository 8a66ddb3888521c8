//! QEMU's control protocol: JSON objects on lines (`docs/interop/qmp-spec`).
//!
//! The peer is QEMU itself, which a hostile guest may have taken over: lines are bounded, and what does
//! not decode ends the conversation.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A conversation with one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Where the migration under way is, as the last event about it said.
    migration: Option<String>,
}

/// The name under which QEMU keeps the descriptor of a machine's state.
const STATE: &str = "state";

impl Qmp {
    /// Reads the greeting and leaves the negotiation mode. Returns QEMU's version with the conversation.
    pub(super) async fn greet(stream: UnixStream) -> io::Result<(Self, String)> {
        let (reader, writer) = stream.into_split();
        let mut qmp = Self {
            reader: BufReader::new(reader),
            writer,
            migration: None,
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
        self.answer(command).await
    }

    /// Writes the machine's state to `file`, but for its memory, which is a file shared with QEMU. The guest
    /// stands still from here on.
    pub(super) async fn save(&mut self, file: &File) -> io::Result<()> {
        self.share_memory().await?;
        self.execute("stop", json!({})).await?;
        self.hand_over(file).await?;
        let to = json!({ "uri": format!("fd:{STATE}") });
        self.execute("migrate", to).await?;
        self.migrated().await
    }

    /// Reads the state of a machine from `file` and lets the guest go on from there.
    pub(super) async fn load(&mut self, file: &File) -> io::Result<()> {
        self.share_memory().await?;
        self.hand_over(file).await?;
        let from = json!({ "uri": format!("fd:{STATE}") });
        self.execute("migrate-incoming", from).await?;
        self.migrated().await?;
        self.execute("cont", json!({})).await.map(drop)
    }

    /// Writes the state of the devices alone to `file`, which is open for writing only. The guest must stand still.
    pub(super) async fn save_devices(&mut self, file: &File) -> io::Result<()> {
        const SET: u32 = 1;
        let set = json!({ "fdset-id": SET });
        self.execute_with("add-fd", set.clone(), file).await?;
        let to = json!({ "filename": format!("/dev/fdset/{SET}"), "live": false });
        let saved = self.execute("xen-save-devices-state", to).await;
        let closed = self.execute("remove-fd", set).await;
        saved.and(closed).map(drop)
    }

    /// Leaves memory that is a file out of the state, and asks to be told when all of that is through.
    async fn share_memory(&mut self) -> io::Result<()> {
        let wanted =
            ["x-ignore-shared", "events"].map(|name| json!({ "capability": name, "state": true }));
        let wanted = json!({ "capabilities": wanted });
        self.execute("migrate-set-capabilities", wanted)
            .await
            .map(drop)
    }

    /// Gives QEMU a descriptor of ours; its own filter lets it start nothing that could open one.
    async fn hand_over(&mut self, file: &File) -> io::Result<()> {
        let name = json!({ "fdname": STATE });
        self.execute_with("getfd", name, file).await.map(drop)
    }

    /// Executes a command that comes with a descriptor.
    async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        file: &File,
    ) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        let stream = self.writer.as_ref();
        let sent = stream.async_io(Interest::WRITABLE, || {
            let descriptors = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let line = [IoSlice::new(line.as_bytes())];
            Ok(sendmsg(stream, &line, &mut control, SendFlags::NOSIGNAL)?)
        });
        // What did not fit goes without the descriptor, which went with the first byte.
        let sent = sent.await?;
        self.writer.write_all(&line.as_bytes()[sent..]).await?;
        self.writer.write_all(b"\n").await?;
        self.answer(command).await
    }

    /// Waits for the end of a migration.
    async fn migrated(&mut self) -> io::Result<()> {
        loop {
            match self.migration.as_deref() {
                Some("completed") => return Ok(()),
                Some(ended @ ("failed" | "cancelled")) => {
                    return Err(io::Error::other(format!("the migration {ended}")));
                }
                _ => {}
            }
            let event = self.line().await?;
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Value) {
        if event["event"] == "MIGRATION" {
            self.migration = event["data"]["status"].as_str().map(str::to_owned);
        }
    }

    async fn answer(&mut self, command: &str) -> io::Result<Value> {
        loop {
            let mut answer = self.line().await?;
            self.note(&answer);
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
    async fn a_migration_that_fails_is_told_from_one_that_ends() {
        for (status, good) in [("completed", true), ("failed", false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let event = json!({ "event": "MIGRATION", "data": { "status": status } });
            // One event comes before the answer, the last one after it.
            let said = format!(
                "{{\"QMP\":{{}}}}\n{{\"return\":{{}}}}\n{{\"return\":{{}}}}\n{{\"return\":{{}}}}\n{}\n\
                 {{\"return\":{{}}}}\n{{\"return\":{{}}}}\n",
                json!({ "event": "MIGRATION", "data": { "status": "active" } })
            );
            theirs.write_all(said.as_bytes()).await.unwrap();
            theirs
                .write_all(format!("{event}\n").as_bytes())
                .await
                .unwrap();
            let (mut qmp, _) = Qmp::greet(ours).await.unwrap();
            let file = tempfile::tempfile().unwrap();
            let saved = qmp.save(&file).await;
            assert_eq!(saved.is_ok(), good, "{saved:?}");
        }
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
