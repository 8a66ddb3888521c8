//! The multiplexer: a task that owns the connection, and handles that ask it for streams.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::gather::{Gather, PORT_WRITE};
use super::wire::{Control, Hold, Wire};
use sandbox_base::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// The most streams that are open at once on one channel, both directions together.
///
/// Each can hold a window of 256 KiB, so a hostile peer can make this side hold 256 MiB and no more.
/// A command with its three streams takes four.
pub const MAX_STREAMS: usize = 1024;

/// How many streams that the guest opened may wait for the host to take them. More are reset: whoever
/// never takes any holds this many windows and no more.
const HOST_QUEUE: usize = 256;

/// The largest piece that one write puts on the wire, with its header (12 bytes, by yamux's specification) a
/// multiple of what the guest's port takes at once. Larger pieces mean fewer frames for the emulated guest to
/// handle; smaller ones mean less waiting behind another stream's data.
pub(crate) const SPLIT_SEND: usize = 4 * PORT_WRITE - 12;

/// Which end of the channel this is. The host opens, the guest answers; both can open streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Side {
    /// The side that starts the conversation.
    Host,
    /// The side that answers.
    Guest,
}

/// A handle that opens streams to the other side. Cheap to clone.
///
/// The connection lives as long as its byte stream, or until [`Channel::close`]; dropping handles
/// alone does not end it.
#[derive(Debug, Clone)]
pub struct Channel {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<Option<Ending>>,
    control: Control,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// One side closed it, or went away.
    Closed,
    /// What the peer sent was no framing.
    Broken,
}

/// The streams that the other side opens.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<Stream>,
}

/// One stream of a channel. Dropping it resets it; `shutdown` ends its sending half only.
///
/// A stream whose sender ended it reads as ended; one that was reset, or whose connection is gone, reads
/// as `ConnectionReset` after what had come. Once this side has shut its own half down the two can no
/// longer be told apart, and both read as ended.
pub struct Stream {
    inner: Compat<yamux::Stream>,
    shut: bool,
}

#[derive(Debug)]
enum Command {
    Open(oneshot::Sender<io::Result<Stream>>),
    Close,
}

impl Channel {
    /// Starts a channel over `stream` and the task that drives it, on the current tokio runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(stream: BoxStream, side: Side) -> (Self, Incoming) {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(MAX_STREAMS);
        config.set_max_connection_receive_window(Some(MAX_STREAMS * 256 * 1024));
        config.set_split_send_size(SPLIT_SEND);
        let mode = match side {
            Side::Host => yamux::Mode::Client,
            Side::Guest => yamux::Mode::Server,
        };
        let (wire, control) = Wire::new(Gather::new(stream), side);
        let connection = yamux::Connection::new(wire.compat(), config, mode);
        let (commands, command_queue) = mpsc::channel(64);
        // The guest trusts its host, which may open all of its streams at once; the host does not trust.
        let (incoming, streams) = mpsc::channel(match side {
            Side::Host => HOST_QUEUE,
            Side::Guest => MAX_STREAMS,
        });
        let (ended_sender, ended) = watch::channel(None);
        let driver = Driver {
            connection,
            commands: command_queue,
            incoming,
            opening: None,
        };
        tokio::spawn(async move {
            let ending = driver.run().await;
            // Nobody has to be listening.
            let _ = ended_sender.send(Some(ending));
        });
        let channel = Self {
            commands,
            ended,
            control,
        };
        (channel, Incoming { streams })
    }

    /// Opens a stream. Nothing travels until the first write.
    ///
    /// Cancel safe: a dropped future leaves at most an unused stream that is reset at once.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the channel has ended, `ResourceBusy` when too many streams are open.
    pub async fn open(&self) -> io::Result<Stream> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the channel has ended");
        self.commands
            .send(Command::Open(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Ends the connection in order: what was written is sent first. Returns at once.
    pub async fn close(&self) {
        // An error says that it has ended already.
        drop(self.commands.send(Command::Close).await);
    }

    /// Waits until the connection has ended, for whatever reason. Cancel safe.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error says that the driver is gone, which is the same thing.
        drop(ended.wait_for(Option::is_some).await);
    }

    /// Brings both sides to rest, each after a whole frame: until what is returned is dropped no byte travels
    /// either way, and what is written into streams waits. For the host, whose guest is to be saved while it runs.
    ///
    /// It waits for as long as the guest does not answer: call it under a time limit. Cancel safe; the channel
    /// goes on then.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the channel has ended, `ResourceBusy` when it is held already, a hold that was given up
    /// has not been answered yet, or this is the guest's side.
    pub async fn hold(&self) -> io::Result<Hold> {
        let ended = self.ended();
        tokio::select! {
            held = self.control.hold() => held,
            () = ended => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Tells whether the connection ended because the guest was saved and another host has begun with its copy.
    #[cfg_attr(
        not(all(feature = "guest", target_os = "linux")),
        allow(dead_code, reason = "the guest asks")
    )]
    pub(crate) fn was_taken_over(&self) -> bool {
        self.control.was_taken_over()
    }

    /// Tells whether the connection ended because what the peer sent was no framing.
    pub fn was_broken_by_peer(&self) -> bool {
        *self.ended.borrow() == Some(Ending::Broken)
    }

    /// Tells whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }
}

