//! Looking at what waits, and carrying out what was decided about it.
//!
//! Applying is one transaction: everything that was chosen is staged and verified first, what it replaces is
//! kept and the record of it durable before the first rename, and where one rename is refused the others are
//! taken back. A process that dies in between leaves a record by which the next session takes them back
//! ([`Engine::recover`]).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::{Engine, Failure};
use crate::error::Error;
use crate::fold::as_written;
use crate::path::RelPath;
use crate::reconcile::{Input, Mode, Op};
use crate::replica::{Batch, Replica};
use crate::report::{Problem, Side};
use crate::review::chosen::{Planned, Trees, plan};
use crate::review::undo::{Step, Undo};
use crate::review::{self, Change, Changes, Look, MAX_SHOWN, Outcome, text};
use crate::root::Root;
use crate::scan::open_file;
use crate::tree::{Digest, Entry, Tree};
use sandbox_base::ErrorKind;

/// How many bytes of contents are in memory at once, of either side.
const AT_ONCE: u64 = 8 << 20;

/// A file whose contents are to be read into memory.
pub(crate) type Wish = (RelPath, Digest, u64);

/// Contents that are put together here, by path.
type Merged = HashMap<RelPath, Vec<u8>>;

impl Engine {
    /// Lists what waits, by what the last scan found, with the differences of contents.
    pub(crate) async fn changes(&mut self) -> Result<Changes, Failure> {
        let (base, host) = self.trees().await?;
        let mut listed = review::list(Input {
            base: &base,
            host: &host,
            guest: self.peer.tree(),
            rules: &self.rules,
            mode: self.options.mode,
            folds: self.folds(),
        });
        let mut room = MAX_SHOWN;
        let mut rest = &mut listed.changes[..];
        while !rest.is_empty() {
            let (part, later) = rest.split_at_mut(at_once(rest));
            self.show(part, &mut room).await?;
            rest = later;
        }
        Ok(listed)
    }

    /// Fills in the differences of a few changes.
    async fn show(&mut self, changes: &mut [Change], room: &mut usize) -> Result<(), Failure> {
        let mut wishes: [Vec<Wish>; 2] = Default::default();
        for change in &mut *changes {
            match review::look(change) {
                Look::Omitted => change.contents = review::Contents::Omitted,
                Look::Nothing => {}
                Look::Texts { .. } if *room == 0 => change.contents = review::Contents::Omitted,
                Look::Texts { host, guest } => {
                    for (side, content) in [host, guest].into_iter().enumerate() {
                        wishes[side].extend(content.map(|(d, s)| (change.path.clone(), d, s)));
                    }
                }
            }
        }
        let [host, guest] = wishes;
        let mut before = self.read_host(host).await?;
        let mut after = self.read_guest(guest).await?;
        for change in changes {
            let Look::Texts { host, guest } = review::look(change) else {
                continue;
            };
            if change.contents == review::Contents::Omitted {
                continue;
            }
            let text = |wished: bool, of: &mut Merged| match wished {
                true => of.remove(&change.path),
                false => Some(Vec::new()),
            };
            let before = text(host.is_some(), &mut before);
            let after = text(guest.is_some(), &mut after);
            change.contents = review::contents(before.as_deref(), after.as_deref(), room);
        }
        Ok(())
    }

