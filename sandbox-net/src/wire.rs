//! What the two halves say to each other about connections that programs made by themselves.
//!
//! Every stream begins with [`First`]. What follows it:
//!
//! | stream | guest to host | host to guest |
//! |---|---|---|
//! | `Names` | [`Lookup`], any number | [`Told`]: the ports first, then answers, and the ports again whenever the policy changes |
//! | `Connect` | nothing before `Admission`, then the program's bytes | [`Admission`], then the target's bytes |
//!
//! Messages are framed and bounded as [`sandbox_base::frame`] says.

use serde::{Deserialize, Serialize};

/// The longest message from the guest, in bytes: a name of 253 bytes, its lengths, a port.
pub(crate) const MAX_FROM_GUEST: usize = 300;
/// The longest message from the host, in bytes: as many ports as are ever named, or an answer with its name.
pub(crate) const MAX_FROM_HOST: usize = 1024;

/// The first message of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum First {
    /// The stream carries name lookups.
    Names,
    /// The stream is a connection.
    Connect {
        /// The name that was looked up, or the address that was dialled without a lookup, as text.
        host: String,
        /// The port that was dialled.
        port: u16,
    },
}

/// A program wants to know a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lookup {
    /// The name, in lower case and without its last dot.
    pub(crate) name: String,
}

/// What the host says on the stream of lookups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The ports to take connections on.
    Ports(Vec<u16>),
    /// The answer to a [`Lookup`].
    Answer {
        /// The name as it was asked for.
        name: String,
        /// What there is to say.
        answer: Answer,
    },
}

/// What the host knows of a name without having looked it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It may be connected to, on some port at least.
    Allowed,
    /// It may not.
    Denied,
    /// There were too many questions.
    Busy,
}

/// Whether a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Admission {
    /// It is: bytes may follow.
    Open,
    /// It is not, and the stream ends.
    Refused,
}