impl Incoming {
    /// Waits for the next stream that the other side opens; `None` when the connection has ended.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

struct Driver {
    connection: yamux::Connection<Compat<Wire<Gather<BoxStream>>>>,
    commands: mpsc::Receiver<Command>,
    incoming: mpsc::Sender<Stream>,
    opening: Option<oneshot::Sender<io::Result<Stream>>>,
}

impl Driver {
    async fn run(mut self) -> Ending {
        let ending = poll_fn(|context| self.poll(context)).await;
        // Ends it in order when it was asked to, at once when it has failed already.
        drop(poll_fn(|context| self.connection.poll_close(context)).await);
        ending
    }

    /// Runs until the connection ends or its close is asked for.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Ending> {
        loop {
            if self.opening.is_none() {
                match self.commands.poll_recv(context) {
                    Poll::Ready(Some(Command::Open(reply))) => self.opening = Some(reply),
                    Poll::Ready(Some(Command::Close)) => return Poll::Ready(Ending::Closed),
                    // Without handles the connection still serves its streams.
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            if let Some(reply) = self.opening.take() {
                match self.connection.poll_new_outbound(context) {
                    Poll::Ready(result) => {
                        // A receiver that is gone drops the stream, which resets it.
                        drop(reply.send(result.map(Stream::new).map_err(refused)));
                        continue;
                    }
                    Poll::Pending => self.opening = Some(reply),
                }
            }
            match self.connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(stream))) => {
                    // A full queue means that streams come faster than they are served; the peer's
                    // stream is reset, which it can see, and memory stays bounded.
                    drop(self.incoming.try_send(Stream::new(stream)));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "channel failed");
                    return Poll::Ready(ending(&error));
                }
                Poll::Ready(None) => return Poll::Ready(Ending::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn ending(error: &yamux::ConnectionError) -> Ending {
    match error {
        yamux::ConnectionError::Decode(yamux::FrameDecodeError::Io(_)) => Ending::Closed,
        yamux::ConnectionError::Decode(_) | yamux::ConnectionError::InvalidWindowUpdate => {
            Ending::Broken
        }
        _ => Ending::Closed,
    }
}

fn refused(error: yamux::ConnectionError) -> io::Error {
    let kind = match error {
        yamux::ConnectionError::TooManyStreams => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, error)
}

impl Stream {
    fn new(stream: yamux::Stream) -> Self {
        Self {
            inner: stream.compat(),
            shut: false,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream")
            .field(&self.inner.get_ref().id())
            .finish()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        // Ended by the peer alone it would be half open: only a reset closes both halves.
        if ended && !self.shut && self.inner.get_ref().is_closed() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the other side dropped the stream",
            )));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner)
            .poll_write(context, bytes)
            .map_err(closed)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner)
            .poll_flush(context)
            .map_err(closed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Pin::new(&mut self.inner)
            .poll_shutdown(context)
            .map_err(closed)
    }
}