    /// Makes the host's tree what was chosen, as one transaction.
    pub(crate) async fn apply_chosen(&mut self, chosen: &Changes) -> Result<Outcome, Failure> {
        // The next plan is one for everything: what is done here comes from no plan.
        self.scope.widen();
        let undo = self.undo()?;
        let (base, host) = self.trees().await?;
        let planned = plan(&chosen.changes, self.both(&host, Side::Host));
        if !planned.refused.is_empty() || planned.ops.is_empty() {
            return Ok(refused(planned.refused));
        }
        let mut ops = planned.ops;
        let merged = self.merge(chosen, &mut ops).await?;
        let steps = steps(&ops, &base);
        let batch = match self.stage(ops, merged).await? {
            Ok(batch) => batch,
            Err(problem) => return Ok(refused(vec![problem])),
        };
        let (root, kept, at) = (self.root.clone(), steps.clone(), undo.clone());
        let begun = blocking(move || at.begin(&root, kept)).await;
        match begun {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let problem = problem(&steps[0].op.path, &error.to_string());
                return Ok(refused(vec![problem]));
            }
            other => other.map_err(Failure::local("keep what is replaced"))?,
        }
        let outcome = self.commit(batch, &steps, &undo).await?;
        if outcome.refused.is_empty() {
            // In this order: rolled back with the base recorded, the guest's change would look like none.
            blocking(move || undo.finish())
                .await
                .map_err(Failure::local("note that it is applied"))?;
            let agreed = steps.into_iter().map(|step| (step.op.path, step.op.new));
            self.record(agreed.collect()).await?;
        }
        Ok(outcome)
    }

    /// Carries out what is staged, and takes it back if anything was refused.
    async fn commit(
        &mut self,
        batch: Batch,
        steps: &[Step],
        undo: &Undo,
    ) -> Result<Outcome, Failure> {
        let (ops, answers) = self.apply(batch).await?;
        let mut outcome = Outcome::default();
        let mut carried_out = Vec::new();
        for ((op, answer), step) in ops.into_iter().zip(answers).zip(steps) {
            match answer {
                Ok(()) => {
                    outcome.done.push(op.path);
                    carried_out.push(step.clone());
                }
                Err(text) => outcome.refused.push(problem(&op.path, &text)),
            }
        }
        if outcome.refused.is_empty() {
            return Ok(outcome);
        }
        let back = self.take_back(&carried_out, undo).await?;
        outcome.refused.extend(back.refused);
        outcome.done.clear();
        let undo = undo.clone();
        blocking(move || undo.forget())
            .await
            .map_err(Failure::local("forget what is taken back"))?;
        Ok(outcome)
    }

    /// Takes the last apply back: the host has again what it had, and the guest's changes wait again.
    pub(crate) async fn undo_last(&mut self) -> Result<Outcome, Failure> {
        // The next plan is one for everything: what is done here comes from no plan.
        self.scope.widen();
        let undo = self.undo()?;
        let at = undo.clone();
        let done = blocking(move || at.done()).await;
        let done = done.map_err(Failure::local("read what was applied"))?;
        let Some(steps) = done else {
            let error = Error::new(ErrorKind::NotFound, "take an apply back", "there is none");
            return Err(Failure::mild(error));
        };
        let (_, host) = self.trees().await?;
        let moved = moved_on(&steps, &host);
        if !moved.is_empty() {
            return Ok(refused(moved));
        }
        // In this order: taken back with the base as it was, the guest's change would look like none.
        self.record(bases(&steps)).await?;
        let at = undo.clone();
        blocking(move || at.begin_back())
            .await
            .map_err(Failure::local("note that it is taken back"))?;
        let outcome = self.take_back(&left(&steps, &host), &undo).await?;
        let whole = outcome.refused.is_empty();
        blocking(move || if whole { undo.forget() } else { undo.finish() })
            .await
            .map_err(Failure::local("note that it is taken back"))?;
        Ok(outcome)
    }

    /// Takes back what a process that died had begun to apply.
    pub(crate) async fn recover(&mut self) -> Result<(), Failure> {
        let folder = self.options.undo.as_ref();
        let Some(folder) = folder.filter(|_| self.options.mode != Mode::ReadOnly) else {
            return Ok(());
        };
        let undo = Undo::at(folder);
        self.scope.widen();
        let at = undo.clone();
        let begun = match blocking(move || at.pending()).await {
            Ok(None) => return Ok(()),
            Ok(Some(steps)) => steps,
            Err(error) => {
                tracing::warn!(%error, "an apply that did not end cannot be taken back");
                Vec::new()
            }
        };
        let scanned = self.host.run(|replica| replica.scan(true).map(drop)).await;
        scanned
            .flatten()
            .map_err(Failure::local("scan the host's folder"))?;
        let (_, host) = self.trees().await?;
        for problem in moved_on(&begun, &host) {
            tracing::warn!(path = %problem.path, "changed since an apply that did not end");
        }
        let outcome = self.take_back(&carried_out(&begun, &host), &undo).await?;
        for problem in outcome.refused {
            tracing::warn!(path = %problem.path, reason = problem.text, "an apply that did not end stays here");
        }
        blocking(move || undo.forget())
            .await
            .map_err(Failure::local("forget what is taken back"))
    }

    async fn take_back(&mut self, steps: &[Step], undo: &Undo) -> Result<Outcome, Failure> {
        if steps.is_empty() {
            return Ok(Outcome::default());
        }
        let ops: Vec<Op> = steps.iter().map(Step::inverse).collect();
        let prepare = move |replica: &mut Replica| replica.prepare(ops);
        let batch = self.host.run(prepare).await.flatten();
        let mut batch = batch.map_err(Failure::local("stage on the host"))?;
        let (undo, kept) = (undo.clone(), steps.to_vec());
        let provided = blocking(move || {
            undo.provide(&mut batch, &kept)?;
            Ok(batch)
        });
        let batch = provided
            .await
            .map_err(Failure::local("find what was kept"))?;
        let (ops, answers) = self.apply(batch).await?;
        let mut outcome = Outcome::default();
        for (op, answer) in ops.into_iter().zip(answers) {
            match answer {
                Ok(()) => outcome.done.push(op.path),
                Err(text) => outcome.refused.push(problem(&op.path, &text)),
            }
        }
        Ok(outcome)
    }

    /// Makes the guest's tree what the host has where it was chosen.
    pub(crate) async fn discard_chosen(&mut self, chosen: &Changes) -> Result<Outcome, Failure> {
        // The next plan is one for everything: what is done here comes from no plan.
        self.scope.widen();
        let (_, host) = self.trees().await?;
        let Planned { ops, refused } = plan(&chosen.changes, self.both(&host, Side::Guest));
        let done = Vec::new();
        let mut outcome = Outcome { done, refused };
        if chosen.changes.iter().any(|change| change.picked.is_some()) {
            let detail = "apply the others, then discard the rest of the file";
            let error = Error::new(ErrorKind::Unsupported, "discard single hunks", detail);
            return Err(Failure::mild(error));
        }
        if ops.is_empty() {
            return Ok(outcome);
        }
        let (root, progress) = (self.root.clone(), &self.options.progress);
        let answers = self.peer.carry_out(&ops, root, progress).await;
        let answers = answers.map_err(Failure::fatal)?;
        let mut agreed = Vec::new();
        for (op, answer) in ops.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    outcome.done.push(op.path.clone());
                    agreed.push((op.path, op.new));
                }
                Err(text) => outcome.refused.push(Problem {
                    side: Side::Guest,
                    path: op.path,
                    text,
                }),
            }
        }
        self.record(agreed).await?;
        Ok(outcome)
    }

    /// Puts the contents of files together of which only some hunks were chosen.
    async fn merge(&mut self, chosen: &Changes, ops: &mut [Op]) -> Result<Merged, Failure> {
        let mut merged = Merged::new();
        let some = chosen.filter(|change| change.picked.is_some());
        for change in some.changes {
            let flows =
                self.options.mode.is_two_way() && !change.is_marked(review::Mark::RunsUnasked);
            let Look::Texts { host, guest } = review::look(&change) else {
                continue;
            };
            if flows || guest.is_none() {
                let detail = "the rest would follow by itself";
                let error = Error::new(ErrorKind::Unsupported, "apply single hunks", detail);
                return Err(Failure::mild(error));
            }

            let before = match host {
                Some(_) => self
                    .read_host(wish(&change, host))
                    .await?
                    .remove(&change.path),
                None => Some(Vec::new()),
            };
            let after = self
                .read_guest(wish(&change, guest))
                .await?
                .remove(&change.path);
            let both = before.zip(after);
            let picked = change.picked.as_deref().unwrap_or_default();
            let bytes = both.and_then(|(old, new)| text::with_hunks(&old, &new, picked));
            let bytes = bytes.ok_or_else(|| {
                let detail = format!("{} was changed since it was shown", change.path);
                Failure::mild(Error::new(
                    ErrorKind::Conflict,
                    "apply single hunks",
                    detail,
                ))
            })?;
            for op in ops.iter_mut().filter(|op| op.path == change.path) {
                if let Some(Entry::File { digest, size, .. }) = &mut op.new {
                    (*digest, *size) = (Digest::of(&bytes), bytes.len() as u64);
                }
            }
            drop(merged.insert(change.path.clone(), bytes));
        }
        Ok(merged)
    }

    /// Stages operations for the host; the problem is that some contents are not what was shown.
    async fn stage(
        &mut self,
        ops: Vec<Op>,
        merged: Merged,
    ) -> Result<Result<Batch, Problem>, Failure> {
        let prepared = self.host.run(move |replica| {
            let mut batch = replica.prepare(ops)?;
            for (item, _) in batch.needed().to_vec() {
                if let Some(bytes) = batch.path(item).and_then(|path| merged.get(path)) {
                    batch.provide(item, &mut &bytes[..], None)?;
                }
            }
            Ok(batch)
        });
        let batch = prepared.await.flatten();
        let batch = batch.map_err(Failure::local("stage on the host"))?;
        let batch = self.peer.fetch(batch).await.map_err(Failure::fatal)?;
        Ok(match batch.missing() {
            Some((path, text)) => Err(problem(path, text)),
            None => Ok(batch),
        })
    }

    fn undo(&self) -> Result<Undo, Failure> {
        if self.options.mode == Mode::ReadOnly {
            let detail = "the workspace is read-only";
            let error = Error::new(ErrorKind::Unsupported, "write to the host", detail);
            return Err(Failure::mild(error));
        }
        let folder = self.options.undo.as_deref().ok_or_else(|| {
            let detail = "there is no folder to keep what is replaced, see `Options::with_undo`";
            Failure::mild(Error::new(ErrorKind::Invalid, "apply", detail))
        })?;
        Ok(Undo::at(folder))
    }

    fn both<'a>(&'a self, host: &'a Tree, target: Side) -> Trees<'a> {
        Trees {
            host,
            guest: self.peer.tree(),
            rules: &self.rules,
            target,
        }
    }

    /// Returns what was agreed on and what the host has, under the names that both sides know.
    pub(super) async fn trees(&mut self) -> Result<(Arc<Tree>, Arc<Tree>), Failure> {
        let base = self.base.run(|base| base.tree().clone()).await;
        let host = self.host.run(|replica| replica.tree().clone()).await;
        let both = base.and_then(|base| Ok((base, host?)));
        let (base, host) = both.map_err(Failure::local("look at the trees"))?;
        let host = match self.folds().host.rewrites {
            true => Arc::new(as_written(&host, [&base, self.peer.tree()])),
            false => host,
        };
        Ok((base, host))
    }

    async fn read_host(&mut self, wishes: Vec<Wish>) -> Result<Merged, Failure> {
        let root = self.root.clone();
        let read = move || {
            let found = wishes.into_iter().filter_map(|(path, digest, size)| {
                let bytes = read_one(&root, &path, size).ok()?;
                (Digest::of(&bytes) == digest).then_some((path, bytes))
            });
            Ok(found.collect())
        };
        blocking(read)
            .await
            .map_err(Failure::local("read the host's files"))
    }

    async fn read_guest(&mut self, wishes: Vec<Wish>) -> Result<Merged, Failure> {
        let read = self.peer.contents(&wishes).await.map_err(Failure::fatal)?;
        let found = wishes
            .into_iter()
            .zip(read)
            .filter_map(|((path, digest, _), bytes)| {
                // What the guest sends is what it said it has, or it is not shown (`S35`).
                let bytes = bytes.filter(|bytes| Digest::of(bytes) == digest)?;
                Some((path, bytes))
            });
        Ok(found.collect())
    }
}

