//! `ls`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_core::sync::Mode;
use sandbox_core::{Acceleration, Description, Dirs, Lifetime, Sandbox, State};

use crate::cli;
use crate::failure::{Failure, one_line};
use crate::output::{self, GOOD, QUIET, styled};

const HEADINGS: [&str; 8] = [
    "NAME",
    "STATE",
    "AGE",
    "CPUS",
    "MEMORY",
    "MACHINE",
    "KEPT",
    "WORKSPACES",
];

/// The column of the state, which has colours.
const STATE: usize = 1;

/// Lists the sandboxes; what dead owners left is removed on the way.
pub(crate) async fn list(dirs: &Dirs, arguments: &cli::List) -> Result<u8, Failure> {
    let found = Sandbox::list_in(dirs.clone()).await?;
    if arguments.json {
        let json = serde_json::to_value(&found).map_err(|error| Failure::from_error(&error))?;
        output::print_json(&json)?;
        return Ok(0);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let rows: Vec<_> = found.iter().map(|one| row(one, now.as_secs())).collect();
    output::print(table(&rows).as_bytes())?;
    Ok(0)
}

type Row = [String; HEADINGS.len()];

fn row(sandbox: &Description, now: u64) -> Row {
    let workspaces: Vec<String> = sandbox
        .workspaces
        .iter()
        .map(|workspace| {
            let mode = match workspace.mode {
                Mode::TwoWaySafe => String::new(),
                Mode::ReadOnly => ":ro".to_owned(),
                mode => format!(":{mode}"),
            };
            one_line(&format!("{}{mode}", workspace.host.display()))
        })
        .collect();
    let machine = sandbox.machine.as_ref().map(|machine| {
        let emulated = match machine.acceleration {
            Acceleration::Emulated => ", emulated",
            _ => "",
        };
        format!("{}{emulated}", machine.backend)
    });
    let kept = match sandbox.lifetime {
        Lifetime::Attached => "until its process ends",
        _ => "until removed",
    };
    [
        sandbox.name.clone(),
        sandbox.state.as_str().to_owned(),
        age(Duration::from_secs(now.saturating_sub(sandbox.created))),
        sandbox.limits.cpus.to_string(),
        format!("{} MiB", sandbox.limits.memory_mib),
        machine.unwrap_or_else(|| "-".to_owned()),
        kept.to_owned(),
        workspaces.join(" "),
    ]
}

/// Says how long ago something was, in its largest unit.
pub(crate) fn age(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn table(rows: &[Row]) -> String {
    let headings = HEADINGS.map(str::to_owned);
    let width = |column: usize| {
        let cells = std::iter::once(&headings).chain(rows);
        cells.map(|row| row[column].chars().count()).max()
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).filter_map(width).collect();
    let mut text = String::new();
    for (index, row) in std::iter::once(&headings).chain(rows).enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padded = format!("{cell:width$}  ");
            let running = cell == State::Running.as_str();
            line += &match column {
                STATE if index > 0 && running => styled(GOOD, padded),
                STATE if index > 0 => styled(QUIET, padded),
                _ => padded,
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        let said = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(said(59), "59 s");
        assert_eq!(said(61), "1 min");
        assert_eq!(said(7200), "2 h");
        assert_eq!(said(86_400 * 3), "3 d");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row: Row = std::array::from_fn(|column| "x".repeat(column * 3));
        let text = anstream::adapter::strip_str(&table(&[row])).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("WORKSPACES"), lines[1].find(&"x".repeat(21)));
    }
}
