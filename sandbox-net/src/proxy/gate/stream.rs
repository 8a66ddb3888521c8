//! The gate on a stream: its reader gets what passed, and nothing else.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use sandbox_base::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Answering, Gate, Side, Stopped};

/// What hyper gets in place of a head that was stopped: the request by which the service is called, to answer
/// what is wrong.
const STAND_IN: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

/// A stream with a gate before its reader.
#[derive(Debug)]
pub(in crate::proxy) struct Gated<S> {
    stream: S,
    gate: Gate,
    stopped: Stopped,
    /// What passed the gate and was not read yet, from `at` on.
    passed: Vec<u8>,
    at: usize,
}

impl<S> Gated<S> {
    /// Puts a gate on a client's stream; what it finds wrong is left in `stopped`.
    pub(in crate::proxy) fn requests(stream: S, limit: usize, stopped: Stopped) -> Self {
        Self::new(stream, Gate::for_requests(limit), stopped)
    }

    /// Puts a gate on an origin's stream; what it finds wrong is left in `exchange`.
    pub(in crate::proxy) fn answers(stream: S, limit: usize, exchange: Arc<Answering>) -> Self {
        Self::new(
            stream,
            Gate::for_answers(limit, exchange),
            Stopped::default(),
        )
    }

    fn new(stream: S, gate: Gate, stopped: Stopped) -> Self {
        Self {
            stream,
            gate,
            stopped,
            passed: Vec::new(),
            at: 0,
        }
    }

    /// Takes the gate off, with what passed it and was not read. Only for a gate that is open.
    pub(in crate::proxy) fn into_parts(mut self) -> (S, Vec<u8>) {
        debug_assert!(self.gate.is_open());
        (self.stream, self.passed.split_off(self.at))
    }

    /// Gives out what has passed, as much as fits. Returns whether there was anything.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.passed.is_empty() {
            return false;
        }
        let rest = &self.passed[self.at..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.at += count;
        if self.at == self.passed.len() {
            self.passed = Vec::new();
            self.at = 0;
        }
        count > 0
    }

    /// Sees to what was read into the buffer behind its first `before` bytes, so that only what passes stays.
    fn admit(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let wrong = if self.gate.holds_nothing() {
            let checked = self.gate.pass(&buffer.filled()[before..]);
            buffer.set_filled(before + checked.count);
            checked.wrong
        } else {
            let pushed = self.gate.push(&buffer.filled()[before..], &mut self.passed);
            buffer.set_filled(before);
            pushed.err()
        };
        if let Some(what) = wrong {
            self.stop(what);
        }
    }

    /// Notes what is wrong. Nothing is read after it.
    fn stop(&mut self, what: &'static str) {
        self.stopped.get_or_init(|| what);
        match &self.gate.side {
            Side::Answers { exchange, .. } => drop(exchange.wrong.set(what)),
            Side::Requests if self.gate.is_within_body() => {}
            Side::Requests => self.passed.extend_from_slice(STAND_IN),
        }
    }

    /// What a reader gets once everything that passed before the fault is read.
    fn after_stop(&self, what: &'static str) -> Poll<io::Result<()>> {
        match self.gate.side {
            // Not the end of the stream: hyper would close before the answer is written. The answer itself ends
            // the connection.
            Side::Requests if !self.gate.is_within_body() => Poll::Pending,
            _ => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what))),
        }
    }
}

impl<S: ByteStream> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            if buffer.remaining() == 0 || this.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            if let Some(what) = this.stopped.get() {
                return this.after_stop(what);
            }
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            if this.gate.is_open() || buffer.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.admit(buffer, before);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: ByteStream> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
