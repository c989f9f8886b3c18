//! Figures of many rounds: medians, spread, and ratios between subjects of the same round.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::target::Target;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Rates.
    More,
    /// Times and sizes.
    Less,
}

/// One measured value.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    better: Better,
    value: f64,
}

impl Figure {
    pub(crate) fn more(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, better: Better::More, value }
    }

    pub(crate) fn less(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, better: Better::Less, value }
    }
}

/// Every value of every round, by figure and subject, in the order of rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    subjects: Vec<String>,
    rows: Vec<Row>,
    #[serde(skip)]
    targets: &'static [Target],
}

#[derive(Debug, Serialize)]
struct Row {
    figure: String,
    unit: &'static str,
    better: Better,
    /// By round; `None` where it was not measured.
    values: BTreeMap<String, Vec<Option<f64>>>,
}

/// The median and the extremes of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, low, high })
    }
}

impl Table {
    /// `targets` judge the last subject.
    pub(crate) fn new(subjects: impl IntoIterator<Item = String>, targets: &'static [Target]) -> Self {
        Self { subjects: subjects.into_iter().collect(), rows: Vec::new(), targets }
    }

    /// Adds the figures of one round; rounds are counted from 0.
    pub(crate) fn add(&mut self, subject: &str, round: usize, figures: Vec<Figure>) {
        for Figure { name, unit, better, value } in figures {
            let at = self.rows.iter().position(|row| row.figure == name).unwrap_or_else(|| {
                self.rows.push(Row { figure: name, unit, better, values: BTreeMap::new() });
                self.rows.len() - 1
            });
            let values = self.rows[at].values.entry(subject.to_owned()).or_default();
            values.resize(values.len().max(round + 1), None);
            values[round] = Some(value);
        }
    }

    /// Every figure that both have: its name, which way is better, and the ratio of `one` to `other`, round by
    /// round, so that a drift of the machine meets both.
    pub(crate) fn ratios(&self, one: &str, other: &str) -> Vec<(&str, Better, Spread)> {
        let of_row = |row| Some((Row::name(row), row.better, row.ratio(one, other)?));
        self.rows.iter().filter_map(of_row).collect()
    }

    /// Targets with what was measured, `None` where it was not, and whether they are met.
    pub(crate) fn judged(&self) -> Vec<(&'static Target, Option<(f64, bool)>)> {
        let judge = |target: &'static Target| {
            let row = self.rows.iter().find(|row| row.figure == target.figure)?;
            let own = self.subjects.last()?;
            let value = match target.against {
                Some(other) => row.ratio(own, other)?.median,
                None => row.spread(own)?.median,
            };
            Some((value, target.is_met_by(value)))
        };
        self.targets.iter().map(|target| (target, judge(target))).collect()
    }

    /// The subject that stands last is compared with each of the others.
    fn compared_with(&self) -> &[String] {
        self.subjects.split_last().map_or(&[], |(_, others)| others)
    }
}

impl Row {
    fn name(&self) -> &str {
        &self.figure
    }

    fn spread(&self, subject: &str) -> Option<Spread> {
        Spread::of(&self.values.get(subject)?.iter().flatten().copied().collect::<Vec<_>>())
    }

    fn ratio(&self, one: &str, other: &str) -> Option<Spread> {
        let pairs = self.values.get(one)?.iter().zip(self.values.get(other)?);
        let of_round = |(one, other): (&Option<f64>, &Option<f64>)| Some((*one)? / (*other)?);
        Spread::of(&pairs.filter_map(of_round).collect::<Vec<_>>())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| figure | unit |")?;
        for subject in &self.subjects {
            write!(f, " {subject} |")?;
        }
        for other in self.compared_with() {
            write!(f, " ÷ {other} (min … max) |")?;
        }
        writeln!(f)?;
        let columns = self.subjects.len() + self.compared_with().len();
        writeln!(f, "|---|---|{}", "---:|".repeat(columns))?;
        for row in &self.rows {
            write!(f, "| {} | {} |", row.figure, row.unit)?;
            for subject in &self.subjects {
                match row.spread(subject) {
                    Some(spread) => write!(f, " {} |", short(spread.median))?,
                    None => write!(f, " |")?,
                }
            }
            for other in self.compared_with() {
                match self.subjects.last().and_then(|own| row.ratio(own, other)) {
                    Some(Spread { median, low, high }) => {
                        write!(f, " {median:.2} ({low:.2} … {high:.2}) |")?;
                    }
                    None => write!(f, " |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["direct", "sluice"].map(str::to_owned), &[]);
        for (round, (direct, sluice)) in [(1.0, 0.5), (10.0, 9.0), (2.0, 2.0)].into_iter().enumerate() {
            table.add("direct", round, vec![Figure::more("bulk", "Gb/s", direct)]);
            let figures = vec![Figure::more("bulk", "Gb/s", sluice), Figure::less("CPU", "s", 0.5)];
            table.add("sluice", round, figures);
        }
        table
    }

    #[test]
    fn ratios_are_of_values_of_the_same_round() {
        let expected = Spread { median: 0.9, low: 0.5, high: 1.0 };
        assert_eq!(table().ratios("sluice", "direct"), [("bulk", Better::More, expected)]);
    }

    #[test]
    fn a_round_that_a_subject_did_not_end_is_left_out_of_its_ratios() {
        let mut table = table();
        table.add("sluice", 4, vec![Figure::more("bulk", "Gb/s", 3.0)]);
        table.add("direct", 3, vec![Figure::more("bulk", "Gb/s", 100.0)]);
        table.add("direct", 4, vec![Figure::more("bulk", "Gb/s", 3.0)]);
        let expected = Spread { median: 0.95, low: 0.5, high: 1.0 };
        assert_eq!(table.ratios("sluice", "direct"), [("bulk", Better::More, expected)]);
        assert!(table.to_string().contains("| bulk | Gb/s | 3.00 | 2.50 |"), "{table}");
    }

    #[test]
    fn rows_show_medians_and_the_ratio_to_the_other_subjects() {
        let text = table().to_string();
        assert!(text.contains("| bulk | Gb/s | 2.00 | 2.00 | 0.90 (0.50 … 1.00) |"), "{text}");
        assert!(text.contains("| CPU | s | | 0.50 | |"), "{text}");
    }

    #[test]
    fn an_even_number_of_rounds_has_its_median_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, low: 1.0, high: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
