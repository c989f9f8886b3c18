//! The table of connections, row by row as they are made: widths come from what is known beforehand.

use std::io::{self, Write};

use lab::Transport;

use super::probe::Seen;
use super::scenario::{CASES, Case, EXAMPLES};

const PORT_WIDTH: usize = 8;
const WORD_WIDTH: usize = 8;

/// Widths of the columns for clients and servers.
#[derive(Debug)]
pub(super) struct Table {
    from: usize,
    to: usize,
    example: Option<usize>,
}

impl Table {
    /// Prints the head.
    pub(super) fn begin(out: &mut impl Write) -> io::Result<Self> {
        let width = |of: fn(&Case) -> usize| CASES.iter().map(of).max().unwrap_or_default();
        let table = Self {
            from: width(|case| case.from.len()),
            to: width(|case| case.to.name().len()),
            example: None,
        };
        table.line(out, ["from", "to", "port", "expected", "seen", "decided by"], "    ")?;
        Ok(table)
    }

    /// Prints one row, before it the name of its example when that is another than the last row's, and below
    /// it whatever differs.
    pub(super) fn row(&mut self, out: &mut impl Write, case: &Case, seen: &Seen) -> io::Result<()> {
        if self.example != Some(case.example) {
            self.example = Some(case.example);
            writeln!(out, "  {}", heading(case.example))?;
        }
        let to = case.to.name();
        let port = match case.transport {
            Transport::Tcp => case.to.port().to_string(),
            other => format!("{}/{}", case.to.port(), other.kubernetes()),
        };
        let mark = if seen.differences.is_empty() { "    " } else { " !! " };
        let cells = [case.from, &to, &port, case.expect.as_str(), &seen.word, &seen.rule];
        self.line(out, cells, mark)?;
        seen.differences.iter().try_for_each(|difference| writeln!(out, "        {difference}"))
    }

    fn line(&self, out: &mut impl Write, cells: [&str; 6], mark: &str) -> io::Result<()> {
        let [from, to, port, expected, seen, rule] = cells;
        let (from_width, to_width) = (self.from, self.to);
        let line = format!(
            "{mark}{from:from_width$}  {to:to_width$}  {port:>PORT_WIDTH$}  {expected:WORD_WIDTH$}  {seen:WORD_WIDTH$}  {rule}"
        );
        writeln!(out, "{}", line.trim_end())
    }
}

/// `01 deny all traffic to an app`, out of the file's name.
fn heading(example: usize) -> String {
    let file = example.checked_sub(1).and_then(|index| EXAMPLES.get(index));
    match file {
        Some((name, _)) => name.trim_end_matches(".yaml").replace('-', " "),
        None => "no policy concerned".to_owned(),
    }
}
