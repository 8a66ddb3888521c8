//! The credentials of one sandbox while it lives: placeholders, values, grants.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use sandbox_base::ErrorKind;

#[cfg(feature = "sigv4")]
use crate::credentials::{Place, sigv4};
use crate::{
    Error,
    credentials::{
        Credential, Grant, Placeholder, Refusal, Secret, Source, placeholder::MARKER, scan::Needles,
    },
    policy::Target,
};

/// The shortest value that is taken out of answers: a shorter one would hit words by chance.
const MIN_SCRUB: usize = 8;

/// The credentials of one sandbox: it holds the values, and the guest gets placeholders. Cheap to clone; clones are
/// the same broker.
///
/// ```
/// use sandbox_net::credentials::{Credentials, Secret, Service, Source};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sandbox_net::Error> {
/// let service = Service::named("anthropic").expect("it is in the table");
/// let value = Source::Value(Secret::new("sk-ant-the-real-one")?);
/// let credentials = Credentials::load([service.credential(value)?]).await?;
/// // What commands inside find in their environment.
/// let (name, placeholder) = &credentials.environment()[0];
/// assert_eq!(name, "ANTHROPIC_API_KEY");
/// assert!(placeholder.starts_with("sk-ant-sbxplaceholder"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Credentials(Arc<RwLock<Arc<Table>>>);

impl Credentials {
    /// Fetches the values and makes the placeholders.
    ///
    /// # Errors
    ///
    /// `Invalid` for a name that is used twice or has other characters than letters, digits, `-`, `_` and `.`,
    /// for a variable's name that is none, for a value to be scrubbed of fewer than eight bytes or without the
    /// keys that signatures need; and what
    /// [`Source::load`] answers.
    pub async fn load(credentials: impl IntoIterator<Item = Credential>) -> Result<Self, Error> {
        let (mut entries, mut names) = (Vec::new(), HashSet::new());
        for credential in credentials {
            check(&credential)?;
            if !names.insert(credential.name.clone()) {
                return Err(invalid(&credential.name, "there are two of this name"));
            }
            let secret = credential.source.load().await?;
            check_value(
                (&credential.name, credential.scrub),
                &credential.grants,
                &secret,
            )?;
            entries.push(Entry {
                placeholder: Placeholder::new(&credential.prefix)?,
                prefix: credential.prefix,
                name: credential.name,
                secret: Some(secret),
                source: credential.source,
                grants: credential.grants,
                variables: credential.variables,
                scrub: credential.scrub,
            });
        }
        Ok(Self::of(entries, false))
    }

    fn of(entries: Vec<Entry>, tolerant: bool) -> Self {
        let needles = Needles::new(entries.iter().map(|entry| &entry.placeholder));
        let table = Table {
            entries,
            needles: Arc::new(needles),
            tolerant,
        };
        Self(Arc::new(RwLock::new(Arc::new(table))))
    }

    /// Returns a broker for a copy of the sandbox: the values of this moment behind placeholders of its own. What was
    /// replaced is so there, too, and what was revoked stays revoked. From then on neither changes the other.
    ///
    /// # Errors
    ///
    /// `Io` when the host has no randomness.
    pub fn fork(&self) -> Result<Self, Error> {
        let table = self.table();
        let mut entries = table.entries.clone();
        for entry in &mut entries {
            entry.placeholder = Placeholder::new(&entry.prefix)?;
        }
        Ok(Self::of(entries, table.tolerant))
    }

    /// Lists the names of those whose value was revoked.
    pub fn revoked(&self) -> Vec<String> {
        let table = self.table();
        let revoked = table.entries.iter().filter(|entry| entry.secret.is_none());
        revoked.map(|entry| entry.name.clone()).collect()
    }

    /// Lets bodies pass that hold a placeholder which is not bound to their host, with an alert.
    ///
    /// For agents whose conversation, which their model gets to read, may come to hold what `env` printed. Heads
    /// are refused all the same.
    #[must_use]
    pub fn report_bodies_only(self) -> Self {
        self.change(|table| table.tolerant = true);
        self
    }

