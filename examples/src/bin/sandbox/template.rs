//! `template ls`, `template rm`, `template prune`.

use std::time::SystemTime;

use sandbox_core::{Dirs, TemplateStore, vm::template::Limits, vm::template::Template};

use crate::cli;
use crate::failure::{FAILED, Failure, one_line};
use crate::list::age;
use crate::output;

/// As much of a name as a person needs to tell it from others.
const SHOWN: usize = 12;

/// Lists or removes templates.
pub(crate) fn template(dirs: &Dirs, verb: cli::Template) -> Result<u8, Failure> {
    let store = TemplateStore::new(&dirs.cache);
    match verb {
        cli::Template::Ls(arguments) => list(&store, arguments.json),
        cli::Template::Rm { names } => remove(&store, &names),
        cli::Template::Prune { max_size, unused } => {
            let mut limits = Limits::default();
            if let Some(mebibytes) = max_size {
                limits = limits.with_bytes(u64::from(mebibytes) << 20);
            }
            if let Some(unused) = unused {
                limits = limits.with_unused(unused);
            }
            told(&store.prune(&limits)?)
        }
    }
}

fn list(store: &TemplateStore, json: bool) -> Result<u8, Failure> {
    let found = store.list()?;
    if json {
        let json = serde_json::to_value(&found).map_err(|error| Failure::from_error(&error))?;
        output::print_json(&json)?;
        return Ok(0);
    }
    let mut text = format!(
        "{:SHOWN$}  {:>4}  {:>10}  {:>8}  {:>8}  {:>8}  HYPERVISOR\n",
        "NAME", "CPUS", "MEMORY", "ON DISK", "AGE", "UNUSED"
    );
    let now = SystemTime::now();
    text.extend(found.iter().map(|template| row(template, now)));
    output::print(text.as_bytes())?;
    Ok(0)
}

fn row(template: &Template, now: SystemTime) -> String {
    let since = |then| age(now.duration_since(then).unwrap_or_default());
    format!(
        "{:SHOWN$}  {:>4}  {:>10}  {:>8}  {:>8}  {:>8}  {}\n",
        template.name.get(..SHOWN).unwrap_or(&template.name),
        template.key.cpus,
        format!("{} MiB", template.key.memory_mib),
        format!("{} MiB", template.bytes >> 20),
        since(template.created),
        since(template.used),
        one_line(&template.key.hypervisor),
    )
}

/// Removes each, whatever becomes of the others.
fn remove(store: &TemplateStore, names: &[String]) -> Result<u8, Failure> {
    let mut status = 0;
    for name in names {
        match store.remove(name) {
            Ok(()) => told(std::slice::from_ref(name))?,
            Err(error) => {
                Failure::from(error).tell();
                status = FAILED;
                0
            }
        };
    }
    Ok(status)
}

fn told(names: &[String]) -> Result<u8, Failure> {
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    output::print(lines.as_bytes()).map(|()| 0)
}
