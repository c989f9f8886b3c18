//! `sluice observe`: records, from wherever they are, filtered and printed.

use std::collections::{HashSet, VecDeque};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::bail;
use audit::Glance;
use serde_json::Value;

pub(crate) mod edges;
pub(crate) mod filter;
pub(crate) mod print;
mod source;
mod time;

use edges::Edges;
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
    /// Only the last N of the records that match, before those that --follow adds. Default 20; all of a file, or with
    /// --since or --until
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
        each: impl FnMut(&Value, &str) -> io::Result<bool>,
    ) -> anyhow::Result<()> {
        self.check(follow)?;
        // What is followed begins now, unless it is said when.
        let since = self.since.or_else(|| follow.then(time::now));
        self.read_from(since.unwrap_or(i64::MIN), follow, false, each)
    }

    /// Adds up all that matches.
    pub(crate) fn add_up(&self, edges: &mut Edges) -> anyhow::Result<()> {
        self.check(false)?;
        let span = Span { since: self.since.unwrap_or(i64::MIN), until: self.until.unwrap_or(i64::MAX) };
        let wanted = Wanted { span, follow: false, newest_first: false, filters: &self.filters };
        if self.from.add_up(&wanted, edges)? {
            return Ok(());
        }
        self.read(false, |record, _| {
            edges.add(&Glance::from(record));
            Ok(true)
        })
    }

    fn read_from(
        &self,
        since: i64,
        follow: bool,
        newest_first: bool,
        mut each: impl FnMut(&Value, &str) -> io::Result<bool>,
    ) -> anyhow::Result<()> {
        let span = Span { since, until: self.until.unwrap_or(i64::MAX) };
        let mut outcome = Ok(());
        let mut unreadable = 0_u64;
        let wanted = Wanted { span, follow, newest_first, filters: &self.filters };
        self.from.read(&wanted, &mut |line: &str| {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                unreadable += 1;
                return true;
            };
            let glance = Glance::from(&record);
            if !glance.time.is_none_or(|time| span.contains(time)) || !self.filters.matches(&glance) {
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
            crate::complaint::complain(format_args!(
                "sluice: {unreadable} lines are no JSON and were passed over"
            ));
        }
        has_reader(outcome)?;
        Ok(())
    }

    /// The last `number` records that match, the oldest first.
    fn last(&self, number: usize) -> anyhow::Result<Vec<(Value, String)>> {
        let mut kept: VecDeque<(Value, String)> = VecDeque::new();
        let since = self.since.unwrap_or(i64::MIN);
        let is_backwards = !self.from.is_file();
        self.read_from(since, false, is_backwards, |record, line| {
            if is_backwards {
                kept.push_front((record.clone(), line.to_owned()));
                return Ok(kept.len() < number);
            }
            if kept.len() == number {
                kept.pop_front();
            }
            kept.push_back((record.clone(), line.to_owned()));
            Ok(true)
        })?;
        Ok(kept.into())
    }

    /// Every record that comes after `last`, the last `number` so far. What is kept late may be older than the
    /// newest of them, but not than all.
    fn follow_on(
        &self,
        last: &[(Value, String)],
        number: usize,
        mut each: impl FnMut(&Value, &str) -> io::Result<bool>,
    ) -> anyhow::Result<()> {
        let times = || last.iter().filter_map(|(record, _)| Glance::from(record).time);
        let newest = times().max().unwrap_or_else(time::now);
        let oldest = times().min().filter(|_| last.len() == number).unwrap_or(i64::MIN);
        let told: HashSet<&str> = last.iter().map(|(_, line)| line.as_str()).collect();
        let since = newest.saturating_sub(source::LATENESS).max(self.since.unwrap_or(i64::MIN));
        self.read_from(since, true, false, |record, line| {
            let is_before = Glance::from(record).time.is_some_and(|time| time < oldest);
            if is_before || told.contains(line) { Ok(true) } else { each(record, line) }
        })
    }

    /// Fails for what cannot match anything.
    fn check(&self, follow: bool) -> anyhow::Result<()> {
        self.filters.check()?;
        let now = time::now();
        if self.since.is_some_and(|since| since > now) {
            bail!("--since: lies in the future; must be a time ago such as 10m, or a time that has been");
        }
        if self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            bail!("--since: must be before --until, which is earlier");
        }
        if follow && self.until.is_some_and(|until| until < now) {
            bail!("--until: lies in the past, and --follow waits for what comes");
        }
        Ok(())
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
        has_reader(output.write_all(audit::RECORD_SCHEMA.as_bytes()).and_then(|()| output.flush()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.last == Some(0) {
        bail!("--last: must be above 0");
    }
    args.selection.check(args.follow)?;
    if args.last.is_some() && args.follow && args.selection.from.is_stdin() {
        bail!("--last with --follow: standard input comes once; leave one of them out");
    }
    if args.output == Format::Table
        && !has_reader(writeln!(output, "{}", print::HEAD).and_then(|()| output.flush()))?
    {
        return Ok(ExitCode::SUCCESS);
    }
    let mut show = |record: &Value, line: &str, is_live: bool| {
        let written = writeln!(output, "{}", print::line(args.output, record, line));
        has_reader(written.and_then(|()| if is_live { output.flush() } else { Ok(()) }))
    };
    let selection = &args.selection;
    let last = match (args.last, args.follow) {
        (None, false) => selection.is_open().then_some(LAST),
        (last, _) => last,
    };
    match last {
        None => selection.read(args.follow, |record, line| show(record, line, args.follow))?,
        Some(number) => {
            let last = selection.last(number)?;
            for (record, line) in &last {
                if !show(record, line, args.follow)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            if args.follow {
                selection.follow_on(&last, number, |record, line| show(record, line, true))?;
            }
        }
    }
    has_reader(output.flush())?;
    Ok(ExitCode::SUCCESS)
}

/// False when whoever reads the output has seen enough. A disk that is full is a fault.
pub(crate) fn has_reader(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}
