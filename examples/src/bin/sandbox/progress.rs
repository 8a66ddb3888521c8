//! What a person who waits sees: a line with what is being done, once it takes longer than a second.
//! Nothing where standard error is not a terminal.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sandbox_core::{Progress, Step, sync, vm};
use tokio::task::JoinHandle;

use crate::output::is_for_a_person;

/// What is over sooner is not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the line moves.
const TICK: Duration = Duration::from_millis(120);

/// A line on the terminal for as long as this lives.
#[derive(Debug)]
pub(crate) struct Waiting {
    line: ProgressBar,
    showing: Option<JoinHandle<()>>,
}

impl Waiting {
    /// Begins to wait for something, in words such as "starting the sandbox".
    pub(crate) fn on(what: &'static str) -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
            .with_style(ProgressStyle::default_spinner());
        line.set_message(what);
        let showing = is_for_a_person().then(|| {
            let line = line.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                line.set_draw_target(ProgressDrawTarget::stderr());
                line.enable_steady_tick(TICK);
            })
        });
        Self { line, showing }
    }

    /// Returns where the libraries report their steps to.
    pub(crate) fn progress(&self) -> Progress {
        let line = self.line.clone();
        Progress::new(move |step| line.set_message(words(&step)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(showing) = &self.showing {
            showing.abort();
        }
        self.line.finish_and_clear();
    }
}

fn words(step: &Step) -> String {
    match step {
        Step::Machine(step) => of_machine(step),
        Step::Workspace(sync::Step::Sending(copied)) => format!(
            "copying the workspace: {} of {} files, {} of {}",
            HumanCount(copied.files),
            HumanCount(copied.of_files),
            HumanBytes(copied.bytes),
            HumanBytes(copied.of_bytes)
        ),
        _ => "working".to_owned(),
    }
}

fn of_machine(step: &vm::Step) -> String {
    use vm::Step;
    match step {
        Step::Downloading { package } => format!("downloading {package}"),
        Step::UpdatingPackageLists => "fetching the package lists".to_owned(),
        Step::Unpacking { package } => format!("unpacking {package}"),
        Step::Bootstrapping { message } => {
            format!(
                "making the default image: {}",
                crate::failure::one_line(message)
            )
        }
        Step::WritingImage { entries, bytes } => format!(
            "writing the image: {} entries, {}",
            HumanCount(*entries),
            HumanBytes(*bytes)
        ),
        _ => "working".to_owned(),
    }
}
