//! Copies of a running sandbox: sandboxes of their own, whose processes go on where this one's were.
//!
//! The machine is saved once, as for a snapshot, and each copy is created from that instead of from an image. What was
//! saved goes when the last copy runs: what a copy needs of its memory, it has mapped.
//!
//! A copy shares nothing with its origin but the past. It has a name, a disk, an authority and placeholders of its own;
//! its guest is told so, and given randomness and the time, with the first words of its host. Of the workspaces' folders
//! outside there is one, so that a copy's work waits for review ([`Workspace::of_a_copy`]). The egress policy is what
//! the origin's is by then, and who is asked is the same.

use std::path::Path;
use std::sync::Arc;

use sandbox_base::{Error, ErrorKind};
use sandbox_net::credentials::Credentials;
use sandbox_net::inspect::Inspector;
use tokio::task::JoinSet;

use super::rollback::{at_rest, refuse_shared_disks};
use super::{Means, Owner, removed, to_its_end};
use crate::control::{self, Remote};
use crate::history;
use crate::lifecycle::Lifetime;
use crate::network;
use crate::progress::Progress;
use crate::saved::{Passing, Saved};
use crate::spec::{Spec, Workspace};
use crate::state::{self, Owned, Store, blocking};
use crate::supervisor::{self, Creation, Origin};

const OPERATION: &str = "copy a sandbox";

impl Owner {
    /// Makes copies with these names, all of them or none, which this process owns. Dropping the future drops them, too,
    /// once they are there.
    pub(crate) async fn fork(
        self: &Arc<Self>,
        names: Vec<String>,
    ) -> Result<Vec<Arc<Self>>, Error> {
        let owner = self.clone();
        to_its_end(async move {
            let guard = owner.owned.lock().await;
            let owned = guard.as_ref().ok_or_else(removed)?;
            let passing = owner.save_for_copies(owned).await?;
            let spec = of_a_copy(&owned.record.spec);
            let begin = |name| {
                let (owner, spec) = (owner.clone(), spec.clone());
                let folder = passing.folder().to_owned();
                async move { owner.begin_copy(name, spec, &folder).await }
            };
            let (copies, failed) = all(names.into_iter().map(begin)).await;
            let Some(failed) = failed else {
                return Ok(copies);
            };
            for copy in copies {
                warn_of_rest(copy.remove().await);
            }
            Err(failed)
        })
        .await
    }

    /// Makes copies with these names, all of them or none, each in the care of a supervisor. Goes on when the future is
    /// dropped.
    pub(crate) async fn fork_detached(self: &Arc<Self>, names: Vec<String>) -> Result<(), Error> {
        let owner = self.clone();
        to_its_end(async move {
            let helper = owner.supervised_by.clone().ok_or_else(|| {
                Error::new(ErrorKind::Conflict, OPERATION)
                    .with_detail("it goes with a handle, and only who has that can copy it")
            })?;
            let guard = owner.owned.lock().await;
            let owned = guard.as_ref().ok_or_else(removed)?;
            let passing = owner.save_for_copies(owned).await?;
            let credentials = owner.inspector.as_ref().and_then(Inspector::credentials);
            let creation = Creation {
                spec: of_a_copy(&owned.record.spec),
                origin: Some(Origin {
                    folder: passing.folder().to_owned(),
                    revoked: credentials.map(Credentials::revoked).unwrap_or_default(),
                }),
            };
            let begin = |name: String| {
                let (helper, dirs) = (helper.clone(), owner.dirs.clone());
                let creation = Some(creation.clone());
                async move {
                    let silent = Progress::silent();
                    supervisor::launch(&helper, &dirs, (&name, creation), &silent).await?;
                    Ok(name)
                }
            };
            let (names, failed) = all(names.into_iter().map(begin)).await;
            let Some(failed) = failed else {
                return Ok(());
            };
            for name in names {
                warn_of_rest(end(&Store::new(owner.dirs.clone()), name).await);
            }
            Err(failed)
        })
        .await
    }

    /// Saves the running machine, and what its workspaces had agreed on.
    async fn save_for_copies(&self, owned: &Owned) -> Result<Passing, Error> {
        refuse_shared_disks(&owned.record.spec, OPERATION)?;
        let running = self.running()?;
        let passing = Saved::of(&owned.folder).begin_passing()?;
        at_rest(&running, async {
            let (machine, agent) = (&running.machine, &running.agent);
            machine.snapshot(agent, &passing.machine()).await?;
            history::copy(&owned.folder, passing.folder())?;
            Ok(())
        })
        .await?;
        Ok(passing)
    }

    /// Creates one copy, which this process owns, and starts it.
    async fn begin_copy(&self, name: String, spec: Spec, from: &Path) -> Result<Arc<Self>, Error> {
        let inspector = match &self.inspector {
            Some(inspector) => Some(of_another(inspector, &spec)?),
            None => None,
        };
        let store = Store::new(self.dirs.clone());
        let owned = state::create(&store, &name, Lifetime::Attached, spec).await?;
        let means = Means {
            hypervisor: self.hypervisor.clone(),
            resolver: self.resolver.clone(),
            approvals: self.approvals.clone(),
            inspector,
            above: self.above(),
            upstream: self.upstream.clone(),
            progress: Progress::silent(),
            supervised_by: None,
        };
        let copy = Self::new(owned, self.dirs.clone(), means);
        copy.start(Some(from)).await?;
        drop(control::serve(&copy).await?);
        Ok(copy)
    }
}

