//! One cycle: look at both sides, plan, move contents, apply, record.
//!
//! The order carries the promise that nothing is lost: nothing is written before the plan passed the
//! [safety checks](crate::safety); contents are staged and durable before the first rename; the base is
//! recorded after everything it says is durable on both sides, and says only what was seen to succeed. A
//! cycle that ends anywhere in between leaves a base that is too old, and the next cycle finds that the
//! sides agree already.

use std::io;
use std::sync::Arc;

use crate::apply::Refusal;
use crate::base::Base;
use crate::error::Error;
use crate::fold::Folds;
use crate::options::Options;
use crate::path::RelPath;
use crate::peer::Peer;
use crate::reconcile::{Input, Op, Plan, reconcile, reconcile_within};
use crate::replica::{Batch, Replica, Worker};
use crate::report::{Change, Problem, Report, Side, Untracked};
use crate::root::Root;
use crate::rules::Rules;
use crate::safety::{self, Halt, Resolution};
use crate::scope::Scope;
use crate::tree::{Entry, Item, MANY};

mod review;

pub(crate) use review::Wish;

/// Everything that a cycle works on.
pub(crate) struct Engine {
    pub(crate) root: Arc<Root>,
    pub(crate) host: Worker<Replica>,
    pub(crate) peer: Peer,
    pub(crate) base: Worker<Base>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) options: Options,
    pub(crate) scope: Scope,
    /// So much was looked at or planned that memory is to be handed back.
    pub(crate) much: bool,
    /// Nothing is kept on the host that an earlier session received.
    pub(crate) settled: bool,
}

/// How a cycle ended, if it did not fail.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done(Report),
    /// Nothing was written.
    Halted(Halt),
}

/// Why a cycle failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The peer is not to be spoken to again.
    pub(crate) fatal: bool,
}

impl Failure {
    /// A failure that leaves the session as it was.
    pub(crate) fn mild(error: Error) -> Self {
        let fatal = false;
        Self { error, fatal }
    }

    fn fatal(error: Error) -> Self {
        Self { error, fatal: true }
    }

    /// A failure of our own side, between two questions to the peer.
    fn local(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self {
            error: Error::io(operation, error),
            fatal: false,
        }
    }
}

/// What was planned, on the trees that it was planned for.
struct Planned {
    plan: Plan,
    untracked: Vec<Untracked>,
}

impl Engine {
    /// Runs one cycle, which is `thorough` if it trusts neither watches nor what it found before. Not
    /// cancel safe: dropped half-way, the peer is in the middle of an answer.
    pub(crate) async fn cycle(
        &mut self,
        resolution: Option<Resolution>,
        thorough: bool,
    ) -> Result<Outcome, Failure> {
        if thorough || resolution.is_some() {
            self.scope.widen();
        }
        if let Some(halt) = self.scan(thorough).await? {
            return Ok(Outcome::Halted(halt));
        }
        let planned = match self.plan(resolution).await? {
            Ok(planned) => planned,
            Err(halt) => return Ok(Outcome::Halted(halt)),
        };
        let Plan {
            to_host,
            mut to_guest,
            copies,
            mut agreed,
            conflicts,
            overruled,
            held,
        } = planned.plan;
        let mut report = Report {
            conflicts,
            overruled,
            held,
            untracked: planned.untracked,
            ..Report::default()
        };

        let batch = self.fetch(to_host).await?;
        let own: Vec<RelPath> = copies.iter().map(|copy| copy.path.clone()).collect();
        to_guest.extend(copies);
        if !to_guest.is_empty() {
            let (root, progress) = (self.root.clone(), &self.options.progress);
            let answers = self.peer.carry_out(&to_guest, root, progress).await;
            let answers = answers.map_err(Failure::fatal)?;
            report.to_guest = sort(
                Side::Guest,
                to_guest,
                answers,
                &mut agreed,
                &mut report.problems,
            );
            agreed.retain(|(path, _)| !own.contains(path));
        }
        if let Some(batch) = batch {
            let (ops, answers) = self.apply(batch).await?;
            report.to_host = sort(Side::Host, ops, answers, &mut agreed, &mut report.problems);
        }

        self.record(agreed).await?;
        self.scope.settle(&report);
        self.settle().await?;
        Ok(Outcome::Done(report))
    }

    /// Looks at both sides.
    pub(crate) async fn scan(&mut self, thorough: bool) -> Result<Option<Halt>, Failure> {
        let base = self.base.run(|base| base.tree().clone()).await;
        let base = base.map_err(Failure::local("look at the base"))?;
        let scan = self.host.run(move |replica| replica.scan(thorough));
        let (host, guest) = tokio::join!(scan, self.peer.scan(thorough, &base));
        drop(base);
        let guest = guest.map_err(Failure::fatal)?;
        self.scope.add(guest.iter().flatten().cloned());
        let mut changed = match host.flatten() {
            Ok(changed) => changed,
            Err(error) => {
                // What it had found already is in the tree, and nobody was told.
                self.scope.widen();
                return match error.kind() {
                    io::ErrorKind::NotFound => Ok(Some(Halt::RootReplaced { side: Side::Host })),
                    _ => Err(Failure::local("scan the host's folder")(error)),
                };
            }
        };
        self.scope.add(changed.iter().cloned());
        let Some(guest) = guest else {
            return Ok(Some(Halt::RootReplaced { side: Side::Guest }));
        };
        changed.extend(guest);
        self.much |= changed.len() > MANY;
        self.share(changed).await?;
        Ok(None)
    }

