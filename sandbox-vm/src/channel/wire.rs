//! The byte stream beneath the multiplexer, which can be brought to rest between two frames.
//!
//! A machine that is saved while it runs is saved with its half of a conversation. In the middle of a frame
//! that half would be lost: a copy of the machine could neither go on nor begin anew. So both halves fall
//! silent first, each after a whole frame:
//!
//! ```text
//!  host                                guest
//!   │── hold ──────────────────────────▶│
//!   │◀────────────────────────── held ──│   neither says anything more
//!   │        the machine is saved       │
//!   │── go on ─────────────────────────▶│   the session goes on as if nothing had been
//!
//!   │── begin ─────────────────────────▶│   or, in a copy: the session ends there, as if its host had gone,
//!   │◀───────────────────────── begun ──│   and the next one begins
//! ```
//!
//! The words are frames of a type that the multiplexer does not have, and never reach it. A guest that
//! answers none of them can be saved all the same if its host wants, but not be spoken to in a copy; one that says
//! them out of turn has broken the framing.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::mux::Side;

/// The length of a frame's header (yamux, "Framing").
const HEADER: usize = 12;

/// The type of frames that have a body.
const DATA: u8 = 0;

/// How much the multiplexer may write while the host waits for the guest to fall silent. It does not read on while
/// an answer of its own waits to be written, a pong say, so that must be taken from it.
const BACKLOG: usize = 4 << 20;

/// How much is read for a header and what follows it. A body is read straight to where it goes.
const READ_BUFFER: usize = 4096;

/// What the halves of a wire say to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Hold,
    Held,
    GoOn,
    Begin,
    Begun,
}

impl Word {
    const ALL: [Self; 5] = [Self::Hold, Self::Held, Self::GoOn, Self::Begin, Self::Begun];

    fn frame(self) -> [u8; HEADER] {
        let mut frame = [0; HEADER];
        frame[1] = 0xf0 + self as u8;
        frame
    }

    fn of(frame: &[u8; HEADER]) -> Option<Self> {
        Self::ALL.into_iter().find(|word| word.frame() == *frame)
    }
}

/// Where a conversation stands, as one half sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Frames go both ways.
    Flowing,
    /// This half says `hold` or `held` after its present frame.
    Stopping,
    /// Host: it waits for the guest's `held`. It says nothing.
    Waiting,
    /// Neither half says anything.
    Held,
    /// Host: it says `go on`.
    Resuming,
    /// Guest: another host has begun; `begun` is to be said.
    Ending,
    /// Guest: the session is over.
    Over,
}

/// The conversation's state machine: pure, but for who is woken.
#[derive(Debug)]
struct State {
    side: Side,
    phase: Phase,
    /// Host: a `held` is still on its way although the hold was given up. Guest: a `go on` came before `held` was
    /// said.
    late: bool,
    /// A word that is partly written.
    speaking: Option<Word>,
    waker: Option<Waker>,
}

impl State {
    /// Returns the word that is to be said next, as soon as no frame is under way.
    fn due(&self) -> Option<Word> {
        match (self.phase, self.side) {
            _ if self.speaking.is_some() => self.speaking,
            (Phase::Stopping, Side::Host) => Some(Word::Hold),
            (Phase::Stopping, Side::Guest) => Some(Word::Held),
            (Phase::Resuming, _) => Some(Word::GoOn),
            (Phase::Ending, _) => Some(Word::Begun),
            _ => None,
        }
    }

    /// Notes that a word has been said.
    fn said(&mut self, word: Word) {
        self.speaking = None;
        self.phase = match (word, self.phase) {
            (Word::Hold, Phase::Stopping) => Phase::Waiting,
            (Word::Held, _) if std::mem::take(&mut self.late) => Phase::Flowing,
            (Word::Held, _) => Phase::Held,
            (Word::GoOn, _) => Phase::Flowing,
            (Word::Begun, _) => Phase::Over,
            (_, phase) => phase,
        };
        self.wake();
    }

    /// Notes that the host wants silence. `None` where it cannot be had.
    fn stop(&mut self) -> Option<()> {
        if self.side != Side::Host || self.phase != Phase::Flowing || self.late {
            return None;
        }
        self.phase = Phase::Stopping;
        self.wake();
        Some(())
    }

