//! `sluice lint`: what people get wrong in manifests though they are valid. Needs no kernel and no privilege.

use std::path::PathBuf;
use std::process::ExitCode;

use super::explain::{Output, print, print_notes};

/// Arguments of `sluice lint`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Manifest files, and folders that are read with their subfolders
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// How to print the findings
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the command. Exits with 0 when nothing was found, 1 when something was, 2 on bad input.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let report = match policy_cache::lint(&args.manifests) {
        Ok(report) => report,
        Err(error) => {
            crate::complaint::complain(&error);
            return Ok(ExitCode::from(2));
        }
    };
    match args.output {
        Output::Text => {
            print_notes(report.notes());
            print(&crate::complaint::harmless(&report.to_string()))?;
        }
        Output::Json => print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
    }
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}
