//! `bench-datapath`: what a connection costs through Sluice, beside the same connection through other proxies
//! and through none.
//!
//! Each subject is a cluster of the same shape. They take turns (A B C, A B C …), so that a drift of the
//! machine meets all of them; figures are medians over rounds, ratios are taken within a round.

mod anchor;
mod load;
mod measure;
mod report;
mod soak;
mod subject;
mod target;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::anchor::Kind;
use crate::measure::{Part, Plan};
use crate::report::{Better, Table};
use crate::subject::Subject;
use crate::target::TARGETS;

/// What a connection costs through Sluice, measured with real sockets in network namespaces. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Beside HAProxy, nginx and no proxy, with the targets
    Proxies {
        /// The binary to measure
        #[arg(long, default_value = "target/release/sluice")]
        sluice: PathBuf,
        /// Only these subjects
        #[arg(long, value_delimiter = ',', default_value = "direct,haproxy,nginx,sluice")]
        subjects: Vec<String>,
        #[command(flatten)]
        how: How,
        /// Exit with 1 when a target is missed
        #[arg(long)]
        check: bool,
    },
    /// One revision beside another
    Revisions {
        /// The binary to compare with
        #[arg(long)]
        base: PathBuf,
        /// The binary to measure
        #[arg(long, default_value = "target/release/sluice")]
        sluice: PathBuf,
        #[command(flatten)]
        how: How,
        /// Loss in percent past which a figure fails, if every round shows a loss; latencies' p99 and max are shown
        /// and never fail
        #[arg(long, default_value_t = 10.0)]
        max_loss: f64,
    },
    /// Churn of every kind; fails when descriptors, pipes, memory, conntrack or the registry grow
    Soak {
        /// The binary to watch
        #[arg(long, default_value = "target/release/sluice")]
        sluice: PathBuf,
        /// How long, in seconds
        #[arg(long, default_value_t = 120.0)]
        seconds: f64,
    },
}

#[derive(Debug, Args)]
struct How {
    /// Rounds of every measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// One round of short measurements, to see that everything works; its figures are worth nothing
    #[arg(long)]
    quick: bool,
    /// Also write the figures of every round to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

impl How {
    fn plan(&self) -> Plan {
        let (rounds, span) = if self.quick { (1, 0.1) } else { (self.rounds.max(1), self.seconds) };
        Plan { rounds, span: Duration::from_secs_f64(span), parts: self.parts.clone(), quick: self.quick }
    }

    fn write(&self, table: &Table, calls: &measure::Calls) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            let report = serde_json::json!({
                "machine": machine(),
                "table": table,
                "targets": table.judged().iter().map(|(target, judged)| serde_json::json!({
                    "target": target.to_string(),
                    "value": judged.map(|(value, _)| value),
                    "met": judged.map(|(_, met)| met),
                })).collect::<Vec<_>>(),
                "system_calls_per_connection": calls,
            });
            std::fs::write(path, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<ExitCode> {
    // A bench keeps both ends of thousands of connections.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let started = Instant::now();
    let code = match Arguments::parse().command {
        Command::Proxies { sluice, subjects, how, check } => proxies(&sluice, &subjects, &how, check),
        Command::Revisions { base, sluice, how, max_loss } => revisions(&base, &sluice, &how, max_loss),
        Command::Soak { sluice, seconds } => {
            soak::run(&sluice, Duration::from_secs_f64(seconds)).map(|()| ExitCode::SUCCESS)
        }
    };
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
    code
}

fn proxies(sluice: &std::path::Path, wanted: &[String], how: &How, check: bool) -> anyhow::Result<ExitCode> {
    let make = |name: &String| match name.as_str() {
        "direct" => Subject::direct(),
        "haproxy" => Subject::anchor(name, Kind::HaProxy),
        "nginx" => Subject::anchor(name, Kind::Nginx),
        "sluice" => Subject::sluice(name, sluice),
        _ => bail!("no subject {name}: direct, haproxy, nginx, sluice"),
    };
    let subjects = wanted.iter().map(make).collect::<anyhow::Result<Vec<_>>>()?;
    let mut table = Table::new(wanted.iter().cloned(), TARGETS);
    println!("{}\n", machine());
    let calls = how.plan().run(&subjects, &mut table)?;
    println!("{table}");
    measure::print_calls(&calls);
    let mut missed = false;
    println!("| target | bound | measured | |\n|---|---|---:|---|");
    for (target, judged) in table.judged() {
        match judged {
            Some((value, met)) => {
                missed |= !met;
                println!("| {target} | {value:.2} | {} |", if met { "met" } else { "missed" });
            }
            None => println!("| {target} | | not measured |"),
        }
    }
    println!();
    how.write(&table, &calls)?;
    Ok(ExitCode::from(u8::from(check && missed)))
}

fn revisions(
    base: &std::path::Path,
    sluice: &std::path::Path,
    how: &How,
    max_loss: f64,
) -> anyhow::Result<ExitCode> {
    let subjects = [Subject::sluice("base", base)?, Subject::sluice("new", sluice)?];
    let mut table = Table::new(subjects.iter().map(|subject| subject.name().to_owned()), &[]);
    println!("{}\n", machine());
    let calls = how.plan().run(&subjects, &mut table)?;
    println!("{table}");
    measure::print_calls(&calls);
    how.write(&table, &calls)?;
    let mut code = ExitCode::SUCCESS;
    for (figure, better, ratio) in table.ratios("new", "base") {
        // So that less is always worse.
        let (gain, best) = if better == Better::More {
            (ratio.median, ratio.high)
        } else {
            (1.0 / ratio.median, 1.0 / ratio.low)
        };
        let is_tail = figure.ends_with("p99") || figure.ends_with("max");
        // On a busy machine medians wander; a loss that one round does not show is no loss.
        if !is_tail && gain < 1.0 - max_loss / 100.0 && best < 1.0 {
            println!(
                "LOSS {figure}: new is {:.2} of base ({:.2} … {:.2})",
                ratio.median, ratio.low, ratio.high
            );
            code = ExitCode::from(1);
        }
    }
    if code == ExitCode::SUCCESS {
        println!("no figure lost more than {max_loss} %");
    }
    Ok(code)
}

/// What the figures were taken on. A load far above zero before the start means that others were at work.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            Some(line.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':']).to_owned())
        })
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    format!(
        "{cores} cores of {model}, Linux {}, load {} at this moment",
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    )
}