    /// Moves what all trees hold to memory of its own, so that what the work before took can be handed back.
    pub(crate) async fn compact(&mut self) -> Result<(), Failure> {
        let compact = |replica: &mut Replica| {
            replica.compact();
            replica.tree().clone()
        };
        let host = self.host.run(compact).await;
        let host = host.map_err(Failure::local("look at the host's tree"))?;
        self.peer.share_all(&host);
        let shared = self.base.run(move |base| base.share_all(&host)).await;
        shared.map_err(Failure::local("look at the base"))
    }

    /// Has all trees hold once what they agree on.
    async fn share(&mut self, changed: Vec<RelPath>) -> Result<(), Failure> {
        if changed.is_empty() {
            return Ok(());
        }
        let host = self.host.run(|replica| replica.tree().clone()).await;
        let host = host.map_err(Failure::local("look at the host's tree"))?;
        self.peer.share(&host, &changed);
        let share = move |base: &mut Base| base.share(&host, &changed);
        let shared = self.base.run(share).await;
        shared.map_err(Failure::local("look at the base"))
    }

    /// Records what both sides agree on.
    pub(crate) async fn record(
        &mut self,
        agreed: Vec<(RelPath, Option<Entry>)>,
    ) -> Result<(), Failure> {
        let host = self.host.run(|replica| replica.tree().clone()).await;
        let host = host.map_err(Failure::local("look at the host's tree"))?;
        let trees = [&*host, self.peer.tree()];
        let one = |(path, entry): (RelPath, Option<Entry>)| {
            let entry = entry.ok_or_else(|| path.clone())?;
            let item = trees.into_iter().find_map(|tree| tree.same(&path, &entry));
            Ok(item.unwrap_or_else(|| Item::new(path, entry)))
        };
        let agreed = agreed.into_iter().map(one).collect();
        let record = move |base: &mut Base| base.record(agreed);
        let recorded = self.base.run(record).await.flatten();
        recorded.map_err(Failure::local("record the base"))
    }

    /// Returns which names are one on which side.
    pub(crate) fn folds(&self) -> Folds {
        Folds {
            host: self.root.names().folding,
            guest: self.peer.folding(),
        }
    }

    async fn plan(
        &mut self,
        resolution: Option<Resolution>,
    ) -> Result<Result<Planned, Halt>, Failure> {
        let (mut base, host) = self.trees().await?;
        if self.folds().host.rewrites {
            // What was looked at is not called there as it is in the plan.
            self.scope.widen();
        }
        let guest = self.peer.tree();
        if resolution == Some(Resolution::Restore) {
            safety::forget_deleted(Arc::make_mut(&mut base), [&host, guest]);
        }
        let input = Input {
            base: &base,
            host: &host,
            guest,
            rules: &self.rules,
            mode: self.options.mode,
            folds: self.folds(),
        };
        let plan = match self.scope.paths() {
            None => reconcile(input),
            Some(changed) => reconcile_within(input, changed),
        };
        self.scope.list_untracked(&host, guest);
        let halt = match resolution {
            Some(Resolution::Propagate) => None,
            _ => safety::check(&base, [&host, guest], &plan, self.options.thresholds),
        };
        Ok(match halt {
            Some(halt) => Err(halt),
            None => Ok(Planned {
                plan,
                untracked: self.scope.untracked(),
            }),
        })
    }

    /// Stages what is to be changed on the host.
    async fn fetch(&mut self, ops: Vec<Op>) -> Result<Option<Batch>, Failure> {
        if ops.is_empty() {
            return Ok(None);
        }
        let batch = self
            .host
            .run(move |replica| replica.prepare(ops))
            .await
            .flatten();
        let batch = batch.map_err(Failure::local("stage on the host"))?;
        let mut batch = self.peer.fetch(batch).await.map_err(Failure::fatal)?;
        // The guest may go away before it is applied.
        batch.leave(true);
        Ok(Some(batch))
    }

    /// Has the host's side forget what earlier sessions received: a whole cycle had no use for it.
    async fn settle(&mut self) -> Result<(), Failure> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        let settled = self.host.run(Replica::settle).await;
        settled.map_err(Failure::local("clear the host's staging"))
    }

    /// Carries out what is staged for the host, in words where something stood in the way.
    async fn apply(&mut self, batch: Batch) -> Result<(Vec<Op>, Vec<Result<(), String>>), Failure> {
        let apply = move |replica: &mut Replica| {
            let (ops, outcomes) = batch.apply()?;
            replica.made(&ops, &outcomes);
            io::Result::Ok((ops, outcomes))
        };
        let applied = self.host.run(apply).await.flatten();
        let (ops, outcomes) = applied.map_err(Failure::local("apply on the host"))?;
        let in_words = |outcome: Result<_, Refusal>| match outcome {
            Ok(_) => Ok(()),
            Err(why) => Err(why.to_string()),
        };
        Ok((ops, outcomes.into_iter().map(in_words).collect()))
    }
}

/// Sorts operations into what was done, which becomes the base, and what was not.
fn sort(
    side: Side,
    ops: Vec<Op>,
    answers: impl IntoIterator<Item = Result<(), String>>,
    agreed: &mut Vec<(RelPath, Option<Entry>)>,
    problems: &mut Vec<Problem>,
) -> Vec<Change> {
    let mut changes = Vec::with_capacity(ops.len());
    for (Op { path, old, new }, answer) in ops.into_iter().zip(answers) {
        match answer {
            Ok(()) => {
                agreed.push((path.clone(), new.clone()));
                changes.push(Change { path, old, new });
            }
            Err(text) => problems.push(Problem { side, path, text }),
        }
    }
    changes
}
