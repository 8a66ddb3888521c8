//! The tasks of one inspected connection: they end with it.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// Where hyper puts what it runs beside a connection. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        drop(tasks.spawn(future));
    }
}

/// Ends all tasks when it is dropped: they hold clones of [`Tasks`] themselves.
#[derive(Debug)]
pub(super) struct Ends(pub(super) Tasks);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}
