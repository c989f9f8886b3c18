//! `sluice observe`: records, from wherever they are, filtered and printed.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

pub(crate) mod edges;
pub(crate) mod filter;
pub(crate) mod print;
mod source;
mod time;

use filter::Filters;
use print::Format;
use source::{From, Wanted};
use time::Span;

/// Records of a store or an agent that are shown when nothing says how many.
const LAST: usize = 20;

/// Arguments of `sluice observe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Only the last N of the records that match. Default 20; all of a file, or with --since or --until
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Go on with new records as they come
    #[arg(long, short)]
    follow: bool,
    /// How to print them
    #[arg(long, short, value_enum, default_value_t = Format::Compact)]
    output: Format,
    /// Print the JSON Schema of a record and stop
    #[arg(long)]
    schema: bool,
}

/// Which records, from where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Selection {
    #[command(flatten)]
    from: From,
    /// Not before: a time ago such as 10m, or 2026-08-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    since: Option<i64>,
    /// Not after
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    until: Option<i64>,
    #[command(flatten)]
    filters: Filters,
}

impl Selection {
    /// Gives every record that matches to `each`, which says whether to go on.
    pub(crate) fn read(
        &self,
        follow: bool,
        mut each: impl FnMut(&Value, &str) -> io::Result<bool>,
    ) -> anyhow::Result<()> {
        self.filters.check()?;
        // What is followed begins now, unless it is said when.
        let since = self.since.or_else(|| follow.then(time::now));
        let span = Span { since: since.unwrap_or(i64::MIN), until: self.until.unwrap_or(i64::MAX) };
        let mut outcome = Ok(());
        let mut unreadable = 0_u64;
        self.from.read(&Wanted { span, follow, filters: &self.filters }, &mut |line: &str| {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                unreadable += 1;
                return true;
            };
            let is_in_time = time::of_record(&record).is_none_or(|time| span.contains(time));
            if !is_in_time || !self.filters.matches(&record) {
                return true;
            }
            match each(&record, line) {
                Ok(goes_on) => goes_on,
                Err(error) => {
                    outcome = Err(error);
                    false
                }
            }
        })?;
        if unreadable > 0 {
            eprintln!("sluice: {unreadable} lines are no JSON and were passed over");
        }
        match outcome {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// True when no time and no file says how much there is.
    fn is_open(&self) -> bool {
        self.since.is_none() && self.until.is_none() && !self.from.is_file()
    }
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let mut output = BufWriter::new(io::stdout().lock());
    if args.schema {
        output.write_all(audit::RECORD_SCHEMA.as_bytes())?;
        output.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.last == Some(0) {
        bail!("--last: must be above 0");
    }
    if args.output == Format::Table {
        writeln!(output, "{}", print::HEAD)?;
        output.flush()?;
    }
    let show = |output: &mut BufWriter<_>, record: &Value, line: &str| {
        writeln!(output, "{}", print::line(args.output, record, line))
    };
    if args.follow {
        args.selection.read(true, |record, line| {
            show(&mut output, record, line)?;
            output.flush()?;
            Ok(true)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let last = args.last.or_else(|| args.selection.is_open().then_some(LAST));
    let Some(last) = last else {
        args.selection.read(false, |record, line| show(&mut output, record, line).map(|()| true))?;
        let _ = output.flush();
        return Ok(ExitCode::SUCCESS);
    };
    let mut kept: VecDeque<(Value, String)> = VecDeque::new();
    args.selection.read(false, |record, line| {
        if kept.len() == last {
            kept.pop_front();
        }
        kept.push_back((record.clone(), line.to_owned()));
        Ok(true)
    })?;
    for (record, line) in kept {
        if show(&mut output, &record, &line).is_err() {
            break;
        }
    }
    let _ = output.flush();
    Ok(ExitCode::SUCCESS)
}
