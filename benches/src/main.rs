//! `bench-datapath`: what a connection costs through Sluice, beside the same connection without it.
//!
//! Two clusters of the same shape, one with `sluice run` and one without, take turns: direct, Sluice, direct,
//! Sluice … so that a drift of the machine meets both. Figures are medians over rounds and their ratios.

mod load;
mod report;
mod subject;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::report::Table;
use crate::subject::Subject;

/// Compares connections through Sluice with direct ones.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure
    #[arg(long, default_value = "target/release/sluice")]
    sluice: PathBuf,
    /// Rounds of every measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Also write the figures of every round to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let subjects = [Subject::direct()?, Subject::sluice(&args.sluice)?];
    let mut table = Table::new(subjects.iter().map(Subject::name));
    let span = Duration::from_secs(args.seconds);
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        for subject in &subjects {
            table.add(subject.name(), &subject.bulk(span)?);
            table.add(subject.name(), &subject.ping_pong(span)?);
            for clients in [1, 16] {
                table.add(subject.name(), &subject.connections(clients, span)?);
            }
        }
    }
    print!("{table}");
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_string_pretty(&table)?)?;
    }
    Ok(())
}
