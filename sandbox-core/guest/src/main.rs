//! The one helper binary of the sandbox: what runs in processes of its own, because an embedder's `main`
//! is its own.
//!
//! | started as | it is |
//! |---|---|
//! | `/init`, the first process of a machine | the guest's agent |
//! | `sandbox-helper watchdog` | the parent of a hypervisor, which cleans up after a dead owner |
//! | `sandbox-helper supervisor` | the owner of a detached sandbox |
//! | `sandbox-helper agent` | the agent as a plain process on its standard streams, for tests |
//!
//! It is linked statically: no C library of a certain version is assumed, in the guest or outside.

#[cfg(target_os = "linux")]
mod agent;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let verb = std::env::args().nth(1);
    let result = match verb.as_deref() {
        _ if std::process::id() == 1 => agent::first_process(),
        Some(sandbox_base::watchdog::VERB) => sandbox_base::watchdog::run(),
        Some(sandbox_core::supervisor::VERB) => supervise(),
        Some("agent") => agent::plain_process(),
        _ => Err(std::io::Error::other(
            "this program is started by the sandbox, not by hand",
        )),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(target_os = "linux")]
fn supervise() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = runtime.block_on(sandbox_core::supervisor::run());
    // Standard input may still be waited for on a thread of its own.
    runtime.shutdown_background();
    done
}

/// The console of a guest, the log of a watchdog: whoever reads it has nothing else to go by.
#[cfg(target_os = "linux")]
#[allow(clippy::print_stderr)]
fn report(error: &std::io::Error) {
    eprintln!("sandbox-helper: {error}");
}

#[cfg(not(target_os = "linux"))]
fn main() {}
