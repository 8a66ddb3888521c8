//! Agents that are none: what a guest that was taken over may say.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sandbox_base::BoxStream;
use sandbox_base::frame::{read_message, write_message};
use sandbox_vm::backend::plain::Plain;
use sandbox_vm::channel::protocol::{
    ExecEvent, Exit, ExitCause, Failure, FailureKind, MAX_MESSAGE, MAX_OPEN, Open, Reply, VERSIONS,
    Welcome,
};
use sandbox_vm::channel::{Channel, Incoming, Side, Stream};
use sandbox_vm::hypervisor::{
    Availability, Capabilities, HypervisorExt, Machine, MachineEnd, MachineFacts, MachineSpec,
};
use sandbox_vm::{Agent, Error, ErrorKind, Hypervisor};
use tokio::io::{AsyncWriteExt, DuplexStream};

use crate::support::{self, command};

type Speech = fn(DuplexStream) -> BoxFuture<'static, ()>;

/// A backend whose guests say what the test wants. It counts who is alive.
#[derive(Debug)]
struct Hostile {
    speech: Speech,
    started: AtomicUsize,
    alive: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct HostileMachine {
    facts: MachineFacts,
    speech: Speech,
    alive: Arc<AtomicUsize>,
    killed: tokio::sync::watch::Sender<bool>,
}

#[async_trait]
impl Hypervisor for Hostile {
    fn name(&self) -> &'static str {
        "hostile"
    }

    fn capabilities(&self) -> Capabilities {
        Plain::new("").capabilities()
    }

    async fn probe(&self) -> Result<Availability, Error> {
        Plain::new(support::helper()).probe().await
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, Error> {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.alive.fetch_add(1, Ordering::SeqCst);
        // Only a backend of the crate can make facts; the fake's are as good.
        let plain = Plain::new(support::helper()).start(spec).await?;
        let facts = plain.facts().clone();
        plain.kill().await?;
        Ok(Arc::new(HostileMachine {
            facts,
            speech: self.speech,
            alive: self.alive.clone(),
            killed: tokio::sync::watch::Sender::new(false),
        }))
    }
}

#[async_trait]
impl Machine for HostileMachine {
    fn facts(&self) -> &MachineFacts {
        &self.facts
    }

    async fn connect(&self) -> Result<BoxStream, Error> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn((self.speech)(theirs));
        Ok(Box::new(ours))
    }