    /// Returns the variables that give commands inside their placeholders.
    pub fn environment(&self) -> Vec<(String, String)> {
        let table = self.table();
        let each = table.entries.iter().flat_map(|entry| {
            let placeholder = entry.placeholder.as_str();
            entry
                .variables
                .iter()
                .map(move |name| (name.clone(), placeholder.to_owned()))
        });
        each.collect()
    }

    /// Returns the placeholder of a credential.
    pub fn placeholder(&self, name: &str) -> Option<Placeholder> {
        let table = self.table();
        let entry = table.entries.iter().find(|entry| entry.name == name);
        entry.map(|entry| entry.placeholder.clone())
    }

    /// Lists the names.
    pub fn names(&self) -> Vec<String> {
        self.table()
            .entries
            .iter()
            .map(|entry| entry.name.clone())
            .collect()
    }

    /// Drops a value. Requests that are still to come are refused; returns whether there is such a credential.
    pub fn revoke(&self, name: &str) -> bool {
        self.change_entry(name, |entry| entry.secret = None)
    }

    /// Replaces a value, for requests that are still to come; the placeholder stays.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a credential; `Invalid` for a short one that is to be scrubbed, and for one
    /// without the keys that signatures need.
    pub fn replace(&self, name: &str, secret: Secret) -> Result<(), Error> {
        let table = self.table();
        if let Some(entry) = table.entries.iter().find(|entry| entry.name == name) {
            check_value((name, entry.scrub), &entry.grants, &secret)?;
        }
        if self.change_entry(name, |entry| entry.secret = Some(secret)) {
            return Ok(());
        }
        Err(missing(name))
    }

    /// Fetches a value again from where it came from, also after it was revoked.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a credential, and what [`Source::load`] answers; the value stays as it was then.
    pub async fn reload(&self, name: &str) -> Result<(), Error> {
        let source = self.source(name).ok_or_else(|| missing(name))?;
        self.replace(name, source.load().await?)
    }

    /// Tells whether any credential is granted to a target.
    pub fn is_granted(&self, target: &Target) -> bool {
        self.table().bound(target).next().is_some()
    }

    fn source(&self, name: &str) -> Option<Source> {
        let table = self.table();
        let entry = table.entries.iter().find(|entry| entry.name == name);
        entry.map(|entry| entry.source.clone())
    }

    /// What holds for one request.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&guard);
        change(&mut table);
        *guard = Arc::new(table);
    }

    fn change_entry(&self, name: &str, change: impl FnOnce(&mut Entry)) -> bool {
        let mut found = false;
        self.change(|table| {
            if let Some(entry) = table.entries.iter_mut().find(|entry| entry.name == name) {
                change(entry);
                found = true;
            }
        });
        found
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

fn invalid(name: &str, reason: &'static str) -> Error {
    Error::invalid(
        format!("load the credential `{}`", name.escape_debug()),
        reason,
    )
}

fn missing(name: &str) -> Error {
    let operation = format!("use the credential `{}`", name.escape_debug());
    Error::new(ErrorKind::NotFound, operation, "there is none of this name")
}

fn check(credential: &Credential) -> Result<(), Error> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let name = &credential.name;
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) || name.contains(MARKER) {
        return Err(invalid(
            name,
            "a name is 1 to 64 letters, digits, `-`, `_` and `.`",
        ));
    }
    let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
    if !credential.variables.iter().all(is_name) {
        return Err(invalid(name, "a variable's name is none"));
    }
    Ok(())
}

