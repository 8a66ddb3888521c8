//! Asking somebody about what no rule allows, beside the pure decision.
//!
//! A policy's *implicit* denials ([`Denial::is_implicit`]) can be put to an [`Approver`]: a person, or a program
//! that knows more. What a yes changes is one fact, [`Facts::approved`](crate::policy::Facts::approved), with which
//! the policy judges anew: it stands for a rule that allows the target, so blocks, limits and the address floor hold
//! as ever, and what they would deny anyway is not asked about.
//!
//! ```text
//! judge ──► implicit denial ──► would approval help? ──► desk: settled? asked already? room? ──► Approver::ask
//!                                       │ no                     │                                   │
//!                                       ▼                        ▼                                   ▼
//!                                     denial              that answer, too                  judge, with approval
//! ```
//!
//! Connections to one target that wait at the same time share one question and its answer. No answer in time is a
//! denial, and so is a question too many; a question that nobody waits for any more is dropped.
//! [`check`](crate::check) never asks.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::policy::{Carriage, Denial, Pattern, Reason, Target, remedy_pattern};

/// How many targets are remembered for the session; an answer beyond holds once.
const MAX_SETTLED: usize = 4096;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// Where the connection is to go. The guest chose the name: show it as untrusted text.
    pub target: Target,
    /// How its bytes are to travel.
    pub carriage: Carriage,
    /// What the rules say so far.
    pub denial: Denial,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// Yes, for the connections that wait now.
    Once,
    /// Yes, and for later connections to the same host and port as long as these [`Approvals`] live.
    Session,
    /// As [`Session`](Self::Session), and [`Approver::keep`] is told the rule to write down.
    Always,
    /// No, for the connections that wait now.
    Deny,
    /// No, and do not ask again as long as these [`Approvals`] live.
    DenySession,
}

/// Somebody who can be asked.
#[async_trait]
pub trait Approver: fmt::Debug + Send + Sync + 'static {
    /// Answers a question.
    ///
    /// The future is dropped when the time is over or nobody waits any more; the answer then is a denial. It runs
    /// on the runtime's threads, so it must not block them.
    async fn ask(&self, question: &Question) -> Answer;

    /// Takes the rule that an [`Answer::Always`] stands for, to add it to what the embedder writes down.
    ///
    /// Called once per answer, before the waiting connections go on. It must not block.
    fn keep(&self, rule: &Pattern);
}

/// The desk where questions wait. Cheap to clone; clones are the same desk.
#[derive(Clone)]
pub struct Approvals(Arc<Desk>);

struct Desk {
    approver: Arc<dyn Approver>,
    timeout: Duration,
    places: usize,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    settled: HashMap<Target, bool>,
    waiting: HashMap<Target, Arc<Line>>,
}

/// Those who wait for one answer.
type Line = watch::Sender<Option<Outcome>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered(Answer),
    TooLate,
}

impl Approvals {
    /// A desk before somebody who can be asked: 60 seconds for an answer, 16 questions at once.
    pub fn new(approver: Arc<dyn Approver>) -> Self {
        Self::with_limits(approver, Duration::from_secs(60), 16)
    }

    /// A desk with a bound on the time for an answer and on the questions that are open at once.
    pub fn with_limits(approver: Arc<dyn Approver>, timeout: Duration, places: usize) -> Self {
        Self(Arc::new(Desk {
            approver,
            timeout,
            places,
            book: Mutex::default(),
        }))
    }

    /// Forgets what was answered for the session, for yes and for no. Open questions stay open.
    pub fn forget(&self) {
        self.0.book().settled.clear();
    }

