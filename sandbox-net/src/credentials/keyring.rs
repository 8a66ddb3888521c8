//! The system's keyring, behind a feature because it brings a D-Bus client along.

use crate::{Error, credentials::Secret};
use sandbox_base::ErrorKind;

fn operation(service: &str, account: &str) -> String {
    let (service, account) = (service.escape_debug(), account.escape_debug());
    format!("read the secret of {account} for {service} from the keyring")
}

/// Without the feature there is no keyring.
pub(super) async fn load(service: String, account: String) -> Result<Secret, Error> {
    let reason = "this build has no keyring: enable the feature `keyring`";
    Err(Error::new(
        ErrorKind::Unsupported,
        operation(&service, &account),
        reason,
    ))
}
