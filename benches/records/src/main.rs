//! What records cost to make and to keep, and how long questions to a day of them take.
//!
//! `sinks` measures each kind of sink in a process of its own, on one core. `day` fills a store with the records of
//! a day and asks what people ask, as `sluice observe`, `sluice top` and Hubble's tools do.

mod day;
mod population;
mod receiver;
mod sinks;
mod usage;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Figures of records, as tables for benches/README.md.
#[derive(Debug, Parser)]
#[command(name = "bench-records")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Records a second, bytes and processor time of each sink, and how long a submitter is held up
    Sinks {
        /// Records to each sink
        #[arg(long, default_value_t = 500_000)]
        records: u64,
        /// Only these
        #[arg(long, value_delimiter = ',')]
        only: Vec<sinks::Subject>,
    },
    /// A store of a day, and questions to it
    Day {
        /// Where the store is, or is made when it is not there
        folder: PathBuf,
        /// Records of the day
        #[arg(long, default_value_t = 10_000_000)]
        records: u64,
        /// The program whose questions are timed
        #[arg(long, default_value = "target/release/sluice")]
        sluice: PathBuf,
        /// Times that each question is asked; the median is told
        #[arg(long, default_value_t = 3)]
        times: usize,
    },
    /// One sink, in this process
    #[command(hide = true)]
    One { subject: sinks::Subject, records: u64, folder: PathBuf, endpoint: String },
    /// A collector, until its standard input ends
    #[command(hide = true)]
    Receive,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().part {
        Part::Sinks { records, only } => sinks::measure_all(records, &only),
        Part::Day { folder, records, sluice, times } => day::measure(&folder, records, &sluice, times),
        Part::One { subject, records, folder, endpoint } => {
            sinks::measure_here(subject, records, &folder, &endpoint)
        }
        Part::Receive => receiver::run(),
    }
}
