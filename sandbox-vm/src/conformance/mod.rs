//! The suite that every backend passes: what a command, a terminal and a file inside must be like.
//!
//! One machine is started for all checks, and ended by the last one. Each check has a name, a time limit,
//! and one of three findings; a check that a backend's declared
//! [`Capabilities`](crate::hypervisor::Capabilities) leave out is skipped with its reason, never silently.
//!
//! ```no_run
//! # async fn f(backend: impl sandbox_vm::Hypervisor, spec: sandbox_vm::hypervisor::MachineSpec) {
//! use sandbox_vm::conformance::{Options, run};
//! let report = run(&backend, &spec, &Options::default()).await.unwrap();
//! assert!(report.passed(), "{report}");
//! # }
//! ```
//!
//! The root needs a POSIX shell, the usual small programs (GNU coreutils or the like), `setsid`, `diff`,
//! and a user `nobody`. What the suite does not look at: how strong a wall is, and how fast.

mod arguments;
mod ending;
mod environment;
mod files;
mod load;
mod machine;
mod report;
mod streams;
mod subject;
mod terminal;

use std::time::Duration;

use futures::future::BoxFuture;

use crate::Error;
use crate::hypervisor::{Hypervisor, HypervisorExt, MachineSpec};

pub use report::{Finding, Outcome, Report};

use subject::{Problem, Subject, Verdict};

/// How much is asked of a backend.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How long the machine may take to boot.
    pub boot_patience: Duration,
    /// How long one check may take before it counts as hung.
    pub check_patience: Duration,
    /// How many MiB of output one command is made to write.
    pub flood_mib: u64,
    /// How many silent commands run at once. More than 85 of them have more streams open than the
    /// multiplexer leaves unanswered.
    pub crowd: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            boot_patience: Duration::from_secs(60),
            check_patience: Duration::from_secs(120),
            flood_mib: 64,
            crowd: 100,
        }
    }
}

impl Options {
    /// Replaces the amount of output.
    #[must_use]
    pub fn with_flood_mib(mut self, mebibytes: u64) -> Self {
        self.flood_mib = mebibytes;
        self
    }

    /// Replaces the number of silent commands at once.
    #[must_use]
    pub fn with_crowd(mut self, commands: usize) -> Self {
        self.crowd = commands;
        self
    }
}

type Check = for<'a> fn(&'a Subject) -> BoxFuture<'a, Verdict>;

macro_rules! checks {
    ($($module:ident: $($name:ident)*;)*) => {
        &[$($((
            concat!(stringify!($module), "::", stringify!($name)),
            |subject| Box::pin($module::$name(subject)),
        ),)*)*]
    };
}

/// In the order in which they run; the last one ends the machine.
const CHECKS: &[(&str, Check)] = checks! {
    arguments: words_arrive_as_they_are a_path_is_not_searched_for a_missing_program_is_not_found
        what_cannot_be_executed_is_denied nonsense_is_invalid long_arguments_arrive;
    environment: variables_are_added_and_replaced variables_are_removed a_cleared_one_is_empty
        values_keep_their_bytes the_usual_ones_are_there a_folder_can_be_chosen
        a_missing_folder_is_not_found users_are_found_by_name_and_number unknown_users_are_refused;
    streams: output_and_errors_are_apart input_flows_and_ends input_is_answered_while_it_is_open
        unasked_streams_are_empty a_command_may_close_its_input a_reader_may_go_away
        an_unread_stream_holds_up_no_other an_unread_stream_is_bounded
        a_flood_passes_through;
    ending: codes_come_back a_signal_is_told signals_reach_the_whole_group kill_leaves_nothing
        time_runs_out_for_all who_is_in_time_is_not_blamed a_closed_control_kills
        the_end_does_not_wait_for_readers orphans_are_reaped
        a_background_process_outlives_its_command;
    terminal: it_is_one_of_the_size_asked_for it_can_be_resized control_c_interrupts
        lines_are_read_and_echoed;
    load: many_commands_run_at_once many_silent_commands_hold_up_nothing;
    files: what_is_written_is_read a_file_is_replaced_whole half_a_file_changes_nothing
        reading_fails_by_kind writing_fails_by_kind owners_are_given a_tree_is_packed_and_unpacked
        a_tree_in_use_is_packed_whole packing_fails_by_kind nothing_is_unpacked_outside;
    machine: it_is_what_it_says it_captures_as_it_says it_has_one_connection
        killing_it_ends_everything;
};

/// Starts one machine and runs every check on it.
///
/// Dropping the future ends the machine.
///
/// # Errors
///
/// Those of starting the machine. What a check finds is in the report.
pub async fn run(
    hypervisor: &dyn Hypervisor,
    spec: &MachineSpec,
    options: &Options,
) -> Result<Report, Error> {
    let (machine, agent) = hypervisor.boot(spec, options.boot_patience).await?;
    let subject = Subject::new(hypervisor, spec, options, machine, agent).await?;
    let mut outcomes = Vec::new();
    for (name, check) in CHECKS {
        tracing::debug!(name, "check");
        let found = tokio::time::timeout(options.check_patience, check(&subject)).await;
        let finding = match found {
            Ok(Ok(())) => Finding::Passed,
            Ok(Err(Problem::Skipped(reason))) => Finding::Skipped(reason),
            Ok(Err(Problem::Failed(reason))) => Finding::Failed(reason),
            Err(_) => Finding::Failed(format!("no end after {:?}", options.check_patience)),
        };
        outcomes.push(Outcome { name, finding });
    }
    subject.machine.kill().await?;
    Ok(Report { outcomes })
}
