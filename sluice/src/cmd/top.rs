//! `sluice top`: who talks most, who is denied, and who talks for the first time, from live records or old ones.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use audit::Glance;

use super::observe::edges::{Counts, Edges, Pair};
use super::observe::print::scaled;
use super::observe::{Selection, has_reader};

/// How often live figures are printed.
const EVERY: Duration = Duration::from_secs(2);
/// An edge is marked as new for this long.
const NEW: Duration = Duration::from_secs(30);

/// Arguments of `sluice top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Go on with new records; the table is printed every two seconds in which something happened
    #[arg(long, short)]
    follow: bool,
    /// What to sort by
    #[arg(long, value_enum, default_value_t = By::Bytes)]
    by: By,
    /// Rows to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Bytes,
    Carried,
    Denied,
    Failed,
}

/// Runs the command.
pub(crate) fn execute(args: &Args) -> anyhow::Result<ExitCode> {
    let mut edges = Edges::default();
    let mut output = io::stdout().lock();
    if !args.follow {
        args.selection.add_up(&mut edges)?;
        has_reader(output.write_all(table(&edges, args.by, args.rows, |_| false).as_bytes()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut first_seen: HashMap<Pair, Instant> = HashMap::new();
    let clears = output.is_terminal();
    let mut printed = Instant::now();
    args.selection.read(true, |record, _| {
        edges.add(&Glance::from(record));
        if printed.elapsed() >= EVERY {
            printed = Instant::now();
            for (pair, _) in edges.all() {
                first_seen.entry(pair).or_insert(printed);
            }
            let is_new = |pair: &Pair| first_seen.get(pair).is_some_and(|seen| seen.elapsed() < NEW);
            let clear = if clears { "\u{1b}[H\u{1b}[2J" } else { "" };
            writeln!(output, "{clear}{}", table(&edges, args.by, args.rows, is_new))?;
            output.flush()?;
        }
        Ok(true)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn table(edges: &Edges, by: By, rows: usize, is_new: impl Fn(&Pair) -> bool) -> String {
    let key = |counts: &Counts| match by {
        By::Bytes => counts.bytes,
        By::Carried => counts.carried,
        By::Denied => counts.denied,
        By::Failed => counts.failed,
    };
    let mut sorted = edges.all();
    // Stable: equal ones stay in the order of their names.
    sorted.sort_by_key(|(_, counts)| std::cmp::Reverse(key(counts)));
    let row = |cells: [&str; 8]| {
        let [from, to, port, bytes, carried, denied, failed, new] = cells;
        let line =
            format!("{from:32} {to:32} {port:>10} {bytes:>9} {carried:>9} {denied:>8} {failed:>8} {new}");
        line.trim_end().to_owned() + "\n"
    };
    let mut text = row(["FROM", "TO", "PORT", "BYTES", "CARRIED", "DENIED", "FAILED", ""]);
    for (pair, counts) in sorted.iter().take(rows) {
        let (port, bytes) = (format!("{}/{}", pair.port, pair.protocol), scaled(counts.bytes));
        let [carried, denied, failed] =
            [counts.carried, counts.denied, counts.failed].map(|count| count.to_string());
        let new = if is_new(pair) { "new" } else { "" };
        text.push_str(&row([&pair.from, &pair.to, &port, &bytes, &carried, &denied, &failed, new]));
    }
    if sorted.len() > rows {
        text.push_str(&format!("and {} more\n", sorted.len() - rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::observe::edges::tests::record;
    use super::*;

    #[test]
    fn rows_are_sorted_as_asked_and_those_left_out_are_counted() {
        let mut edges = Edges::default();
        let mut other = record("connection-denied", "2", 0);
        other["destination"]["port"] = json!(80);
        for record in [record("connection-ended", "1", 2048), other] {
            edges.add(&Glance::from(&record));
        }
        let by = |by, rows| table(&edges, by, rows, |pair: &Pair| pair.port == 80);
        let lines = |text: String| -> Vec<String> { text.lines().map(ToOwned::to_owned).collect() };
        let of_bytes = lines(by(By::Bytes, 2));
        assert!(of_bytes[1].contains("5432/TCP") && of_bytes[1].contains("2.0K"), "{of_bytes:?}");
        assert!(of_bytes[2].contains("80/TCP") && of_bytes[2].ends_with("new"), "{of_bytes:?}");
        let of_denied = lines(by(By::Denied, 1));
        assert!(of_denied[1].contains("80/TCP"), "{of_denied:?}");
        assert_eq!(of_denied[2], "and 1 more");
    }
}