    /// Asks, or waits for the answer to the same question.
    pub(crate) async fn ask(&self, question: Question) -> Result<(), Denial> {
        let denial = question.denial.clone();
        let no = |text: &'static str| {
            let no = Denial::new(Reason::NotApproved, text);
            Err(match denial.remedy.clone() {
                Some(remedy) => no.with_remedy(remedy),
                None => no,
            })
        };
        let mut line = match self.join(question) {
            Place::Settled(true) => return Ok(()),
            Place::Settled(false) => return no("approval was refused for the session"),
            Place::Full => return no("too many questions wait for an answer already"),
            Place::Waiting(line) => line,
        };
        let outcome = match line.wait_for(Option::is_some).await {
            Ok(outcome) => *outcome,
            Err(_) => None,
        };
        match outcome {
            Some(Outcome::Answered(Answer::Once | Answer::Session | Answer::Always)) => Ok(()),
            Some(Outcome::Answered(Answer::Deny | Answer::DenySession)) => {
                no("approval was refused")
            }
            Some(Outcome::TooLate) => no("nobody approved it in time"),
            None => no("the approver failed"),
        }
    }

    /// Takes a place in the line for a target; the first one there sends the question off.
    fn join(&self, question: Question) -> Place {
        let mut book = self.0.book();
        if let Some(yes) = book.settled.get(&question.target) {
            return Place::Settled(*yes);
        }
        if let Some(line) = book.waiting.get(&question.target) {
            return Place::Waiting(line.subscribe());
        }
        if book.waiting.len() >= self.0.places {
            return Place::Full;
        }
        let (line, place) = watch::channel(None);
        let line = Arc::new(line);
        book.waiting
            .insert(question.target.clone(), Arc::clone(&line));
        let errand = Errand {
            desk: Arc::clone(&self.0),
            target: question.target.clone(),
            line,
        };
        drop(tokio::spawn(errand.run(question)));
        Place::Waiting(place)
    }
}

enum Place {
    Settled(bool),
    Waiting(watch::Receiver<Option<Outcome>>),
    Full,
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One question on its way. Dropping it, by a panic of the approver too, closes the line.
struct Errand {
    desk: Arc<Desk>,
    target: Target,
    line: Arc<Line>,
}

impl Errand {
    async fn run(self, question: Question) {
        let asked = tokio::time::timeout(self.desk.timeout, self.desk.approver.ask(&question));
        tokio::pin!(asked);
        let outcome = loop {
            tokio::select! {
                answer = &mut asked => {
                    break answer.map_or(Outcome::TooLate, Outcome::Answered);
                }
                () = self.line.closed() => if self.leave_if_alone() {
                    return;
                },
            }
        };
        if let Outcome::Answered(answer) = outcome {
            self.settle(answer);
        }
        self.line.send_replace(Some(outcome));
    }

    /// Ends the question if nobody waits. Looked at with the book open, so that nobody joins in between.
    fn leave_if_alone(&self) -> bool {
        let mut book = self.desk.book();
        let alone = self.line.receiver_count() == 0;
        if alone {
            book.remove(self);
        }
        alone
    }

    fn settle(&self, answer: Answer) {
        let kept = match answer {
            Answer::Session | Answer::Always => Some(true),
            Answer::DenySession => Some(false),
            Answer::Once | Answer::Deny => None,
        };
        let mut book = self.desk.book();
        if let Some(yes) = kept.filter(|_| book.settled.len() < MAX_SETTLED) {
            book.settled.insert(self.target.clone(), yes);
        }
        drop(book);
        if answer == Answer::Always {
            match Pattern::parse(&remedy_pattern(&self.target)) {
                Ok(rule) => self.desk.approver.keep(&rule),
                Err(error) => tracing::warn!(%error, "an approved target has no rule"),
            }
        }
    }
}

impl Book {
    /// Removes the line of an errand, not one that came after it.
    fn remove(&mut self, errand: &Errand) {
        let present = self.waiting.get(&errand.target);
        if present.is_some_and(|line| Arc::ptr_eq(line, &errand.line)) {
            self.waiting.remove(&errand.target);
        }
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.desk.book().remove(self);
    }
}

impl fmt::Debug for Approvals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = self.0.book();
        f.debug_struct("Approvals")
            .field("approver", &self.0.approver)
            .field("waiting", &book.waiting.len())
            .field("settled", &book.settled.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
