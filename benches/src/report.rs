//! Medians, ratios, the table and its JSON.

use serde_json::json;

/// What was measured on both sides of one question.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// What it is.
    pub name: String,
    /// The unit of all figures.
    pub unit: &'static str,
    /// Measured on the floor; empty where there is none.
    pub floor: Vec<f64>,
    /// Measured on a sandbox.
    pub ours: Vec<f64>,
    /// What the project aims for.
    pub aim: Aim,
}

/// What the project aims for, in relation to the floor where no more is said.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Aim {
    /// Nothing: it is told because it explains another figure.
    None,
    /// At most so many times the floor.
    AtMost(f64),
    /// At most so many times the floor, or at most so much above it.
    AtMostOrAbove(f64, f64),
    /// At least so many times the floor.
    AtLeast(f64),
    /// Less than so much, whatever the floor.
    Below(f64),
}

impl Row {
    /// A row without figures.
    pub fn new(name: impl Into<String>, unit: &'static str, aim: Aim) -> Self {
        Self {
            name: name.into(),
            unit,
            floor: Vec::new(),
            ours: Vec::new(),
            aim,
        }
    }

    /// Returns the sandbox's median over the floor's.
    pub fn ratio(&self) -> Option<f64> {
        let floor = median(&self.floor)?;
        Some(median(&self.ours)? / floor)
    }

    /// Tells whether the aim is met; `None` where there is none.
    pub fn met(&self) -> Option<bool> {
        match self.aim {
            Aim::None => None,
            Aim::AtMost(most) => Some(self.ratio()? <= most),
            Aim::AtLeast(least) => Some(self.ratio()? >= least),
            Aim::Below(most) => Some(median(&self.ours)? < most),
            Aim::AtMostOrAbove(most, above) => {
                let difference = median(&self.ours)? - median(&self.floor)?;
                Some(self.ratio()? <= most || difference <= above)
            }
        }
    }

    fn cells(&self) -> [String; 6] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |v| format!("{v:.2}"));
        let aim = match self.aim {
            Aim::None => String::new(),
            Aim::AtMost(most) => format!("at most {most}"),
            Aim::AtMostOrAbove(most, above) => {
                format!("at most {most}, or {above} {} above", self.unit)
            }
            Aim::AtLeast(least) => format!("at least {least}"),
            Aim::Below(most) => format!("below {most} {}", self.unit),
        };
        let met = match self.met() {
            None => "",
            Some(true) => " (met)",
            Some(false) => " (NOT met)",
        };
        [
            self.name.clone(),
            self.unit.to_owned(),
            number(median(&self.floor)),
            number(median(&self.ours)),
            number(self.ratio()),
            format!("{aim}{met}"),
        ]
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "floor": { "median": median(&self.floor), "values": self.floor },
            "ours": { "median": median(&self.ours), "values": self.ours },
            "ratio": self.ratio(),
            "met": self.met(),
        })
    }
}

/// Returns the middle value; the mean of the two middle ones for an even count.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Prints the rows as a Markdown table, or as JSON.
pub fn print(question: &str, rows: &[Row], json: bool) {
    if json {
        let rows: Vec<_> = rows.iter().map(Row::to_json).collect();
        println!("{}", json!({ "question": question, "rows": rows }));
        return;
    }
    let mut table = vec![["what", "unit", "floor", "ours", "ratio", "aim"].map(str::to_owned)];
    table.extend(rows.iter().map(Row::cells));
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    println!("{question} (medians)\n");
    for (number, row) in table.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("| {} |", cells.join(" | "));
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("| {} |", rule.join(" | "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(aim: Aim, floor: f64, ours: f64) -> Row {
        let mut row = Row::new("x", "ms", aim);
        (row.floor, row.ours) = (vec![floor], vec![ours]);
        row
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn aims_are_judged_by_the_ratio_of_medians() {
        assert_eq!(row(Aim::None, 1.0, 2.0).met(), None);
        assert_eq!(row(Aim::AtMost(1.15), 10.0, 11.0).met(), Some(true));
        assert_eq!(row(Aim::AtMost(1.15), 10.0, 12.0).met(), Some(false));
        assert_eq!(row(Aim::AtLeast(0.8), 10.0, 7.0).met(), Some(false));
        assert_eq!(row(Aim::Below(8.0), 10.0, 7.0).met(), Some(true));
        assert_eq!(row(Aim::Below(7.0), 1.0, 7.0).met(), Some(false));
        assert_eq!(
            row(Aim::AtMostOrAbove(1.5, 5.0), 1.0, 5.5).met(),
            Some(true)
        );
        assert_eq!(
            row(Aim::AtMostOrAbove(1.5, 5.0), 14.0, 22.0).met(),
            Some(false)
        );
    }
}
