//! A secret's value, and where it comes from.
//!
//! A value lives in one allocation, is overwritten when the last holder drops it, and shows itself nowhere: not
//! in `Debug`, not in errors, and not in serialized form, which only references have. What leaves this process
//! with a request passes through buffers of the HTTP and TLS libraries, which are freed but not overwritten.

use std::{fmt, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};
use zeroize::{Zeroize, Zeroizing};

use crate::Error;

/// The longest value in bytes: most origins accept no longer header line.
pub const MAX_SECRET: usize = 16 * 1024;
/// How long a command may take to print its secret, a person's answer to a prompt included.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A secret's value. Cheap to clone; overwritten when the last clone is dropped.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes a value.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is empty, longer than [`MAX_SECRET`], begins or ends with white space, or holds a control
    /// character: a line end in a header would begin another one.
    pub fn new(value: impl Into<Vec<u8>>) -> Result<Self, Error> {
        let value = Zeroizing::new(value.into());
        match flaw(&value) {
            None => Ok(Self(Arc::new(value))),
            Some(what) => Err(Error::invalid("use a secret", what)),
        }
    }

    /// Returns the value; for putting it into a request and for nothing else.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

fn flaw(value: &[u8]) -> Option<&'static str> {
    match value {
        [] => Some("it is empty"),
        _ if value.len() > MAX_SECRET => Some("it is longer than 16 KiB"),
        _ if value.iter().any(u8::is_ascii_control) => {
            Some("it holds a line end, a NUL or another control character")
        }
        [b' ', ..] | [.., b' '] => Some("it begins or ends with white space"),
        _ => None,
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a secret's value is taken from.
///
/// Every form but [`Source::Value`] is a reference that can be written down; serializing a value fails.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Source {
    /// The value itself.
    #[serde(skip)]
    Value(Secret),
    /// A variable of this process's environment.
    Environment(String),
    /// A file of the host. One line end at its end is not part of the value.
    File(PathBuf),
    /// What a program prints: its path or name and its arguments, run without a shell, within a minute. One line
    /// end at its end is not part of the value; what it prints as errors is not kept.
    Command(Vec<String>),
    /// An entry of the system's keyring (feature `keyring`): of the Secret Service on Linux, of the login keychain on
    /// macOS, of the Credential Manager on Windows. A locked one may ask the person at the screen, within a minute.
    /// One line end at its end is not part of the value.
    Keyring {
        /// The service it is stored for.
        service: String,
        /// The account it is stored for.
        account: String,
    },
}

impl Source {
    /// Tells whether it can be written down.
    pub fn is_reference(&self) -> bool {
        !matches!(self, Self::Value(_))
    }

    /// Fetches the value.
    ///
    /// Dropping the future ends a command that still runs.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none, `TimedOut` for a slow command or keyring, `Invalid` as [`Secret::new`] has it
    /// and for a keyring with several such entries, `PermissionDenied` for one that stays locked, `Unsupported` for
    /// one that this build or host does not have. None of them holds the value.
    pub async fn load(&self) -> Result<Secret, Error> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::Environment(name) => from_environment(name),
            Self::File(path) => from_file(path.clone()).await,
            Self::Command(arguments) => from_command(arguments).await,
            Self::Keyring { service, account } => {
                super::keyring::load(service.clone(), account.clone()).await
            }
        }
    }
}

fn from_environment(name: &str) -> Result<Secret, Error> {
    let operation = || format!("read a secret from the variable {}", name.escape_debug());
    // `var_os` panics on neither, but no variable has such a name.
    let value = std::env::var_os(name).filter(|_| !name.is_empty());
    let value =
        value.ok_or_else(|| Error::new(ErrorKind::NotFound, operation(), "it is not set"))?;
    let value = value.into_string().map_err(|mut value| {
        value.clear();
        Error::invalid(operation(), "it is not UTF-8")
    })?;
    checked(value.into_bytes(), operation)
}

async fn from_file(path: PathBuf) -> Result<Secret, Error> {
    let operation = format!("read a secret from {}", path.display());
    let reading = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut value = bounded();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, LIMIT), &mut value)?;
        Ok(value)
    });
    let read = reading.await.map_err(std::io::Error::other).flatten();
    let value = read.map_err(|error| Error::io(operation.clone(), error))?;
    checked(trimmed(value), || operation)
}