    fn wait(&self) -> BoxFuture<'static, MachineEnd> {
        let mut killed = self.killed.subscribe();
        Box::pin(async move {
            drop(killed.wait_for(|killed| *killed).await);
            MachineEnd::default()
        })
    }

    async fn kill(&self) -> Result<(), Error> {
        if !self.killed.send_replace(true) {
            self.alive.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Boots such a guest, and checks that it was tried so often and that none is alive afterwards.
async fn boot(speech: Speech, tries: usize) -> Error {
    let folder = support::folder();
    let hostile = Hostile {
        speech,
        started: AtomicUsize::default(),
        alive: Arc::default(),
    };
    let spec = MachineSpec::new("hostile", folder.path().join("m"));
    let patience = Duration::from_millis(1500);
    let error = hostile.boot(&spec, patience).await.unwrap_err();
    assert_eq!(hostile.started.into_inner(), tries, "{error}");
    assert_eq!(hostile.alive.load(Ordering::SeqCst), 0, "{error}");
    error
}

/// Takes the host's first stream and returns it with its first message read.
async fn first_stream(bytes: DuplexStream) -> (Channel, Incoming, Stream, Open) {
    let (channel, mut incoming) = Channel::start(Box::new(bytes), Side::Guest);
    let (stream, open) = next(&mut incoming).await;
    (channel, incoming, stream, open)
}

async fn next(incoming: &mut Incoming) -> (Stream, Open) {
    let mut stream = incoming.next().await.unwrap();
    let open = read_message(&mut stream, MAX_OPEN).await.unwrap();
    (stream, open)
}

/// Answers the greeting as an agent would.
async fn welcome(bytes: DuplexStream, version: u16) -> (Channel, Incoming) {
    let (channel, incoming, mut stream, _) = first_stream(bytes).await;
    let reply: Reply<Welcome> = Ok(Welcome {
        version,
        agent: "\u{1b}[2J".into(),
        first_process: true,
    });
    write_message(&mut stream, &reply, MAX_MESSAGE)
        .await
        .unwrap();
    (channel, incoming)
}

/// A frame of the multiplexer, by hand: `flags` 1 opens a stream.
fn frame(flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend(flags.to_be_bytes());
    header.extend(stream.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

#[tokio::test]
async fn junk_breaks_the_protocol() {
    let error = boot(
        |mut bytes| Box::pin(async move { while bytes.write_all(&[0xff; 1024]).await.is_ok() {} }),
        1,
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_frame_too_large_breaks_the_protocol() {
    let error = boot(
        |mut bytes| {
            Box::pin(async move {
                bytes.write_all(&frame(1, 2, u32::MAX)).await.unwrap();
                while bytes.write_all(&[0; 64 << 10]).await.is_ok() {}
            })
        },
        1,
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_message_too_long_or_senseless_breaks_the_protocol() {
    let too_long: Speech = |bytes| {
        Box::pin(async move {
            let (_channel, _incoming, mut stream, _) = first_stream(bytes).await;
            stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
            while stream.write_all(&[0; 4096]).await.is_ok() {}
        })
    };
    let senseless: Speech = |bytes| {
        Box::pin(async move {
            let (_channel, _incoming, mut stream, _) = first_stream(bytes).await;
            stream.write_all(&[4, 0, 0, 0, 9, 9, 9, 9]).await.unwrap();
            std::future::pending().await
        })
    };
    for speech in [too_long, senseless] {
        let error = boot(speech, 1).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

#[tokio::test]
async fn a_version_that_was_not_offered_breaks_the_protocol() {
    let error = boot(
        |bytes| {
            Box::pin(async move {
                let _open = welcome(bytes, VERSIONS.end() + 1).await;
                std::future::pending().await
            })
        },
        1,
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn an_agent_without_a_common_version_is_unsupported() {
    let error = boot(
        |bytes| {
            Box::pin(async move {
                let (_channel, _incoming, mut stream, _) = first_stream(bytes).await;
                let message = format!("\u{1b}]0;mine\u{7}{}", "x".repeat(60_000));
                let reply: Reply<Welcome> = Err(Failure {
                    kind: FailureKind::Unsupported,
                    message,
                });
                write_message(&mut stream, &reply, MAX_MESSAGE)
                    .await
                    .unwrap();
                std::future::pending().await
            })
        },
        1,
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.len() < 2000, "{} bytes of a stranger", text.len());
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
}

#[tokio::test]
async fn an_agent_that_goes_away_disconnects() {
    let error = boot(|bytes| Box::pin(async move { drop(bytes) }), 1).await;
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
}

#[tokio::test]
async fn an_agent_that_does_not_prepare_is_killed_and_tried_once_more() {
    let error = boot(
        |bytes| {
            Box::pin(async move {
                let (_channel, mut incoming) = welcome(bytes, *VERSIONS.end()).await;
                let (_stream, open) = next(&mut incoming).await;
                assert!(matches!(open, Open::Setup(_)), "{open:?}");
                std::future::pending().await
            })
        },
        2,
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[tokio::test]
async fn an_end_before_the_start_breaks_the_protocol() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let (_channel, mut incoming) = welcome(theirs, *VERSIONS.end()).await;
        let (mut control, _) = next(&mut incoming).await;
        let exit = ExecEvent::Exited(Exit {
            code: Some(0),
            signal: None,
            cause: ExitCause::Own,
        });
        write_message(&mut control, &exit, MAX_MESSAGE)
            .await
            .unwrap();
        std::future::pending::<()>().await
    });
    let agent = Agent::connect(Box::new(ours)).await.unwrap();
    let error = agent.exec(command(&["true"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

/// A guest opens streams without end and fills each beyond its window, while nobody takes them.
#[tokio::test(flavor = "multi_thread")]
async fn streams_without_end_are_bounded() {
    const STREAMS: u32 = 2000;
    const BODY: usize = 64 << 10;
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let (channel, incoming) = Channel::start(Box::new(ours), Side::Host);
    let before = resident_kib();
    let body = vec![1; BODY];
    // The host answers with resets, which somebody must read.
    let (mut reader, mut writer) = tokio::io::split(&mut theirs);
    let mut sink = tokio::io::sink();
    let flooding = async {
        for number in 1..=STREAMS {
            for flags in [1, 0, 0, 0, 0] {
                let header = frame(flags, number * 2, BODY as u32);
                writer.write_all(&header).await.unwrap();
                writer.write_all(&body).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = flooding => {}
        read = tokio::io::copy(&mut reader, &mut sink) => panic!("the host left: {read:?}"),
    }
    let grown = resident_kib().saturating_sub(before);
    // 625 MiB were sent; 256 waiting streams hold a window of 256 KiB each.
    assert!(grown < 200 << 10, "{grown} KiB are held");
    assert!(!channel.has_ended());
    drop(incoming);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
