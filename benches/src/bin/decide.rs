//! What does a decision cost, and does it cost more with more rules?
//!
//! Ours: a policy's answer, for 10, 1,000 and 100,000 rules of all forms: to name and port alone (what every lookup
//! and connection costs first), to a whole tunnel with its address and TLS name, and by three layers that share the
//! rules. The floor: one lookup of the same name in a hash table of as many names. "spread" asks for as many
//! different names as there are rules, so that no cache holds them all; the others for at most 1,024.

#![allow(clippy::print_stderr, reason = "it is a program")]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use sandbox_benches::Result;
use sandbox_benches::options::Options;
use sandbox_benches::report::{self, Aim, Row};
use sandbox_core::net::policy::{
    Candidate, Carriage, EgressPolicy, Facts, Hello, Host, HostName, Layers, RuleSet, Target,
};

const SIZES: [usize; 3] = [10, 1_000, 100_000];

/// How many different names are asked for, where no more is said.
const NAMES: usize = 1024;

/// How many decisions are timed together.
const BATCH: usize = 100_000;

/// A decision takes less than this at 1,000 rules, in nanoseconds.
const MOST: f64 = 1000.0;

fn main() -> Result<()> {
    let options = Options::from_arguments(std::env::args().skip(1), 15)?;
    let mut rows = Vec::new();
    let mut growth = Vec::new();
    for size in SIZES {
        let bench = Bench::new(size)?;
        let mut sized = bench.rows(size);
        for round in 0..=options.rounds {
            let measured = bench.round();
            // The first round warms up.
            if round > 0 {
                for (row, (floor, ours)) in sized.iter_mut().zip(measured) {
                    row.floor.push(floor);
                    row.ours.push(ours);
                }
            }
        }
        eprintln!("{size} rules");
        if size >= 1_000 {
            growth.push(sized.clone());
        }
        rows.extend(sized);
    }
    let [small, large] = &growth[..] else {
        return Err("two sizes are compared".into());
    };
    for (small, large) in small.iter().zip(large) {
        let name = small.name.split(',').next().unwrap_or_default();
        let mut row = Row::new(
            format!("{name}, 100000 over 1000 rules"),
            "ns",
            Aim::AtMost(2.0),
        );
        row.floor.clone_from(&small.ours);
        row.ours.clone_from(&large.ours);
        rows.push(row);
    }
    report::print("A decision", &rows, options.json);
    Ok(())
}

/// A policy with what is asked of it.
struct Bench {
    rules: RuleSet,
    layers: Layers,
    table: HashMap<HostName, usize>,
    few: Vec<Question>,
    many: Vec<Question>,
}

struct Question {
    target: Target,
    name: HostName,
    hello: Hello,
    candidates: [Candidate; 1],
}

impl Bench {
    fn new(size: usize) -> Result<Self> {
        let mut rules = RuleSet::deny();
        let mut tiers = [RuleSet::deny(), RuleSet::deny(), RuleSet::deny()];
        let mut table = HashMap::new();
        let mut many = Vec::new();
        for number in 0..size {
            let (pattern, asked) = rule(number);
            let block = number % 10 == 9;
            let tier = &mut tiers[number % 3];
            rules = add(rules, &pattern, block)?;
            *tier = add(std::mem::take(tier), &pattern, block)?;
            let question = Question::new(&asked)?;
            table.insert(question.name.clone(), number);
            many.push(question);
        }
        let step = (size / NAMES).max(1);
        let few = (0..size).step_by(step).take(NAMES);
        let few = few.map(|number| Question::new(&rule(number).1));
        let [organization, user, sandbox] = tiers;
        Ok(Self {
            rules,
            layers: Layers::new()
                .organization(organization)
                .user(user)
                .sandbox(sandbox),
            table,
            few: few.collect::<Result<_>>()?,
            many,
        })
    }

    fn rows(&self, size: usize) -> Vec<Row> {
        let aim = match size {
            1_000 => Aim::Below(MOST),
            _ => Aim::None,
        };
        ["name and port", "whole tunnel", "three layers", "spread"]
            .map(|what| Row::new(format!("{what}, {size} rules"), "ns", aim))
            .into()
    }

    /// Nanoseconds of floor and policy for each row.
    fn round(&self) -> [(f64, f64); 4] {
        let floor = || {
            timed(&self.few, |question| {
                self.table.contains_key(&question.name)
            })
        };
        [
            (
                floor(),
                timed(&self.few, |question| first(&self.rules, question)),
            ),
            (
                floor(),
                timed(&self.few, |question| whole(&self.rules, question)),
            ),
            (
                floor(),
                timed(&self.few, |question| first(&self.layers, question)),
            ),
            (
                timed(&self.many, |question| {
                    self.table.contains_key(&question.name)
                }),
                timed(&self.many, |question| first(&self.rules, question)),
            ),
        ]
    }
}

impl Question {
    fn new(name: &str) -> Result<Self> {
        let name: HostName = name.parse()?;
        Ok(Self {
            target: Target::new(Host::Name(name.clone()), 443),
            hello: Hello::Named(name.clone()),
            candidates: [Candidate::new("8.8.8.8".parse()?, false)],
            name,
        })
    }
}

/// Returns one rule of many and a name to ask for: half of the names have no rule.
fn rule(number: usize) -> (String, String) {
    let host = format!("host{number}.example{}.com", number % 97);
    let pattern = match number % 5 {
        0 => format!("*.{host}"),
        1 => format!("**.{host}"),
        _ => host.clone(),
    };
    let asked = match number % 4 {
        0 => format!("a.{host}"),
        1 => host,
        2 => format!("other.{host}"),
        _ => format!("absent{number}.example.org"),
    };
    (pattern, asked)
}

fn add(rules: RuleSet, pattern: &str, block: bool) -> Result<RuleSet> {
    Ok(match block {
        true => rules.block(pattern)?,
        false => rules.allow(pattern)?,
    })
}

fn first(policy: &impl EgressPolicy, question: &Question) -> bool {
    let facts = Facts::new(&question.target, Carriage::Tunnel);
    policy.judge(black_box(&facts)).denial().is_none()
}

fn whole(policy: &impl EgressPolicy, question: &Question) -> bool {
    let facts = Facts::new(&question.target, Carriage::Tunnel)
        .with_candidates(&question.candidates)
        .with_hello(&question.hello);
    policy.judge(black_box(&facts)).is_allowed()
}

/// Nanoseconds per question.
fn timed(questions: &[Question], ask: impl Fn(&Question) -> bool) -> f64 {
    // Not in the order in which they were made, which is that of memory.
    let step = 7919;
    let mut at = 0;
    let mut yes = 0;
    let start = Instant::now();
    for _ in 0..BATCH {
        at = (at + step) % questions.len();
        yes += usize::from(ask(black_box(&questions[at])));
    }
    let took = start.elapsed();
    black_box(yes);
    took.as_secs_f64() * 1e9 / BATCH as f64
}