fn read_one(root: &Root, path: &RelPath, size: u64) -> io::Result<Vec<u8>> {
    let (file, _) = open_file(&root.parent_of(path)?, path.name())?;
    let mut bytes = Vec::new();
    // One more than there should be shows in the digest.
    io::Read::read_to_end(&mut io::Read::take(file, size + 1), &mut bytes)?;
    Ok(bytes)
}

/// Returns how many of the changes are read at once, at least one.
fn at_once(changes: &[Change]) -> usize {
    let mut bytes = 0;
    let fits = |change: &&Change| {
        bytes += weight(change);
        bytes <= AT_ONCE
    };
    changes.iter().take_while(fits).count().max(1)
}

fn wish(change: &Change, content: Option<(Digest, u64)>) -> Vec<Wish> {
    let wish = content.map(|(digest, size)| (change.path.clone(), digest, size));
    wish.into_iter().collect()
}

fn steps(ops: &[Op], base: &Tree) -> Vec<Step> {
    let step = |op: &Op| Step::new(op.clone(), base.entry(&op.path).cloned());
    ops.iter().map(step).collect()
}

/// Returns what the base said before the steps.
fn bases(steps: &[Step]) -> Vec<(RelPath, Option<Entry>)> {
    let base = |step: &Step| (step.op.path.clone(), step.base.clone());
    steps.iter().map(base).collect()
}