    /// Notes that the host wants to go on.
    fn release(&mut self) {
        let said = self.speaking.is_some();
        self.phase = match self.phase {
            Phase::Stopping if !said => Phase::Flowing,
            Phase::Stopping | Phase::Waiting => {
                self.late = true;
                Phase::Resuming
            }
            Phase::Held => Phase::Resuming,
            phase => phase,
        };
        self.wake();
    }

    /// Takes in what the other half said. `None` when it was not its turn.
    fn heard(&mut self, word: Word) -> Option<()> {
        self.phase = match (self.side, word, self.phase) {
            (Side::Guest, Word::Hold, Phase::Flowing) => Phase::Stopping,
            (Side::Guest, Word::GoOn, Phase::Held) => Phase::Flowing,
            (Side::Guest, Word::GoOn, Phase::Stopping) if !self.late => {
                self.late = true;
                Phase::Stopping
            }
            (Side::Guest, Word::Begin, Phase::Held) => Phase::Ending,
            (Side::Host, Word::Held, Phase::Waiting) => Phase::Held,
            (Side::Host, Word::Held, phase) if self.late => {
                self.late = false;
                phase
            }
            _ => return None,
        };
        // What waited to be written does not see what was read.
        self.wake();
        Some(())
    }

    /// Tells whether the multiplexer may write, in the middle of a frame or before one.
    fn flows(&self, within_frame: bool) -> bool {
        match self.phase {
            Phase::Flowing => true,
            Phase::Stopping => within_frame,
            _ => false,
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What a wire and its handles share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tells how the phase changed.
    phase: watch::Sender<Phase>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-changed under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.phase.send_replace(state.phase);
        result
    }
}

/// A handle of a wire, from which it is brought to rest.
#[derive(Debug, Clone)]
pub(super) struct Control(Arc<Shared>);

/// The silence of a channel: no byte travels either way before it is dropped.
#[derive(Debug)]
#[must_use = "the channel goes on when this is dropped"]
pub struct Hold(Arc<Shared>);

impl Control {
    /// Brings both halves to rest. See [`super::Channel::hold`].
    pub(super) async fn hold(&self) -> io::Result<Hold> {
        let begun = self.0.change(State::stop);
        begun.ok_or(io::ErrorKind::ResourceBusy)?;
        let hold = Hold(self.0.clone());
        let mut phase = self.0.phase.subscribe();
        // An error says that the wire is gone.
        let held = phase.wait_for(|phase| *phase == Phase::Held).await;
        held.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(hold)
    }

    /// Tells whether another host has begun a session of its own with this guest.
    pub(super) fn was_taken_over(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Ending | Phase::Over)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.change(State::release);
    }
}

/// Begins a session with a guest that was saved while its channel was held. To be called before a channel is
/// started on the stream, and under a time limit.
///
/// Not cancel safe: a future dropped half-way leaves the stream in the middle of a frame.
///
/// # Errors
///
/// `UnexpectedEof` when the other side is gone, `InvalidData` when it was not held.
#[cfg(any(target_os = "linux", test))]
pub(crate) async fn take_over(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(&Word::Begin.frame()).await?;
    stream.flush().await?;
    let mut frame = [0; HEADER];
    stream.read_exact(&mut frame).await?;
    match Word::of(&frame) {
        Some(Word::Begun) => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Where frames begin in what is written.
#[derive(Debug, Default)]
struct Outbound {
    header: [u8; HEADER],
    /// How much of a header has been written.
    known: usize,
    /// How much of a body is to come.
    body: usize,
}

impl Outbound {
    fn within_frame(&self) -> bool {
        self.known > 0 || self.body > 0
    }

    /// How much may be written before the present frame may have ended.
    fn rest(&self) -> usize {
        match self.body {
            0 => HEADER - self.known,
            body => body,
        }
    }

    fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = self.rest().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            bytes = later;
            if self.body > 0 {
                self.body -= count;
                continue;
            }
            self.header[self.known..self.known + count].copy_from_slice(now);
            self.known += count;
            if self.known == HEADER {
                self.known = 0;
                self.body = body_of(&self.header);
            }
        }
    }
}

