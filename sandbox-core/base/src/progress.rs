//! Steps of something that takes long, told to whoever shows them.

use std::fmt::{self, Debug};
use std::sync::Arc;

/// Where steps are reported to. Cheap to clone; called from any thread.
pub struct Progress<S>(Option<Arc<dyn Fn(S) + Send + Sync>>);

impl<S: Debug + 'static> Progress<S> {
    /// Reports to `callback`, which must not block.
    pub fn new(callback: impl Fn(S) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Reports one step.
    pub fn report(&self, step: S) {
        tracing::debug!(?step, "progress");
        if let Some(callback) = &self.0 {
            callback(step);
        }
    }

    /// Returns where a part of the work reports its own steps to.
    pub fn part<T: Debug + 'static>(
        &self,
        whole: impl Fn(T) -> S + Send + Sync + 'static,
    ) -> Progress<T> {
        Progress(self.0.clone().map(|callback| {
            let part: Arc<dyn Fn(T) + Send + Sync> = Arc::new(move |step| callback(whole(step)));
            part
        }))
    }
}

impl<S> Clone for Progress<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Progress<S> {
    fn default() -> Self {
        Self(None)
    }
}

impl<S> Debug for Progress<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.0.is_some() {
            "callback"
        } else {
            "silent"
        };
        f.debug_tuple("Progress").field(&name).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_part_reports_to_the_whole() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let whole = Progress::new(move |step: String| listener.lock().unwrap().push(step));
        whole.part(|count: u32| format!("{count} done")).report(3);
        assert_eq!(*told.lock().unwrap(), ["3 done"]);
        Progress::<String>::silent()
            .part(|(): ()| String::new())
            .report(());
    }
}
