//! `doctor`: what this machine can do and what it lacks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sandbox_core::{Acceleration, Backend, Dirs, Host, Isolation, UpstreamProxy};
use serde_json::json;

use crate::cli;
use crate::failure::{Failure, chain, one_line};
use crate::interrupt::Interrupts;
use crate::output::{self, BAD, GOOD, QUIET, styled};
use crate::progress::Waiting;

/// What `doctor` answers with where no sandbox can run.
const ILL: u8 = 1;

/// Programs that the libraries ask for help: name, package, what for.
const PROGRAMS: [(&str, &str, &str); 5] = [
    ("apt-get", "apt", "obtains the guest's kernel"),
    ("dpkg-deb", "dpkg", "unpacks it"),
    ("mmdebstrap", "mmdebstrap", "makes the default image"),
    ("newuidmap", "uidmap", "makes it without root"),
    ("mke2fs", "e2fsprogs", "makes disks"),
];

/// A program that was looked for.
#[derive(Debug)]
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
    found: Option<PathBuf>,
}

/// Looks at this machine.
pub(crate) async fn doctor(dirs: &Dirs, arguments: &cli::Doctor) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let waiting = Waiting::on("trying to boot a guest");
    let host = interrupts.or(Host::detect_in(dirs)).await?;
    drop(waiting);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let programs = PROGRAMS.map(|(name, package, purpose)| Program {
        name,
        package,
        purpose,
        found: find(name, &folders),
    });
    let usable = host.backends.iter().any(|one| one.availability.is_ok());
    if arguments.json {
        output::print_json(&as_json(dirs, &host, &programs, usable))?;
    } else {
        output::print(as_text(dirs, &host, &programs).as_bytes())?;
    }
    Ok(if usable { 0 } else { ILL })
}

/// Finds a program, also where only root's PATH leads.
fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let all = folders.iter().chain(&more);
    all.map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn as_json(dirs: &Dirs, host: &Host, programs: &[Program], usable: bool) -> serde_json::Value {
    let mut report = host.to_json();
    let programs = programs.iter().map(|program| {
        json!({
            "name": program.name,
            "package": program.package,
            "purpose": program.purpose,
            "path": program.found,
        })
    });
    report["usable"] = usable.into();
    report["upstream_proxy"] = match upstream() {
        Ok(found) => json!({ "locations": found }),
        Err(reason) => json!({ "reason": reason }),
    };
    report["programs"] = programs.collect();
    report["folders"] = json!({
        "state": dirs.state,
        "cache": dirs.cache,
        "runtime": dirs.runtime,
    });
    report["version"] = env!("CARGO_PKG_VERSION").into();
    report
}

fn as_text(dirs: &Dirs, host: &Host, programs: &[Program]) -> String {
    let mut text = String::from("Backends\n");
    for backend in &host.backends {
        text += &backend_text(backend);
    }
    text += "\nPrograms\n";
    for program in programs {
        let (name, purpose) = (program.name, program.purpose);
        let _ = match &program.found {
            Some(path) => writeln!(
                text,
                "  {} {name:12} {purpose}: {}",
                styled(GOOD, "ok     "),
                path.display()
            ),
            None => writeln!(
                text,
                "  {} {name:12} {purpose}: install the package {}",
                styled(BAD, "missing"),
                program.package
            ),
        };
    }
    text += "\nNetwork\n";
    text += &upstream_text(&upstream());
    text += "\nFolders\n";
    let mut folder = |what: &str, path: &Path| {
        let _ = writeln!(
            text,
            "  {} {}",
            styled(QUIET, format!("{what:7}")),
            path.display()
        );
    };
    folder("state", &dirs.state);
    folder("cache", &dirs.cache);
    folder("sockets", &dirs.runtime);
    text
}

/// Finds the proxies that sandboxes go through unless told otherwise: those of this environment, without their logins.
fn upstream() -> Result<Vec<String>, String> {
    let found = UpstreamProxy::from_environment().load();
    let found = found.map_err(|error| one_line(&chain(&error)))?;
    Ok(found.map_or_else(Vec::new, |found| found.locations()))
}

fn upstream_text(found: &Result<Vec<String>, String>) -> String {
    let (mark, what) = match found {
        Ok(found) if found.is_empty() => {
            let what = "this environment names no proxy: the world is reached from here";
            (styled(QUIET, "direct "), what.to_owned())
        }
        Ok(found) => {
            let found = one_line(&found.join(" and "));
            let what = format!("through {found}, unless --upstream-proxy says otherwise");
            (styled(GOOD, "proxy  "), what)
        }
        Err(reason) => (styled(BAD, "wrong  "), reason.clone()),
    };
    format!("  {mark} {what}\n")
}

fn backend_text(backend: &Backend) -> String {
    let name = backend.name;
    let available = match &backend.availability {
        Err(error) => {
            let reason = one_line(&chain(error));
            return format!("  {} {name:12} {reason}\n", styled(BAD, "missing"));
        }
        Ok(available) => available,
    };
    let wall = match backend.isolation {
        Isolation::VirtualMachine => "a virtual machine with its own kernel",
        Isolation::UserSpaceKernel => "a kernel in user space",
        Isolation::SharedKernel => "the host's kernel, filtered",
        _ => "no wall",
    };
    let how = match available.acceleration {
        Acceleration::Hardware => ", run by the processor",
        Acceleration::Emulated => ", emulated: slow, and no security boundary by QEMU's own word",
        _ => "",
    };
    let mut text = format!(
        "  {} {name:12} {wall}{how} ({})\n",
        styled(GOOD, "ok     "),
        one_line(&available.version)
    );
    for note in &available.notes {
        let _ = writeln!(text, "          {:12} {}", "", one_line(note));
    }
    text
}
