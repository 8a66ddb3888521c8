//! The figures of all contenders beside each other.

use sandbox_benches::report::median;

/// Rows and columns in the order in which they first came.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    unit: &'static str,
    values: Vec<(&'static str, f64)>,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        (name, unit): (&'static str, &'static str),
        (column, value): (&'static str, f64),
    ) {
        if !self.columns.contains(&column) {
            self.columns.push(column);
        }
        let at = self.rows.iter().position(|row| row.name == name);
        let at = at.unwrap_or_else(|| {
            let values = Vec::new();
            self.rows.push(Row { name, unit, values });
            self.rows.len() - 1
        });
        self.rows[at].values.push((column, value));
    }

    /// Prints the medians as a Markdown table.
    pub(crate) fn print(&self) {
        println!("| medians | unit | {} |", self.columns.join(" | "));
        println!("|---|---|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let cells = self.columns.iter().map(|column| row.cell(column));
            let cells: Vec<String> = cells.collect();
            println!("| {} | {} | {} |", row.name, row.unit, cells.join(" | "));
        }
    }
}

impl Row {
    fn cell(&self, column: &str) -> String {
        let of_column = self.values.iter().filter(|(name, _)| *name == column);
        let values: Vec<f64> = of_column.map(|(_, value)| *value).collect();
        median(&values).map_or_else(|| "-".into(), number)
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
