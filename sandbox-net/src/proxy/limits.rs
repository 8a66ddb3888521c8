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
    /// Requests and tunnels in a second, of all connections together; those of five seconds may come at once, and
    /// one more is answered 429. 0 sets no bound. Default 1,000: far above what a package manager or a browser
    /// asks for, and a loop that has gone wild neither floods its origins nor the log.
    pub requests_per_second: u32,
    /// Lookups in a second of names that were not looked up within the last minute; those of ten seconds may come
    /// at once, one more waits for 5 s at most and is then denied as `busy`. 0 sets no bound. Default 50: names
    /// that a host allows by a wildcard can carry data out, and this bounds how much.
    pub lookups_per_second: u32,
    /// Bytes in a second, of both directions and all connections together; those of one second may pass at once,
    /// and then connections are slowed down. 0, the default, sets no bound: what is too much depends on the link.
    pub bytes_per_second: u64,
    /// How many bytes of a request's body have to come within [`body_timeout`](Self::body_timeout). 0 sets no
    /// bound. Default 1,024, which any link makes.
    pub body_bytes: u64,
    /// Time that the proxy waits for the next [`body_bytes`](Self::body_bytes) of a request's body, over HTTP/1; a
    /// body that takes longer is cut, and answered 408. Time in which the origin takes nothing does not count.
    /// Bodies over HTTP/2 are not bound, since streams of gRPC may be silent for long. Default 60 s: as other
    /// servers have it.
    pub body_timeout: Duration,
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
            requests_per_second: 1000,
            lookups_per_second: 50,
            bytes_per_second: 0,
            body_bytes: 1024,
            body_timeout: Duration::from_secs(60),
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

    /// Sets [`requests_per_second`](Self::requests_per_second).
    #[must_use]
    pub fn with_requests_per_second(mut self, requests: u32) -> Self {
        self.requests_per_second = requests;
        self
    }

    /// Sets [`lookups_per_second`](Self::lookups_per_second).
    #[must_use]
    pub fn with_lookups_per_second(mut self, lookups: u32) -> Self {
        self.lookups_per_second = lookups;
        self
    }

    /// Sets [`bytes_per_second`](Self::bytes_per_second).
    #[must_use]
    pub fn with_bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = bytes;
        self
    }

    /// Sets [`body_bytes`](Self::body_bytes) and [`body_timeout`](Self::body_timeout).
    #[must_use]
    pub fn with_body_rate(mut self, bytes: u64, timeout: Duration) -> Self {
        self.body_bytes = bytes;
        self.body_timeout = timeout;
        self
    }
}
