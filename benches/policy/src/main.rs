//! `bench-policy`: what the policy cache costs, by the size of the cluster.
//!
//! Every size is measured in a process of its own, so that memory is that of one cluster and nothing before it.

mod clock;
mod events;
mod measure;
mod memory;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use clap::Parser;
use policy_bench::{Cluster, Shape};

/// The size that the targets are stated for.
const TARGET_PODS: usize = 150_000;

/// Measures the policy cache in clusters of several sizes.
#[derive(Debug, Parser)]
struct Args {
    /// Pods of each cluster; namespaces, policies and nodes follow in proportion
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, TARGET_PODS])]
    pods: Vec<usize>,
    /// Give every pod an IPv6 address too
    #[arg(long)]
    dual_stack: bool,
    /// Seed of the clusters and of what is asked in them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Exit with 1 when the largest cluster misses a target
    #[arg(long)]
    check: bool,
    /// Write the first cluster into this folder, manifests and a million probes, instead of measuring
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Measure one cluster in this process and print its figures
    #[arg(long, hide = true, value_name = "PODS")]
    one: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(pods) = args.one {
        let shape = Shape { dual_stack: args.dual_stack, ..Shape::of(pods) };
        for figure in measure::all(&Cluster::new(shape, args.seed))? {
            println!("{}\t{}", figure.name, figure.value);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(folder), Some(pods)) = (&args.write, args.pods.first()) {
        let shape = Shape { dual_stack: args.dual_stack, ..Shape::of(*pods) };
        write(&Cluster::new(shape, args.seed), folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = args.pods.iter().map(|pods| one(*pods, &args)).collect::<anyhow::Result<Vec<Column>>>()?;
    let missed = print(&args.pods, &columns);
    Ok(if args.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes `manifests/` and `probes`.
fn write(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    let manifests = folder.join("manifests");
    fs::create_dir_all(&manifests)?;
    for (name, text) in cluster.texts() {
        fs::write(manifests.join(name), text)?;
    }
    fs::write(folder.join("probes"), measure::probes(cluster))?;
    Ok(())
}

/// Figures by name.
type Column = BTreeMap<String, f64>;

/// Measures one size in a child process.
fn one(pods: usize, args: &Args) -> anyhow::Result<Column> {
    eprintln!("{pods} pods …");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--one", &pods.to_string(), "--seed", &args.seed.to_string()]);
    if args.dual_stack {
        command.arg("--dual-stack");
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "measuring {pods} pods failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once('\t').context("a line without a value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// Prints the table. True when a target was missed.
fn print(sizes: &[usize], columns: &[Column]) -> bool {
    print!("| figure | unit |");
    for pods in sizes {
        print!(" {pods} pods |");
    }
    println!(" target | |\n|---|---|{}---|---|", "---:|".repeat(sizes.len()));
    let mut missed = false;
    for row in measure::ROWS {
        print!("| {} | {} |", row.name, row.unit);
        for column in columns {
            print!(" {} |", column.get(row.name).map_or(String::new(), |value| short(*value)));
        }
        let largest = sizes.iter().zip(columns).rfind(|(pods, _)| **pods == TARGET_PODS);
        let value = largest.and_then(|(_, column)| column.get(row.name));
        let met = row.target.zip(value).map(|(target, value)| target.holds(*value));
        missed |= met == Some(false);
        let target = row.target.map_or(String::new(), |target| target.to_string());
        println!(" {target} | {} |", met.map_or("", |met| if met { "met" } else { "missed" }));
    }
    missed
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