/// Returns what is neither as a step left it nor as it found it.
fn moved_on(steps: &[Step], host: &Tree) -> Vec<Problem> {
    let text = "it was changed on the host since it was applied";
    let moved = steps.iter().filter(|step| {
        let there = host.entry(&step.op.path);
        there != step.op.new.as_ref() && there != step.op.old.as_ref()
    });
    moved.map(|step| problem(&step.op.path, text)).collect()
}

/// Returns the steps whose outcome is there.
fn carried_out(steps: &[Step], host: &Tree) -> Vec<Step> {
    let there = |step: &&Step| host.entry(&step.op.path) == step.op.new.as_ref();
    let changed = left(steps, host);
    changed.iter().filter(there).cloned().collect()
}

/// Returns the steps that are still to be taken back: an earlier try may have come half-way.
fn left(steps: &[Step], host: &Tree) -> Vec<Step> {
    let left = |step: &&Step| host.entry(&step.op.path) != step.op.old.as_ref();
    steps.iter().filter(left).cloned().collect()
}

fn weight(change: &Change) -> u64 {
    match review::look(change) {
        Look::Texts { host, guest } => [host, guest].iter().flatten().map(|(_, size)| size).sum(),
        Look::Nothing | Look::Omitted => 0,
    }
}

fn refused(refused: Vec<Problem>) -> Outcome {
    let done = Vec::new();
    Outcome { done, refused }
}

fn problem(path: &RelPath, text: &str) -> Problem {
    Problem {
        side: Side::Host,
        path: path.clone(),
        text: text.to_owned(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
