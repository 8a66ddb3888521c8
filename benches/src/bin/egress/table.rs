//! The figures of all contenders beside each other.

use std::collections::BTreeMap;

use sandbox_benches::report::median;

use crate::rivals::Rival;

/// Rows in the order in which they first came.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    unit: &'static str,
    values: BTreeMap<Rival, Vec<f64>>,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        unit: &'static str,
        (rival, value): (Rival, f64),
    ) {
        let at = self.rows.iter().position(|row| row.name == name);
        let at = at.unwrap_or_else(|| {
            let values = BTreeMap::new();
            self.rows.push(Row { name, unit, values });
            self.rows.len() - 1
        });
        self.rows[at].values.entry(rival).or_default().push(value);
    }

    /// Prints the medians as a Markdown table.
    pub(crate) fn print(&self) {
        let mut rivals: Vec<Rival> = self
            .rows
            .iter()
            .flat_map(|row| row.values.keys().copied())
            .collect();
        rivals.sort_unstable();
        rivals.dedup();
        let names: Vec<String> = rivals.iter().map(Rival::to_string).collect();
        println!("| medians | unit | {} |", names.join(" | "));
        println!("|---|---|{}", "---|".repeat(rivals.len()));
        for row in &self.rows {
            let cells: Vec<String> = rivals
                .iter()
                .map(|rival| {
                    let value = row.values.get(rival).and_then(|values| median(values));
                    value.map_or_else(|| "-".into(), number)
                })
                .collect();
            println!("| {} | {} | {} |", row.name, row.unit, cells.join(" | "));
        }
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