/// Returns how long the body is that follows a header.
fn body_of(header: &[u8; HEADER]) -> usize {
    let &[_, kind, _, _, _, _, _, _, l0, l1, l2, l3] = header;
    match kind {
        DATA => u32::from_be_bytes([l0, l1, l2, l3]) as usize,
        _ => 0,
    }
}

/// What was read and not passed on yet.
#[derive(Debug, Default)]
struct Inbound {
    buffer: Vec<u8>,
    taken: usize,
    /// How much of the present frame is to be passed on.
    frame: usize,
}

impl Inbound {
    fn waiting(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
    }
}

/// A byte stream that carries frames and can be brought to rest.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    shared: Arc<Shared>,
    inbound: Inbound,
    outbound: Outbound,
    /// Whole frames, and the beginning of one, that are written when it goes on.
    backlog: Vec<u8>,
    /// How much of a word has been written.
    said: usize,
    /// Whether a word has been written and not been flushed.
    flushing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, side: Side) -> (Self, Control) {
        let state = State {
            side,
            phase: Phase::Flowing,
            late: false,
            speaking: None,
            waker: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            phase: watch::Sender::new(Phase::Flowing),
        });
        let wire = Self {
            stream,
            shared: shared.clone(),
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            backlog: Vec::new(),
            said: 0,
            flushing: false,
        };
        (wire, Control(shared))
    }

    /// Says what is due, once no frame is under way, and remembers whom to wake when something becomes due.
    fn poll_say(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.flushing {
                ready!(Pin::new(&mut self.stream).poll_flush(context))?;
                self.flushing = false;
            }
            let due = {
                let mut state = self.shared.lock();
                state.waker = Some(context.waker().clone());
                let due = state.due().filter(|_| !self.outbound.within_frame());
                state.speaking = due;
                due
            };
            let Some(word) = due else {
                return self.poll_catch_up(context);
            };
            let frame = word.frame();
            while self.said < HEADER {
                let rest = &frame[self.said..];
                match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.said += count,
                }
            }
            (self.said, self.flushing) = (0, true);
            self.shared.change(|state| state.said(word));
        }
    }

    /// Writes what had to wait, as far as it may be written now.
    fn poll_catch_up(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.backlog.is_empty() && self.flows() {
            let most = self.backlog.len().min(self.at_once());
            let piece = &self.backlog[..most];
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, piece))?;
            self.outbound.wrote(&self.backlog[..count]);
            self.backlog.drain(..count);
            self.flushing = true;
        }
        if self.flushing {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    fn flows(&self) -> bool {
        self.shared.lock().flows(self.outbound.within_frame())
    }

    /// How much may be written at once: the present frame only, when something is to be said after it.
    fn at_once(&self) -> usize {
        match self.phase() {
            Phase::Flowing => usize::MAX,
            _ => self.outbound.rest(),
        }
    }

    fn phase(&self) -> Phase {
        self.shared.lock().phase
    }

    /// Reads until a whole header waits; `false` where the stream ends before it.
    fn poll_header(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.inbound.waiting().len() < HEADER {
            let mut block = [0; READ_BUFFER];
            let mut block = ReadBuf::new(&mut block);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut block))?;
            if block.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.inbound.buffer.extend_from_slice(block.filled());
        }
        Poll::Ready(Ok(true))
    }

    /// Passes on what belongs to the present frame.
    fn poll_pass(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wanted = self.inbound.frame.min(buffer.remaining());
        let waiting = self.inbound.waiting().len().min(wanted);
        let passed = if waiting > 0 {
            buffer.put_slice(&self.inbound.waiting()[..waiting]);
            self.inbound.take(waiting);
            waiting
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(wanted));
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
            let read = part.filled().len();
            buffer.advance(read);
            read
        };
        self.inbound.frame -= passed;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            // What cannot be written yet does not keep from reading.
            if let Poll::Ready(said) = self.poll_say(context) {
                said?;
            }
            match self.phase() {
                Phase::Over if !self.flushing => return Poll::Ready(Ok(())),
                Phase::Over | Phase::Ending => return Poll::Pending,
                _ => {}
            }
            if self.inbound.frame > 0 {
                return self.poll_pass(context, buffer);
            }
            if !ready!(self.poll_header(context))? {
                // What there is of a header is passed on, and breaks the framing above.
                self.inbound.frame = self.inbound.waiting().len();
                match self.inbound.frame {
                    0 => return Poll::Ready(Ok(())),
                    _ => continue,
                }
            }
            let header = self.inbound.waiting().first_chunk();
            let header = *header.expect("a whole header waits");
            match Word::of(&header) {
                Some(word) => {
                    self.inbound.take(HEADER);
                    let turn = self.shared.change(|state| state.heard(word));
                    turn.ok_or(io::ErrorKind::InvalidData)?;
                }
                None => self.inbound.frame = HEADER.saturating_add(body_of(&header)),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_say(context))?;
        let phase = self.phase();
        if matches!(phase, Phase::Ending | Phase::Over) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.backlog.is_empty() || !self.flows() {
            let room = BACKLOG.saturating_sub(self.backlog.len());
            let taken = bytes.len().min(room);
            if taken == 0 || phase == Phase::Held || self.shared.lock().side == Side::Guest {
                // Woken by who changes the phase.
                return Poll::Pending;
            }
            self.backlog.extend_from_slice(&bytes[..taken]);
            return Poll::Ready(Ok(taken));
        }
        let most = bytes.len().min(self.at_once());
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, &bytes[..most]))?;
        self.outbound.wrote(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.phase() {
            // The stream is the next session's.
            Phase::Ending | Phase::Over => Poll::Ready(Ok(())),
            _ => Pin::new(&mut self.stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Channel, Incoming};
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pair(buffer: usize) -> ((Channel, Incoming), (Channel, Incoming)) {
        let (host, guest) = tokio::io::duplex(buffer);
        (
            Channel::start(Box::new(host), Side::Host),
            Channel::start(Box::new(guest), Side::Guest),
        )
    }

    async fn hold(channel: &Channel) -> Hold {
        let held = tokio::time::timeout(PATIENCE, channel.hold()).await;
        held.expect("both sides come to rest").unwrap()
    }

    /// Reads up to the next word, over the frames of a multiplexer that has no stream.
    async fn heard(stream: &mut (impl AsyncRead + Unpin)) -> Word {
        let mut frame = [0; HEADER];
        loop {
            stream.read_exact(&mut frame).await.unwrap();
            if let Some(word) = Word::of(&frame) {
                return word;
            }
            assert_eq!(body_of(&frame), 0);
        }
    }

    #[tokio::test]
    async fn r12_nothing_travels_while_it_is_held_and_nothing_is_lost() {
        let ((host, _keep), (guest, mut from_host)) = pair(777);
        let mut there = host.open().await.unwrap();
        there.write_all(b"!").await.unwrap();
        let mut here = from_host.next().await.unwrap();
        assert_eq!(here.read_u8().await.unwrap(), b'!');
        let (mut from_here, to_there) = tokio::io::split(here);
        drop(to_there);
        let mut back = guest.open().await.unwrap();
        let both = async {
            let data: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
            let mut got = vec![0; data.len()];
            let send = async { there.write_all(&data).await.unwrap() };
            let receive = async { from_here.read_exact(&mut got).await.unwrap() };
            tokio::join!(send, receive);
            assert!(got == data, "what was sent is what came");
        };
        let interrupted = async {
            for _ in 0..50 {
                let held = hold(&host).await;
                // Nobody says anything; it goes on all the same.
                tokio::task::yield_now().await;
                drop(held);
                tokio::task::yield_now().await;
            }
        };
        let ((), ()) = tokio::join!(both, interrupted);
        let held = hold(&host).await;
        back.write_all(b"late").await.unwrap();
        let mut incoming = _keep;
        let early = tokio::time::timeout(Duration::from_millis(50), incoming.next()).await;
        assert!(early.is_err(), "the wire was not at rest");
        assert!(host.hold().await.is_err(), "it is held once");
        drop(held);
        let mut late = incoming.next().await.unwrap();
        let mut text = [0; 4];
        late.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"late");
    }

    #[tokio::test]
    async fn r12_a_copy_of_a_held_guest_hears_another_host() {
        let (mut host, guest) = tokio::io::duplex(64 * 1024);
        let (channel, mut incoming) = Channel::start(Box::new(guest), Side::Guest);
        // A host that writes by hand what a channel would: half of what is held is the guest's.
        host.write_all(&Word::Hold.frame()).await.unwrap();
        assert_eq!(heard(&mut host).await, Word::Held);
        let mut unsaid = channel.open().await.unwrap();
        unsaid.write_all(b"of the old session").await.unwrap();
        take_over(&mut host).await.unwrap();
        assert!(incoming.next().await.is_none());
        assert!(channel.was_taken_over() && unsaid.write_all(b"x").await.is_err());
        let mut rest = [0; 1];
        let said = tokio::time::timeout(Duration::from_millis(50), host.read(&mut rest)).await;
        // The test's stream ends with the channel that held it; a port does not.
        assert!(matches!(said, Err(_) | Ok(Ok(0))), "{said:?}");
    }

    #[tokio::test]
    async fn r12_what_the_guest_asks_last_does_not_keep_it_from_being_heard() {
        let (host, mut guest) = tokio::io::duplex(64 * 1024);
        let (channel, _keep) = Channel::start(Box::new(host), Side::Host);
        let answer = async {
            assert_eq!(heard(&mut guest).await, Word::Hold);
            // A ping asks for a pong, which may not be sent any more; the word comes behind it.
            for number in 0..10 {
                let ping = [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, number];
                guest.write_all(&ping).await.unwrap();
            }
            guest.write_all(&Word::Held.frame()).await.unwrap();
        };
        let (held, ()) = tokio::join!(hold(&channel), answer);
        drop(held);
        assert_eq!(heard(&mut guest).await, Word::GoOn);
        for number in 0..10 {
            let mut pong = [0; HEADER];
            // It may ask, too.
            while pong[3] != 2 {
                guest.read_exact(&mut pong).await.unwrap();
            }
            assert_eq!(pong, [0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, number]);
        }
    }

    #[tokio::test]
    async fn r13_a_guest_that_does_not_answer_holds_up_nobody() {
        let (host, mut guest) = tokio::io::duplex(64 * 1024);
        let (channel, _keep) = Channel::start(Box::new(host), Side::Host);
        let waited = tokio::time::timeout(Duration::from_millis(50), channel.hold()).await;
        assert!(waited.is_err());
        assert_eq!(heard(&mut guest).await, Word::Hold);
        assert_eq!(heard(&mut guest).await, Word::GoOn);
        // It may be asked again once the guest has answered.
        assert!(channel.hold().await.is_err());
        guest.write_all(&Word::Held.frame()).await.unwrap();
        let again = async {
            while channel.hold().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        let answer = async {
            assert_eq!(heard(&mut guest).await, Word::Hold);
            guest.write_all(&Word::Held.frame()).await.unwrap();
            assert_eq!(heard(&mut guest).await, Word::GoOn);
        };
        let both = async { tokio::join!(again, answer) };
        tokio::time::timeout(PATIENCE, both).await.unwrap();
    }

    #[tokio::test]
    async fn r12_words_out_of_turn_end_the_session() {
        for word in Word::ALL {
            let (host, mut guest) = tokio::io::duplex(64 * 1024);
            let (channel, _keep) = Channel::start(Box::new(host), Side::Host);
            guest.write_all(&word.frame()).await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, channel.ended()).await;
            ended.unwrap_or_else(|_| panic!("{word:?} was taken"));
        }
    }

    proptest! {
        /// Where frames begin does not depend on how they are cut.
        #[test]
        fn frames_are_followed_through_any_cuts(
            bodies in prop::collection::vec((0u8..4, 0usize..300), 1..20),
            cuts in prop::collection::vec(1usize..40, 1..200),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (kind, length) in bodies {
                let mut header = [0; HEADER];
                header[1] = kind;
                header[8..].copy_from_slice(&(length as u32).to_be_bytes());
                bytes.extend_from_slice(&header);
                bytes.resize(bytes.len() + body_of(&header), 0xff);
                ends.push(bytes.len());
            }
            let (mut outbound, mut position) = (Outbound::default(), 0);
            for cut in cuts.iter().cycle() {
                prop_assert_eq!(outbound.within_frame(), !ends.contains(&position));
                if position == bytes.len() {
                    break;
                }
                let end = bytes.len().min(position + cut);
                outbound.wrote(&bytes[position..end]);
                position = end;
            }
        }
    }
}
