//! The findings for a person: what is wrong first in each line, and under it what follows and what to do.

use std::fmt::Write;

use super::Report;
use super::finding::State;

pub(super) fn render(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in &report.findings {
        let word = match finding.state {
            State::Ok => "ok  ",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        let _ = writeln!(text, "{word}  {:width$}  {}", finding.name, finding.found);
        for (sign, line) in [("so:", &finding.consequence), ("do:", &finding.remedy)] {
            if let Some(line) = line {
                let _ = writeln!(text, "      {:width$}  {sign} {line}", "");
            }
        }
    }
    let count = |state| report.findings.iter().filter(|finding| finding.state == state).count();
    let (fails, warnings) = (count(State::Fail), count(State::Warn));
    let _ = match fails {
        0 => writeln!(text, "\nNothing stands against enforcement here ({warnings} warnings)."),
        _ => {
            writeln!(text, "\nEnforcement CANNOT be guaranteed here: {fails} failures, {warnings} warnings.")
        }
    };
    text
}