/// Yamux answers `WriteZero` for a stream that the peer closed; the field says `BrokenPipe`.
fn closed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WriteZero {
        return io::Error::new(
            io::ErrorKind::BrokenPipe,
            "the other side closed the stream",
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> ((Channel, Incoming), (Channel, Incoming)) {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        (
            Channel::start(Box::new(host), Side::Host),
            Channel::start(Box::new(guest), Side::Guest),
        )
    }

    #[tokio::test]
    async fn both_sides_open_streams() {
        let ((host, mut from_guest), (guest, mut from_host)) = pair();
        for (opener, incoming) in [(&host, &mut from_host), (&guest, &mut from_guest)] {
            let mut here = opener.open().await.unwrap();
            here.write_all(b"ping").await.unwrap();
            here.shutdown().await.unwrap();
            let mut there = incoming.next().await.unwrap();
            let mut text = String::new();
            there.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "ping");
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_holds_only_its_own_stream() {
        let ((host, _keep), (_guest, mut from_host)) = pair();
        let mut stalled = host.open().await.unwrap();
        let writer = tokio::spawn(async move {
            let block = vec![0u8; 64 * 1024];
            let mut written = 0;
            while tokio::time::timeout(Duration::from_millis(300), stalled.write_all(&block))
                .await
                .is_ok()
            {
                written += block.len();
            }
            (stalled, written)
        });
        let unread = from_host.next().await.unwrap();
        let mut other = host.open().await.unwrap();
        other.write_all(b"still here").await.unwrap();
        other.shutdown().await.unwrap();
        let mut text = String::new();
        from_host
            .next()
            .await
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!(text, "still here");
        let (_stalled, written) = writer.await.unwrap();
        assert!(written <= 2 << 20, "an unread stream took {written} bytes");
        drop(unread);
    }

    #[tokio::test]
    async fn the_guest_takes_as_many_streams_at_once_as_there_can_be() {
        let ((host, _keep), (_guest, mut from_host)) = pair();
        let mut opened = Vec::new();
        for number in 0..200u8 {
            let mut stream = host.open().await.unwrap();
            stream.write_all(&[number]).await.unwrap();
            opened.push(stream);
        }
        let mut served = Vec::new();
        for number in 0..200u8 {
            let mut stream = from_host.next().await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), number);
            served.push(stream);
        }
    }

    #[tokio::test]
    async fn junk_from_the_peer_ends_the_channel() {
        let (host, mut peer) = tokio::io::duplex(1024);
        let (channel, mut incoming) = Channel::start(Box::new(host), Side::Host);
        peer.write_all(&[0xff; 64]).await.unwrap();
        channel.ended().await;
        assert!(channel.was_broken_by_peer());
        assert!(incoming.next().await.is_none());
        let error = channel.open().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_dropped_stream_does_not_read_as_a_whole_one() {
        let ((host, _keep), (_guest, mut from_host)) = pair();
        for whole in [true, false] {
            let mut here = host.open().await.unwrap();
            here.write_all(b"part").await.unwrap();
            let mut there = from_host.next().await.unwrap();
            if whole {
                here.shutdown().await.unwrap();
            }
            drop(here);
            let mut bytes = Vec::new();
            let read = there.read_to_end(&mut bytes).await;
            assert_eq!(bytes, b"part");
            assert_eq!(read.is_ok(), whole);
        }
    }

    #[tokio::test]
    async fn a_vanished_peer_ends_open_streams() {
        let ((host, _keep), (guest, mut from_host)) = pair();
        let mut stream = host.open().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let served = from_host.next().await.unwrap();
        guest.close().await;
        drop(served);
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        host.ended().await;
        assert!(host.has_ended());
    }
}
