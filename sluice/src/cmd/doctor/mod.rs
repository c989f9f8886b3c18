//! `sluice doctor`: what this node has, lacks, and shares with others, each with its consequence and remedy, and a
//! live test in namespaces of its own.
//!
//! [`facts`] reads, the checks judge what was read and read nothing themselves, [`self_test`] tries. Nothing of the
//! node is changed, and an agent that runs beside is not disturbed.

mod bridges;
mod facts;
mod finding;
mod interfaces;
mod kernel;
mod leftovers;
mod limits;
mod marks;
mod others;
mod rules;
mod self_test;
mod settings;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use self::facts::Facts;
use self::finding::{Finding, State};
use crate::cmd::explain::{Output, print};
use crate::cmd::lab::interrupt::{Interrupt, Interrupted};
use crate::config::Config;

/// Arguments of `sluice doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML) of this node's agent; every key has a default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print the findings
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Leave the live test out: only look
    #[arg(long)]
    no_self_test: bool,
}

/// Everything that was found. Field names are stable.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether nothing was found under which enforcement cannot be guaranteed.
    guaranteed: bool,
    /// This program's version.
    version: &'static str,
    /// The kernel's release; empty when it does not tell.
    kernel: String,
    /// What was looked at, in this order.
    findings: Vec<Finding>,
}

/// Runs the command. Exits with 0 when enforcement can be guaranteed, 1 when not, 2 on bad usage.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    let interrupt = Interrupt::install()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let survey = runtime.block_on(redirect::survey::survey(config.redirect.backend));
    // No thread of it may be left when the self-test enters namespaces.
    drop(runtime);
    let facts = Facts::read(survey, config);
    let mut findings = judge(&facts);
    if !args.no_self_test {
        match self_test::run(&facts, &interrupt) {
            Ok(found) => findings.extend(found),
            Err(error) => match error.downcast_ref::<Interrupted>() {
                Some(interrupted) => {
                    eprintln!("sluice: {interrupted}; what the self-test made is removed");
                    return Ok(ExitCode::from(interrupted.exit_code()));
                }
                None => return Err(error),
            },
        }
    }
    let report = Report {
        guaranteed: findings.iter().all(|finding| finding.state != State::Fail),
        version: env!("CARGO_PKG_VERSION"),
        kernel: facts.setting("kernel/osrelease").unwrap_or_default().to_owned(),
        findings,
    };
    match args.output {
        Output::Text => print(&text::render(&report))?,
        Output::Json => print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
    }
    Ok(ExitCode::from(u8::from(!report.guaranteed)))
}

/// Everything that can be said without trying it.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = kernel::check(facts);
    findings.extend(settings::check(facts));
    findings.extend(bridges::check(facts));
    findings.extend(interfaces::check(facts));
    findings.extend(limits::check(facts));
    findings.extend(others::check(facts));
    findings.extend(rules::check(facts));
    findings.extend(marks::check(facts));
    findings.extend(leftovers::check(facts));
    findings
}
