//! Who is asked what, how often, and what cannot be approved.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::*;
use crate::{
    decide::{Ask, Road},
    policy::{EgressPolicy, RequestLine, RuleSet, Verdict},
    resolve::FixedResolver,
};

/// Answers once it has leave to, and counts.
#[derive(Debug)]
struct Scripted {
    answer: Answer,
    leave: Semaphore,
    asked: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    kept: Mutex<Vec<String>>,
}

impl Scripted {
    fn new(answer: Answer, leave: usize) -> Arc<Self> {
        Arc::new(Self {
            answer,
            leave: Semaphore::new(leave),
            asked: AtomicUsize::new(0),
            dropped: Arc::default(),
            kept: Mutex::default(),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Approver for Scripted {
    async fn ask(&self, _: &Question) -> Answer {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.dropped));
        self.leave.acquire().await.unwrap().forget();
        drop(counted);
        self.answer
    }

    fn keep(&self, rule: &Pattern) {
        self.kept.lock().unwrap().push(rule.to_string());
    }
}

async fn decide(policy: &dyn EgressPolicy, approvals: &Approvals, text: &str) -> Option<Denial> {
    let resolver = FixedResolver::new()
        .with("a.com".parse().unwrap(), ["8.8.8.8".parse().unwrap()])
        .with("inside.com".parse().unwrap(), ["10.0.0.1".parse().unwrap()]);
    let target = Target::parse(text).unwrap();
    let request = RequestLine::new("GET", "/");
    let road = Road {
        policy,
        resolver: &resolver,
        approvals: Some(approvals),
        lookups: None,
        sends_name: false,
    };
    let ask = Ask {
        target: &target,
        carriage: Carriage::Http,
        request: Some(&request),
    };
    let decision = road.decide(ask).await;
    assert!(matches!(
        decision.verdict,
        Verdict::Allow(_) | Verdict::Deny(_)
    ));
    decision.verdict.denial().cloned()
}

fn reason(denial: &Option<Denial>) -> Option<Reason> {
    denial.as_ref().map(|denial| denial.reason)
}

/// Lets the tasks that were spawned come as far as they can.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn once_is_asked_again_and_session_and_always_are_not() {
    for (answer, asked, kept) in [
        (Answer::Once, 2, 0),
        (Answer::Session, 1, 0),
        (Answer::Always, 1, 1),
    ] {
        let approver = Scripted::new(answer, 2);
        let approvals = Approvals::new(approver.clone());
        for _ in 0..2 {
            let denial = decide(&RuleSet::deny(), &approvals, "a.com:80").await;
            assert_eq!(denial, None, "{answer:?}");
        }
        assert_eq!(approver.asked(), asked, "{answer:?}");
        assert_eq!(approver.kept.lock().unwrap().len(), kept, "{answer:?}");
    }
}

#[tokio::test]
async fn always_hands_back_a_rule_that_allows_the_target() {
    let approver = Scripted::new(Answer::Always, 9);
    let approvals = Approvals::new(approver.clone());
    for target in [
        "a.com:80",
        "a.com:8080",
        "8.8.8.8:443",
        "[::ffff:8.8.8.8]:81",
        "[2600::1]:8443",
    ] {
        drop(decide(&RuleSet::deny(), &approvals, target).await);
    }
    let kept = approver.kept.lock().unwrap().clone();
    assert_eq!(
        kept,
        [
            "a.com",
            "a.com:8080",
            "8.8.8.8",
            "8.8.8.8:81",
            "[2600::1]:8443"
        ]
    );
    for rule in kept {
        assert!(RuleSet::deny().allow(&rule).is_ok(), "{rule}");
    }
}

#[tokio::test]
async fn a_no_holds_once_or_for_the_session_until_it_is_forgotten() {
    for (answer, asked) in [(Answer::Deny, 2), (Answer::DenySession, 1)] {
        let approver = Scripted::new(answer, 9);
        let approvals = Approvals::new(approver.clone());
        for _ in 0..2 {
            let denial = decide(&RuleSet::deny(), &approvals, "a.com:80").await;
            assert_eq!(reason(&denial), Some(Reason::NotApproved));
            assert_eq!(denial.unwrap().remedy.unwrap(), "allow `a.com`");
        }
        assert_eq!(approver.asked(), asked, "{answer:?}");
        approvals.forget();
        drop(decide(&RuleSet::deny(), &approvals, "a.com:80").await);
        assert_eq!(approver.asked(), asked + 1, "{answer:?}");
    }
}

#[tokio::test]
async fn blocks_limits_and_the_floor_are_never_asked_about() {
    let approver = Scripted::new(Answer::Always, 9);
    let approvals = Approvals::new(approver.clone());
    let rules = RuleSet::from_toml(
        "block = ['a.com']\nlimit = ['a.com', 'b.com', '10.0.0.0/8:80']\nallow = [{ host = 'b.com', methods = ['PUT'] }]",
    );
    let rules = rules.unwrap();
    for (target, expected) in [
        ("a.com:80", Reason::Blocked),
        ("c.com:80", Reason::Limit),
        ("localhost:80", Reason::Localhost),
        ("b.com:80", Reason::Request),
        ("10.0.0.1:80", Reason::NotAllowed),
    ] {
        let denial = decide(&rules, &approvals, target).await;
        assert_eq!(reason(&denial), Some(expected), "{target}");
    }
    for address in [
        "10.0.0.1:80",
        "169.254.169.254:80",
        "127.0.0.1:8080",
        "[::1]:80",
    ] {
        let denial = decide(&RuleSet::deny(), &approvals, address).await;
        assert_eq!(reason(&denial), Some(Reason::NotAllowed), "{address}");
    }
    assert_eq!(approver.asked(), 0);
    // A name's address is known only afterwards; the yes does not help it.
    let denial = decide(&RuleSet::deny(), &approvals, "inside.com:80").await;
    assert!(matches!(reason(&denial), Some(Reason::Address(_))));
    assert_eq!(approver.asked(), 1);
}

#[tokio::test]
async fn those_who_wait_for_one_target_share_a_question() {
    let approver = Scripted::new(Answer::Once, 0);
    let approvals = Approvals::new(approver.clone());
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let approvals = approvals.clone();
            tokio::spawn(async move { decide(&RuleSet::deny(), &approvals, "a.com:80").await })
        })
        .collect();
    settle().await;
    assert_eq!(approver.asked(), 1);
    approver.leave.add_permits(1);
    for one in waiting {
        assert_eq!(one.await.unwrap(), None);
    }
    assert_eq!(approver.asked(), 1);
    assert_eq!(approvals.0.book().waiting.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn e60_no_answer_in_time_is_a_denial() {
    let approver = Scripted::new(Answer::Always, 0);
    let approvals = Approvals::with_limits(approver.clone(), Duration::from_secs(60), 1);
    let started = tokio::time::Instant::now();
    let denial = decide(&RuleSet::deny(), &approvals, "a.com:80").await;
    assert_eq!(reason(&denial), Some(Reason::NotApproved));
    assert_eq!(started.elapsed(), Duration::from_secs(60));
    assert!(approver.kept.lock().unwrap().is_empty());
    assert_eq!(
        approver.dropped.load(Ordering::SeqCst),
        1,
        "the question is let go"
    );
}

#[tokio::test]
async fn a_question_too_many_is_a_denial_at_once() {
    let approver = Scripted::new(Answer::Once, 0);
    let approvals = Approvals::with_limits(approver.clone(), Duration::from_secs(60), 2);
    for port in [81, 82] {
        let approvals = approvals.clone();
        drop(tokio::spawn(async move {
            decide(&RuleSet::deny(), &approvals, &format!("a.com:{port}")).await
        }));
    }
    settle().await;
    let denial = decide(&RuleSet::deny(), &approvals, "a.com:83").await;
    assert_eq!(reason(&denial), Some(Reason::NotApproved));
    assert_eq!(approver.asked(), 2);
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_any_more_is_dropped() {
    let approver = Scripted::new(Answer::Session, 0);
    let approvals = Approvals::new(approver.clone());
    let there = approvals.clone();
    let asking = tokio::spawn(async move { decide(&RuleSet::deny(), &there, "a.com:80").await });
    settle().await;
    assert_eq!(approver.asked(), 1);
    asking.abort();
    settle().await;
    assert_eq!(approver.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(approvals.0.book().waiting.len(), 0);
    // And asked anew by the next one.
    approver.leave.add_permits(1);
    assert_eq!(decide(&RuleSet::deny(), &approvals, "a.com:80").await, None);
}

#[derive(Debug)]
struct Broken;

#[async_trait]
impl Approver for Broken {
    async fn ask(&self, _: &Question) -> Answer {
        panic!("an approver of somebody else's making");
    }

    fn keep(&self, _: &Pattern) {}
}

#[tokio::test]
async fn an_approver_that_panics_denies() {
    let approvals = Approvals::new(Arc::new(Broken));
    let denial = decide(&RuleSet::deny(), &approvals, "a.com:80").await;
    assert_eq!(reason(&denial), Some(Reason::NotApproved));
    assert_eq!(approvals.0.book().waiting.len(), 0);
}
