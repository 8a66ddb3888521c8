//! When the stages of a start were reached, as the libraries' own diagnostics say.
//!
//! A subscriber for `tracing` that keeps the message of every event with the time since the process
//! began to look. Nothing has to be built into the libraries for a benchmark's sake.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// Collects marks. Clones share them.
#[derive(Debug, Clone)]
pub struct Marks {
    start: Instant,
    seen: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Marks {
    /// Begins to look, for the whole process.
    ///
    /// # Panics
    ///
    /// When the process has a subscriber already.
    pub fn install() -> Self {
        let marks = Self {
            start: Instant::now(),
            seen: Arc::default(),
        };
        tracing::subscriber::set_global_default(marks.clone())
            .expect("a benchmark installs its one subscriber first thing");
        marks
    }

    /// Adds a mark of one's own.
    pub fn add(&self, name: impl Into<String>) {
        let at = self.start.elapsed();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push((name.into(), at));
    }

    /// Returns when a mark was first set.
    pub fn at(&self, name: &str) -> Option<Duration> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().find(|(one, _)| one == name).map(|(_, at)| *at)
    }
}

impl Subscriber for Marks {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("sandbox")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.add(message.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
