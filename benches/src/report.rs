//! Figures of many rounds, as a table of medians and ratios.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// One measured value.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
}

impl Figure {
    pub(crate) fn new(name: &str, unit: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), unit, value }
    }
}

/// Every value of every round, by figure and subject. The first subject is what others are compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    subjects: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    figure: String,
    unit: &'static str,
    values: BTreeMap<&'static str, Vec<f64>>,
}

impl Table {
    pub(crate) fn new(subjects: impl Iterator<Item = &'static str>) -> Self {
        Self { subjects: subjects.collect(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, subject: &'static str, figures: &[Figure]) {
        for Figure { name, unit, value } in figures {
            let at = self.rows.iter().position(|row| row.figure == *name).unwrap_or_else(|| {
                self.rows.push(Row { figure: name.clone(), unit, values: BTreeMap::new() });
                self.rows.len() - 1
            });
            self.rows[at].values.entry(subject).or_default().push(*value);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| figure | unit |")?;
        for subject in &self.subjects {
            write!(f, " {subject} (min … max) |")?;
        }
        writeln!(f, " ratio |")?;
        writeln!(f, "|---|---|{}---|", "---|".repeat(self.subjects.len()))?;
        for row in &self.rows {
            write!(f, "| {} | {} |", row.figure, row.unit)?;
            for subject in &self.subjects {
                match row.values.get(subject) {
                    Some(values) => {
                        let (low, high) = (quantile(values, 0.0), quantile(values, 1.0));
                        write!(f, " {} ({} … {}) |", short(median(values)), short(low), short(high))?;
                    }
                    None => write!(f, " |")?,
                }
            }
            let of = |at: usize| self.subjects.get(at).and_then(|subject| row.values.get(subject));
            match (of(0), of(1)) {
                (Some(base), Some(other)) => writeln!(f, " {:.2} |", median(other) / median(base))?,
                _ => writeln!(f, " |")?,
            }
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index from a share of a length"
)]
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_show_medians_and_the_ratio_to_the_first_subject() {
        let mut table = Table::new(["direct", "sluice"].into_iter());
        for value in [1.0, 9.0, 2.0] {
            table.add("direct", &[Figure::new("bulk", "Gb/s", value)]);
        }
        table.add("sluice", &[Figure::new("bulk", "Gb/s", 1.0), Figure::new("CPU", "s", 0.5)]);
        let text = table.to_string();
        assert!(text.contains("| bulk | Gb/s | 2.00 (1.00 … 9.00) | 1.00 (1.00 … 1.00) | 0.50 |"), "{text}");
        assert!(text.contains("| CPU | s | | 0.50 (0.50 … 0.50) | |"), "{text}");
    }
}
