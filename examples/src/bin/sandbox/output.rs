//! What goes to standard output for people and programs: whole texts, with colours only where a person
//! reads.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Effects, Style};

use crate::failure::{Failure, by_signal};

/// The signal of a pipe without a reader.
const SIGPIPE: i32 = 13;

/// Marks what is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Marks what is not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Marks what needs no attention.
pub(crate) const QUIET: Style = Style::new().effects(Effects::DIMMED);

/// Prints a whole text.
pub(crate) fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout
        .write_all(text)
        .and_then(|()| stdout.flush())
        .map_err(|error| unwritten(&error))
}

/// Prints a value as JSON, indented.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(format!("{value:#}\n").as_bytes())
}

/// Returns what it means that standard output could not be written to.
pub(crate) fn unwritten(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::silent(by_signal(SIGPIPE)),
        _ => Failure::new("write to standard output", error),
    }
}

/// Styles a piece of text.
pub(crate) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Tells whether a person reads standard error.
pub(crate) fn is_for_a_person() -> bool {
    std::io::stderr().is_terminal()
}
