//! What goes to standard output for people and programs: whole texts, with colours only where a person
//! reads.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Effects, Style};

use crate::failure::{Failure, by_signal};

/// The signal of a pipe without a reader.
const SIGPIPE: i32 = 13;

/// From so many lines on a pager is worth it.
const PAGED: usize = 24;

/// Marks what is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Marks what is not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Heads a part.
pub(crate) const HEAD: Style = Style::new().effects(Effects::BOLD);
/// Is as it is.
pub(crate) const PLAIN: Style = Style::new();
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

/// Prints a whole text, through a pager where a person reads it and it may be long.
pub(crate) fn page(text: &str) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() || text.lines().count() < PAGED {
        return print(text.as_bytes());
    }
    let colours = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    let mut shown = text.to_owned();
    if !colours {
        shown = anstream::adapter::strip_str(text).to_string();
    }
    let pager = std::env::var("PAGER")
        .ok()
        .filter(|pager| !pager.is_empty());
    let child = std::process::Command::new("sh")
        .args(["-c", pager.as_deref().unwrap_or("less")])
        .env(
            "LESS",
            std::env::var("LESS").unwrap_or_else(|_| "FRX".into()),
        )
        .stdin(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        return print(text.as_bytes());
    };
    // A reader that has seen enough closes the pipe.
    if let Some(mut stdin) = child.stdin.take() {
        drop(stdin.write_all(shown.as_bytes()));
    }
    match child.wait() {
        // The shell's way to say that there is no such pager.
        Ok(status) if status.code() == Some(127) => print(text.as_bytes()),
        _ => Ok(()),
    }
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