async fn from_command(arguments: &[String]) -> Result<Secret, Error> {
    let [program, rest @ ..] = arguments else {
        return Err(Error::invalid(
            "run a command for a secret",
            "it names no program",
        ));
    };
    let operation = || format!("get a secret from the program {}", program.escape_debug());
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::io(operation(), error))?;
    let stdout = child.stdout.take().expect("it was asked to be a pipe");
    let printed = async {
        let mut value = bounded();
        stdout.take(LIMIT).read_to_end(&mut value).await?;
        // A program that prints on without end is told so by its closed pipe.
        Ok::<_, std::io::Error>((value, child.wait().await?))
    };
    let (value, status) = timeout(COMMAND_TIMEOUT, printed)
        .await
        .map_err(|_| {
            Error::new(
                ErrorKind::TimedOut,
                operation(),
                "it took more than a minute",
            )
        })?
        .map_err(|error| Error::io(operation(), error))?;
    if !status.success() && value.len() < LIMIT as usize {
        return Err(Error::new(
            ErrorKind::NotFound,
            operation(),
            format!("it failed: {status}"),
        ));
    }
    checked(trimmed(value), operation)
}

/// One byte more than a value, and its line end, may have.
const LIMIT: u64 = MAX_SECRET as u64 + 3;

/// Room for all that is read, so that growing leaves no copies behind.
fn bounded() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(LIMIT as usize + 32))
}

/// Copies the value without one line end at its end; the original is overwritten.
pub(super) fn trimmed(value: Zeroizing<Vec<u8>>) -> Vec<u8> {
    let line = value.strip_suffix(b"\n").unwrap_or(&value);
    line.strip_suffix(b"\r").unwrap_or(line).to_vec()
}

pub(super) fn checked(
    mut value: Vec<u8>,
    operation: impl FnOnce() -> String,
) -> Result<Secret, Error> {
    match flaw(&value) {
        None => Secret::new(value),
        Some(what) => {
            value.zeroize();
            Err(Error::invalid(operation(), what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "correct-horse-battery";

    fn kind(result: Result<Secret, Error>) -> ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn e69_line_ends_and_control_characters_are_refused() {
        for value in ["", "a\r\nX: y", "a\n", "a\0b", "a\tb", " a", "a ", "\x7f"] {
            assert_eq!(kind(Secret::new(value)), ErrorKind::Invalid, "{value:?}");
        }
        assert_eq!(
            kind(Secret::new(vec![b'a'; MAX_SECRET + 1])),
            ErrorKind::Invalid
        );
        assert_eq!(Secret::new(VALUE).unwrap().expose(), VALUE.as_bytes());
    }

    #[test]
    fn a_value_shows_itself_nowhere() {
        let source = Source::Value(Secret::new(VALUE).unwrap());
        assert!(!format!("{source:?}").contains("horse"));
        assert!(
            serde_json::to_string(&source).is_err(),
            "cannot be written down"
        );
        let error = Secret::new(format!("{VALUE}\n")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("horse"));
    }

    #[test]
    fn references_survive_being_written_down() {
        let source = Source::Command(vec!["pass".into(), "show".into()]);
        let text = serde_json::to_string(&source).unwrap();
        assert_eq!(text, r#"{"command":["pass","show"]}"#);
        let read: Source = serde_json::from_str(&text).unwrap();
        assert!(matches!(read, Source::Command(arguments) if arguments.len() == 2));
    }

    #[tokio::test]
    async fn a_file_is_read_without_its_last_line_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, format!("{VALUE}\r\n").as_bytes()).unwrap();
        let source = Source::File(file.path().to_owned());
        assert_eq!(source.load().await.unwrap().expose(), VALUE.as_bytes());
        std::io::Write::write_all(&mut file, b"second line").unwrap();
        let error = source.load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!format!("{error:?}").contains("horse"));
        assert_eq!(
            kind(Source::File("/nonexistent".into()).load().await),
            ErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn a_variable_is_read_and_a_missing_one_is_named() {
        let path = std::env::var("PATH").unwrap();
        let source = Source::Environment("PATH".into());
        assert_eq!(source.load().await.unwrap().expose(), path.as_bytes());
        let missing = Source::Environment("SANDBOX_NO_SUCH_VARIABLE".into())
            .load()
            .await;
        assert!(
            missing
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("SANDBOX_NO_SUCH_VARIABLE")
        );
        assert_eq!(kind(missing), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_command_is_run_without_a_shell_and_bounded() {
        let command = |arguments: &[&str]| {
            Source::Command(arguments.iter().map(ToString::to_string).collect())
        };
        let printed = command(&["printf", "%s\\n", "$HOME;x"]).load().await;
        assert_eq!(printed.unwrap().expose(), b"$HOME;x");
        assert_eq!(kind(command(&["false"]).load().await), ErrorKind::NotFound);
        assert_eq!(
            kind(command(&["/nonexistent"]).load().await),
            ErrorKind::NotFound
        );
        assert_eq!(kind(command(&[]).load().await), ErrorKind::Invalid);
        assert_eq!(
            kind(command(&["yes", "aaaa"]).load().await),
            ErrorKind::Invalid,
            "endless"
        );
    }
}
