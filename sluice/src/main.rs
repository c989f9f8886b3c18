//! The `sluice` command: command line, configuration, wiring. Exit codes: 0 done, 1 the answer is no,
//! 2 bad input or usage.

mod admin;
mod agent;
mod cmd;
mod complaint;
mod config;
mod exposition;
mod interfaces;
mod logging;
#[cfg(test)]
mod metrics_page;
mod node;
mod node_metrics;
mod rights;
mod source;
mod source_metrics;
mod status;
mod uncovered;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Node-level, sidecar-free L4 policy enforcer for Kubernetes, without eBPF.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforce NetworkPolicy on this node's pods and record their connections
    Run(cmd::run::Args),
    /// A cluster of network namespaces on this machine: the real datapath, real traffic
    Lab(cmd::lab::Args),
    /// Decide probes offline: JSON lines in, JSON lines out
    Verdict(cmd::verdict::Args),
    /// Say why a connection is allowed or denied, and the smallest change that flips it
    Explain(cmd::explain::Args),
    /// Find what is valid in manifests and yet surely not meant
    Lint(cmd::lint::Args),
    /// Ask a running agent what it is doing and whether it is ready
    Status(cmd::status::Args),
    /// Connection records: filtered, followed, printed
    Observe(Box<cmd::observe::Args>),
    /// Who talks most, who is denied, and who is new
    Top(Box<cmd::top::Args>),
    /// Who talks to whom, as a graph: DOT, Mermaid, JSON
    Graph(Box<cmd::graph::Args>),
    /// Say what this node has and lacks, and try a denied and an allowed connection
    Doctor(cmd::doctor::Args),
    /// Print the rules that would be installed on this node
    Rules(cmd::rules::Args),
    /// Remove every rule, route and mark that Sluice has left on this node
    Cleanup(cmd::cleanup::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse_from(cmd::observe::filter::with_not(std::env::args_os())).command {
        Command::Run(args) => cmd::run::execute(args),
        Command::Lab(args) => cmd::lab::execute(args),
        Command::Verdict(args) => cmd::verdict::execute(args),
        Command::Explain(args) => cmd::explain::execute(args),
        Command::Lint(args) => cmd::lint::execute(args),
        Command::Status(args) => cmd::status::execute(args),
        Command::Observe(args) => cmd::observe::execute(*args),
        Command::Top(args) => cmd::top::execute(&args),
        Command::Graph(args) => cmd::graph::execute(&args),
        Command::Doctor(args) => cmd::doctor::execute(args),
        Command::Rules(args) => cmd::rules::execute(args),
        Command::Cleanup(args) => cmd::cleanup::execute(args),
    };
    result.unwrap_or_else(|error| {
        complaint::complain(format_args!("sluice: {}", in_one_line(&error)));
        ExitCode::from(2)
    })
}

/// An error, and those of its causes that it does not quote itself.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        quoted if quoted.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}
