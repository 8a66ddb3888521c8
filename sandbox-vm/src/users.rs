//! Users and groups as `/etc/passwd` and `/etc/group` give them, as data.
//!
//! Parsed here and not by the C library, whose name service switch cannot live in a static binary. The
//! files belong to the guest: lines that make no sense are passed over.

use crate::channel::protocol::{Failure, FailureKind};

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// The groups it belongs to, its own included.
    pub groups: Vec<u32>,
    /// Its name, or its number where it has none.
    pub name: String,
    /// Its home folder.
    pub home: String,
    /// Its login shell.
    pub shell: String,
}

/// Finds a user by name, or by numbers as `uid` or `uid:gid`, in the texts of both files.
///
/// Numbers need no entry: a uid without one is a user without a name whose home is `/`.
///
/// # Errors
///
/// `NotFound` for a name without an entry, `Invalid` for a group that is no number.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let (user, gid) = match wanted.split_once(':') {
        Some((user, gid)) => (user, Some(number(gid, wanted)?)),
        None => (wanted, None),
    };
    let entry = passwd
        .lines()
        .filter_map(parse_entry)
        .find(|entry| match user.parse::<u32>() {
            Ok(uid) => entry.uid == uid,
            Err(_) => entry.name == user,
        });
    let mut found = match (entry, user.parse::<u32>()) {
        (Some(entry), _) => entry,
        (None, Ok(uid)) => nameless(uid),
        (None, Err(_)) => {
            let message = format!("no user named {user:?} in the image");
            return Err(Failure::new(FailureKind::NotFound, message));
        }
    };
    found.gid = gid.unwrap_or(found.gid);
    found.groups = groups_of(&found, group);
    Ok(found)
}

/// Finds a user in this system's own files; a missing file has no users.
#[cfg(all(feature = "guest", target_os = "linux"))]
pub(crate) fn find_here(wanted: &str) -> Result<User, Failure> {
    let read = |path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    find(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn number(text: &str, wanted: &str) -> Result<u32, Failure> {
    text.parse().map_err(|_| {
        let message = format!("{wanted:?} is neither a user name nor uid:gid");
        Failure::new(FailureKind::Invalid, message)
    })
}

fn nameless(uid: u32) -> User {
    User {
        uid,
        gid: uid,
        groups: Vec::new(),
        name: uid.to_string(),
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

fn parse_entry(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _password, uid, gid, _comment, home, shell] = fields[..] else {
        return None;
    };
    let or = |text: &str, fallback: &str| {
        if text.is_empty() {
            fallback.to_owned()
        } else {
            text.to_owned()
        }
    };
    Some(User {
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        name: name.to_owned(),
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn groups_of(user: &User, group: &str) -> Vec<u32> {
    let named = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_name, _password, gid, members] = fields[..] else {
            return None;
        };
        members
            .split(',')
            .any(|member| member == user.name)
            .then(|| gid.parse().ok())
            .flatten()
    });
    let mut groups: Vec<u32> = std::iter::once(user.gid).chain(named).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\njunk\nagent:x:1000:1000::/home/agent:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:agent,other\nagent:x:1000:\n";

    #[test]
    fn a_name_brings_its_groups_and_defaults() {
        let agent = find("agent", PASSWD, GROUP).unwrap();
        assert_eq!((agent.uid, agent.gid), (1000, 1000));
        assert_eq!(agent.groups, [27, 1000]);
        assert_eq!(agent.shell, "/bin/sh");
    }

    #[test]
    fn numbers_need_no_entry() {
        let user = find("4711:12", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4711, 12, "/"));
    }

    #[test]
    fn a_number_with_an_entry_is_that_user() {
        assert_eq!(find("1000", PASSWD, GROUP).unwrap().name, "agent");
    }

    #[test]
    fn an_unknown_name_and_a_bad_group_are_told_apart() {
        assert_eq!(
            find("nobody", PASSWD, GROUP).unwrap_err().kind,
            FailureKind::NotFound
        );
        assert_eq!(
            find("agent:x", PASSWD, GROUP).unwrap_err().kind,
            FailureKind::Invalid
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(wanted: String, passwd: String, group: String) {
            drop(find(&wanted, &passwd, &group));
        }
    }
}
