//! How the tool fails: one line on standard error, and one exit status.

use std::error::Error as StdError;
use std::process::ExitCode;

use sandbox_core::{Error, ErrorKind};

/// The tool itself failed.
pub(crate) const FAILED: u8 = 125;
/// The command's time ran out, as `timeout` says it.
pub(crate) const TIMED_OUT: u8 = 124;
/// The command cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command is not there.
pub(crate) const NOT_FOUND: u8 = 127;
/// Added to the number of a signal that ended something.
pub(crate) const BY_SIGNAL: u8 = 128;

/// Why the tool ends with an exit status of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: Option<String>,
}

impl Failure {
    /// A failure to do something, in words that follow "cannot", with its reason.
    pub(crate) fn new(operation: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self {
            status: FAILED,
            message: Some(format!("cannot {operation}: {reason}")),
        }
    }

    /// A failure of a library.
    pub(crate) fn from_error(error: &(dyn StdError + 'static)) -> Self {
        Self {
            status: FAILED,
            message: Some(chain(error)),
        }
    }

    /// An end that needs no words: a signal, or a reader that went away.
    pub(crate) fn silent(status: u8) -> Self {
        Self {
            status,
            message: None,
        }
    }

    /// An end by a signal.
    pub(crate) fn signal(number: i32) -> Self {
        Self::silent(by_signal(number))
    }

    /// A command that could not be started.
    pub(crate) fn spawn(error: &Error) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => NOT_FOUND,
            ErrorKind::PermissionDenied => NOT_EXECUTABLE,
            _ => FAILED,
        };
        Self {
            status,
            message: Some(chain(error)),
        }
    }

    /// Says it, and returns the exit status.
    pub(crate) fn tell(&self) -> ExitCode {
        if let Some(message) = &self.message {
            warn(message);
        }
        ExitCode::from(self.status)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(&error)
    }
}

/// Prints a line of the tool's own on standard error.
pub(crate) fn warn(message: &str) {
    anstream::eprintln!("sandbox: {}", one_line(message));
}

/// Returns the exit status of what a signal ended.
pub(crate) fn by_signal(number: i32) -> u8 {
    BY_SIGNAL.saturating_add(u8::try_from(number).unwrap_or(0))
}

/// Returns an error and what caused it, each said once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// Makes one line of a message; what a guest wrote into it cannot act on the terminal.
pub(crate) fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).collect();
    lines.join("; ").chars().flat_map(harmless).collect()
}

fn harmless(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let cause = std::io::Error::other("the disk is on fire");
        let error = Error::io("write the image", cause).with_detail("the disk is on fire");
        assert_eq!(chain(&error), "cannot write the image: the disk is on fire");
    }

    #[test]
    fn a_message_is_one_line_and_harmless() {
        assert_eq!(
            one_line("first\n  second\u{1b}[2J"),
            "first; second\\u{1b}[2J"
        );
    }

    #[test]
    fn what_is_not_there_is_127_and_what_cannot_be_run_126() {
        let status = |kind| Failure::spawn(&Error::new(kind, "start a command")).status;
        assert_eq!(status(ErrorKind::NotFound), 127);
        assert_eq!(status(ErrorKind::PermissionDenied), 126);
        assert_eq!(status(ErrorKind::Disconnected), 125);
    }
}
