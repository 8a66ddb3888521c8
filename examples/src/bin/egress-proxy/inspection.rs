//! TLS that is opened on its way, for the hosts that are named.

use std::fs;

use sandbox_net::inspect::Inspector;

use crate::{Failure, arguments::Arguments};

/// Makes the inspector that the arguments ask for, and writes down whom clients have to trust.
pub(crate) fn inspector(arguments: &Arguments) -> Result<Option<Inspector>, Failure> {
    let Some(authority) = &arguments.authority else {
        return Ok(None);
    };
    let mut inspector = Inspector::builder();
    for host in &arguments.inspect {
        inspector = inspector.inspect(host)?;
    }
    for host in &arguments.bypass {
        inspector = inspector.bypass(host)?;
    }
    if let Some(path) = &arguments.root_certificates {
        let read = |error| format!("cannot read {}: {error}", path.display());
        inspector = inspector.root_certificates(&fs::read(path).map_err(read)?)?;
    }
    let inspector = inspector.build()?;
    fs::write(authority, inspector.authority().pem())
        .map_err(|error| format!("cannot write {}: {error}", authority.display()))?;
    Ok(Some(inspector))
}
