//! What is at fault where an allowed target was not reached, in words of our own: what a far end says is not ours to
//! repeat.

use std::{borrow::Cow, fmt, io};

/// Why a target cannot be spoken to: a word for programs, a sentence for people. Travels inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: &'static str,
    pub(crate) text: Cow<'static, str>,
}

impl Fault {
    pub(crate) fn new(reason: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// Returns the fault that an error carries.
    pub(crate) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