/// Makes the inspector of a copy, which has placeholders and an authority of its own.
fn of_another(inspector: &Inspector, spec: &Spec) -> Result<Inspector, Error> {
    let mut builder = spec.inspection.builder()?;
    if let Some(credentials) = inspector.credentials() {
        builder = builder.credentials(credentials.fork().map_err(network::unusable)?);
    }
    builder.build().map_err(network::unusable)
}

/// Returns what a copy is made of.
fn of_a_copy(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    for workspace in &mut spec.workspaces {
        *workspace = workspace.of_a_copy();
    }
    spec
}

/// Does all of the work at once; returns what came of it, in its order, and why some of it failed.
async fn all<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = Result<T, Error>> + Send + 'static>,
) -> (Vec<T>, Option<Error>) {
    let mut working = JoinSet::new();
    for (place, one) in work.enumerate() {
        working.spawn(async move { (place, one.await) });
    }
    let (mut done, mut failed) = (Vec::new(), None);
    while let Some(joined) = working.join_next().await {
        match joined {
            Ok((place, Ok(one))) => done.push((place, one)),
            Ok((_, Err(error))) => failed = failed.or(Some(error)),
            Err(error) => {
                failed = failed.or(Some(
                    Error::new(ErrorKind::Io, OPERATION).with_source(error),
                ));
            }
        }
    }
    done.sort_unstable_by_key(|(place, _)| *place);
    (done.into_iter().map(|(_, one)| one).collect(), failed)
}

/// Has the supervisor of a copy remove it.
async fn end(store: &Store, name: String) -> Result<(), Error> {
    let found = {
        let store = store.clone();
        blocking(move || store.find(&name)).await?
    };
    let remote = Remote::connect(&store.control_socket(&found.record)).await?;
    remote.remove().await
}

fn warn_of_rest(ended: Result<(), Error>) {
    if let Err(error) = ended {
        tracing::warn!(%error, "a copy is left over whose siblings failed");
    }
}

impl Workspace {
    /// Returns the workspace as a copy of the sandbox has it: the same folder outside, which only what somebody
    /// applies comes to. One that is read-only stays so.
    fn of_a_copy(&self) -> Self {
        let mut copy = self.clone();
        if copy.mode.is_two_way() {
            copy.mode = sandbox_sync::Mode::Review;
        }
        copy.output = Vec::new();
        copy
    }
}

/// Chooses names for copies of a sandbox that nobody in `taken` has.
pub(crate) fn names(origin: &str, count: usize, taken: impl Fn(&str) -> bool) -> Vec<String> {
    /// A label of a host name, which the name becomes.
    const LONGEST: usize = 63;
    let name = |number: usize| {
        let end = format!("-{number}");
        let origin = &origin[..origin.len().min(LONGEST - end.len())];
        format!("{}{end}", origin.trim_end_matches('-'))
    };
    let free = (1..).map(name).filter(|name| !taken(name));
    free.take(count).collect()
}

/// Chooses names for copies of a sandbox that no other has at this moment.
pub(crate) async fn free_names(
    store: &Store,
    origin: &str,
    count: usize,
) -> Result<Vec<String>, Error> {
    let (store, origin) = (store.clone(), origin.to_owned());
    blocking(move || {
        let found = store.list()?;
        let taken = |name: &str| found.iter().any(|found| found.record.name == name);
        Ok(names(&origin, count, taken))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::check_name;

    #[test]
    fn copies_have_names_that_are_free_and_fit() {
        let taken = |name: &str| name == "lab-2";
        assert_eq!(names("lab", 3, taken), ["lab-1", "lab-3", "lab-4"]);
        assert!(names("lab", 0, taken).is_empty());
        let long = format!("{}-{}", "a".repeat(60), "bc");
        for name in names(&long, 120, |_| false) {
            check_name(&name).unwrap();
            assert!(name.starts_with(&"a".repeat(58)), "{name}");
        }
    }

    #[test]
    fn a_copy_writes_to_no_folder_by_itself() {
        let mut workspace = Workspace::sync("/project").output("/out");
        assert_eq!(workspace.of_a_copy().mode, sandbox_sync::Mode::Review);
        assert!(workspace.of_a_copy().output.is_empty());
        workspace.mode = sandbox_sync::Mode::ReadOnly;
        assert_eq!(workspace.of_a_copy().mode, sandbox_sync::Mode::ReadOnly);
    }

    #[tokio::test]
    async fn what_came_of_work_is_in_its_order_and_told_of_when_some_fails() {
        let work = |fails: Option<u64>| {
            (0..4).map(move |number| async move {
                // The last one is the first that is done.
                tokio::time::sleep(std::time::Duration::from_millis(10 * (4 - number))).await;
                match fails == Some(number) {
                    true => Err(Error::new(ErrorKind::Exhausted, "work")),
                    false => Ok(number),
                }
            })
        };
        let (done, failed) = all(work(None)).await;
        assert_eq!((done, failed.is_none()), (vec![0, 1, 2, 3], true));
        let (done, failed) = all(work(Some(2))).await;
        assert_eq!(done, [0, 1, 3]);
        assert_eq!(failed.unwrap().kind(), ErrorKind::Exhausted);
    }
}
