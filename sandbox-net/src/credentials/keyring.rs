//! The system's keyring, behind a feature because it brings a D-Bus client along.
//!
//! | system | keyring | an entry is |
//! |---|---|---|
//! | Linux | the Secret Service (GNOME Keyring, KWallet, KeePassXC) on the session's bus | the one item with the attributes `service` and `username` |
//! | macOS | the user's login keychain | the generic password of a service and an account |
//! | Windows | the Credential Manager | the generic credential `account.service` |
//!
//! These are the names that the `keyring` libraries of Rust and Python use; `secret-tool store --label=… service S
//! username A` makes such an item. A locked keyring may ask the person at the screen, so a read has a time limit. No
//! keyring is kept: each read connects anew. Only reading is done; nothing is stored, nothing deleted.

use crate::{Error, credentials::Secret};
use sandbox_base::ErrorKind;

/// Fetches a value. One line end at its end is not part of it.
pub(super) async fn load(service: String, account: String) -> Result<Secret, Error> {
    let operation = {
        let (service, account) = (service.escape_debug(), account.escape_debug());
        format!("read the secret of {account} for {service} from the keyring")
    };
    let fault = match system::read(service, account).await {
        Ok(value) => return super::secret::checked(value, || operation),
        Err(fault) => fault,
    };
    Err(Error::new(fault.kind, operation, fault.reason))
}

/// Why nothing was read; never with a value.
struct Fault {
    kind: ErrorKind,
    reason: String,
}

impl Fault {
    fn new(kind: ErrorKind, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Self { kind, reason }
    }
}

/// How long a read may take, a person's answer to a prompt included.
#[cfg(all(
    feature = "keyring",
    any(target_os = "linux", target_os = "macos", windows)
))]
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(all(
    feature = "keyring",
    any(target_os = "linux", target_os = "macos", windows)
))]
fn late() -> Fault {
    Fault::new(ErrorKind::TimedOut, "it took more than a minute")
}

#[cfg(all(feature = "keyring", target_os = "linux"))]
mod system {
    use std::collections::HashMap;

    use sandbox_base::ErrorKind;
    use secret_service::{EncryptionType, Error, SecretService};
    use tokio::time::timeout;
    use zeroize::Zeroizing;

    use super::{super::secret::trimmed, Fault, LIMIT, late};

    /// Reads over a connection of its own, which is closed when the future is dropped.
    pub(super) async fn read(service: String, account: String) -> Result<Vec<u8>, Fault> {
        let reading = find(&service, &account);
        timeout(LIMIT, reading)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn find(service: &str, account: &str) -> Result<Vec<u8>, Fault> {
        // The value is encrypted for its way over the bus, which others may watch.
        let keyring = SecretService::connect(EncryptionType::Dh).await?;
        let attributes = HashMap::from([("service", service), ("username", account)]);
        let found = keyring.search_items(attributes).await?;
        let item = match (found.unlocked.as_slice(), found.locked.as_slice()) {
            ([item], []) => item,
            ([], [item]) => {
                keyring.unlock_all(&[item]).await?;
                item
            }
            ([], []) => return Err(Fault::new(ErrorKind::NotFound, "it holds no such entry")),
            _ => {
                let reason = "it holds more than one such entry";
                return Err(Fault::new(ErrorKind::Invalid, reason));
            }
        };
        Ok(trimmed(Zeroizing::new(item.get_secret().await?)))
    }

    impl From<Error> for Fault {
        fn from(error: Error) -> Self {
            // By its name alone, so that the bus's library is not a dependency of ours, too.
            let text = error.to_string();
            let nobody = ["DBus.Error.ServiceUnknown", "DBus.Error.NameHasNoOwner"];
            let kind = match &error {
                Error::Unavailable => ErrorKind::Unsupported,
                _ if nobody.iter().any(|name| text.contains(name)) => ErrorKind::Unsupported,
                Error::Locked | Error::Prompt | Error::PromptDisconnected => {
                    ErrorKind::PermissionDenied
                }
                Error::NoResult => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            };
            Self::new(kind, text)
        }
    }
}

#[cfg(all(feature = "keyring", any(target_os = "macos", windows)))]
mod system {
    use std::sync::Arc;

    #[cfg(target_os = "macos")]
    use apple_native_keyring_store::keychain::Store;
    use keyring_core::{Error, api::CredentialStoreApi};
    use sandbox_base::ErrorKind;
    use tokio::{sync::oneshot, time::timeout};
    #[cfg(windows)]
    use windows_native_keyring_store::Store;
    use zeroize::{Zeroize, Zeroizing};

    use super::{super::secret::trimmed, Fault, LIMIT, late};

    /// Reads on a thread of its own, which is left behind if the system never answers: one of the runtime's would
    /// keep it from ending.
    pub(super) async fn read(service: String, account: String) -> Result<Vec<u8>, Fault> {
        let (answer, answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("keyring".to_owned());
        let reading = move || {
            // Nobody waits any more: the value is overwritten.
            drop(answer.send(find(&service, &account)));
        };
        let started = thread.spawn(reading);
        started.map_err(|error| Fault::new(ErrorKind::Exhausted, error))?;
        match timeout(LIMIT, answered).await {
            Ok(Ok(value)) => value.map(trimmed),
            Ok(Err(_)) => Err(Fault::new(ErrorKind::Io, "reading it broke off")),
            Err(_) => Err(late()),
        }
    }

    fn find(service: &str, account: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let store: Arc<Store> = Store::new()?;
        let entry = store.build(service, account, None)?;
        Ok(Zeroizing::new(entry.get_password()?.into_bytes()))
    }

    impl From<Error> for Fault {
        fn from(error: Error) -> Self {
            let kind = match &error {
                Error::NoEntry => ErrorKind::NotFound,
                Error::NoStorageAccess(_) => ErrorKind::PermissionDenied,
                Error::NoDefaultStore | Error::NotSupportedByStore(_) => ErrorKind::Unsupported,
                Error::Ambiguous(_) | Error::Invalid(..) | Error::TooLong(..) => ErrorKind::Invalid,
                Error::BadEncoding(_) | Error::BadDataFormat(..) => ErrorKind::Invalid,
                _ => ErrorKind::Io,
            };
            let fault = Self::new(kind, &error);
            // These two hold the value; their message does not.
            if let Error::BadEncoding(mut value) | Error::BadDataFormat(mut value, _) = error {
                value.zeroize();
            }
            fault
        }
    }
}

#[cfg(not(all(
    feature = "keyring",
    any(target_os = "linux", target_os = "macos", windows)
)))]
mod system {
    use sandbox_base::ErrorKind;

    use super::Fault;

    pub(super) async fn read(_service: String, _account: String) -> Result<Vec<u8>, Fault> {
        let reason = if cfg!(feature = "keyring") {
            "there is no keyring on this system"
        } else {
            "this build has no keyring: enable the feature `keyring`"
        };
        Err(Fault::new(ErrorKind::Unsupported, reason))
    }
}

#[cfg(test)]
#[cfg(all(feature = "keyring", target_os = "linux"))]
mod tests;
