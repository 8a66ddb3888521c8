//! Bounds on what one sandbox can make its proxy hold.

use std::time::Duration;

/// The bounds of one [`Proxy`](super::Proxy), each with its reason.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Connections from the sandbox at a time; one more is answered 503 and closed. Default 1,024: a package
    /// manager opens dozens, and with the upstream side it stays below common limits of open files.
    pub connections: usize,
    /// Connections to origins of plain HTTP that wait for another request; 0 makes a new one for each. Default 32:
    /// clients of plain HTTP talk to a host or two, over six connections each.
    pub waiting: usize,
    /// Bytes of a request's head; a longer one is answered 431 and closed. At least 8,192. Default 64 KiB: room
    /// for large cookies, and what most origins accept is less.
    pub head_bytes: usize,
    /// Header lines of a request; more are answered 431 and closed. Default 100, as most servers have it.
    pub headers: usize,
    /// Time for a request's head to arrive, idle keep-alive included. Default 30 s.
    pub head_timeout: Duration,
    /// Time for the TLS ClientHello to arrive once a tunnel is open. Default 10 s.
    pub hello_timeout: Duration,
    /// Time for a connection to be made, over all addresses. Default 10 s.
    pub connect_timeout: Duration,
    /// Time without a byte in either direction after which a tunnel or an exchange is ended; noticed within
    /// twice this time. Default 15 min: a model may think for long before its first byte.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            waiting: 32,
            head_bytes: 64 * 1024,
            headers: 100,
            head_timeout: Duration::from_secs(30),
            hello_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
        }
    }
}

impl Limits {
    /// Sets [`connections`](Self::connections).
    #[must_use]
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Sets [`waiting`](Self::waiting).
    #[must_use]
    pub fn with_waiting(mut self, connections: usize) -> Self {
        self.waiting = connections;
        self
    }

    /// Sets [`head_bytes`](Self::head_bytes).
    #[must_use]
    pub fn with_head_bytes(mut self, bytes: usize) -> Self {
        self.head_bytes = bytes;
        self
    }

    /// Sets [`headers`](Self::headers).
    #[must_use]
    pub fn with_headers(mut self, headers: usize) -> Self {
        self.headers = headers;
        self
    }

    /// Sets [`head_timeout`](Self::head_timeout).
    #[must_use]
    pub fn with_head_timeout(mut self, timeout: Duration) -> Self {
        self.head_timeout = timeout;
        self
    }

    /// Sets [`hello_timeout`](Self::hello_timeout).
    #[must_use]
    pub fn with_hello_timeout(mut self, timeout: Duration) -> Self {
        self.hello_timeout = timeout;
        self
    }

    /// Sets [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets [`idle_timeout`](Self::idle_timeout).
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }
}