fn check_value((name, scrub): (&str, bool), grants: &[Grant], value: &Secret) -> Result<(), Error> {
    if scrub && value.expose().len() < MIN_SCRUB {
        let reason = "a value that is scrubbed has eight bytes at least";
        return Err(invalid(name, reason));
    }
    #[cfg(feature = "sigv4")]
    {
        let mut places = grants.iter().flat_map(|grant| &grant.places);
        let signs = places.any(|place| matches!(place, Place::SigV4(_)));
        if signs && !sigv4::is_keys(value) {
            let reason = "the value for signatures is `<access key id>:<secret access key>`";
            return Err(invalid(name, reason));
        }
    }
    #[cfg(not(feature = "sigv4"))]
    let _ = grants;
    Ok(())
}

/// All credentials at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(super) entries: Vec<Entry>,
    pub(super) needles: Arc<Needles>,
    /// Bodies with a placeholder that is not bound to their host are reported, not refused.
    pub(crate) tolerant: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) placeholder: Placeholder,
    /// What the placeholder begins with.
    prefix: String,
    /// `None` once it was revoked.
    pub(super) secret: Option<Secret>,
    source: Source,
    pub(super) grants: Vec<Grant>,
    variables: Vec<String>,
    pub(super) scrub: bool,
}

impl Table {
    /// Lists the credentials that are granted to a target, revoked ones too.
    pub(super) fn bound(&self, target: &Target) -> impl Iterator<Item = (&Entry, &Grant)> {
        self.entries.iter().flat_map(move |entry| {
            let grants = entry
                .grants
                .iter()
                .filter(move |grant| grant.target == *target);
            grants.map(move |grant| (entry, grant))
        })
    }

    /// Lists the names of the credentials that are granted to a target.
    pub(crate) fn names_for(&self, target: &Target) -> Vec<&str> {
        self.bound(target)
            .map(|(entry, _)| entry.name.as_str())
            .collect()
    }

    /// Says why a body must not hold a placeholder on its way to a target, or without TLS to any; `None` if it may.
    pub(crate) fn misdirected(&self, index: usize, target: Option<&Target>) -> Option<Refusal> {
        let entry = &self.entries[index];
        let name = || entry.name.clone();
        let Some(target) = target else {
            return Some(Refusal::Plain(name()));
        };
        let bound = entry.grants.iter().any(|grant| grant.target == *target);
        (!bound).then(|| Refusal::Unbound(name()))
    }

    /// Tells whether there is nothing to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::scan::{Found, Scanner};

    #[tokio::test]
    async fn r16_a_copy_has_the_values_of_the_moment_and_other_placeholders() {
        let one = |name: &str| {
            let value = Source::Value(Secret::new(format!("the value of {name}")).unwrap());
            Credential::new(name, value).variable(name).prefix("sk-")
        };
        let origin = ["kept", "replaced", "revoked"].map(one);
        let origin = Credentials::load(origin)
            .await
            .unwrap()
            .report_bodies_only();
        origin
            .replace("replaced", Secret::new("another").unwrap())
            .unwrap();
        assert!(origin.revoke("revoked"));
        let copy = origin.fork().unwrap();
        assert_eq!(
            (copy.names(), copy.revoked()),
            (origin.names(), vec!["revoked".into()])
        );
        for (entry, ours) in copy.table().entries.iter().zip(&origin.table().entries) {
            assert_ne!(entry.placeholder.as_str(), ours.placeholder.as_str());
            assert!(entry.placeholder.as_str().starts_with("sk-"));
            let values = [entry, ours].map(|entry| entry.secret.as_ref().map(Secret::expose));
            assert_eq!(values[0], values[1]);
        }
        assert!(copy.table().tolerant);
        // What is sent by a copy is looked for by its own placeholders.
        let found = |broker: &Credentials, text: &str| {
            let mut known = false;
            Scanner::new(broker.table().needles.clone()).push(text.as_bytes(), |found| {
                known |= matches!(found, Found::Entry { .. });
            });
            known
        };
        let placeholder = copy.placeholder("kept").unwrap();
        assert!(found(&copy, placeholder.as_str()) && !found(&origin, placeholder.as_str()));
        assert!(origin.revoke("kept"));
        assert_eq!(copy.revoked(), ["revoked"]);
    }
}
