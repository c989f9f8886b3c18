//! `sluice cleanup`: takes away what an installation left on this node and says what it was.

use std::path::PathBuf;
use std::process::ExitCode;

use redirect::{CleanupError, CleanupReport};

use crate::config::Config;

/// Arguments of `sluice cleanup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML) of the installation
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().redirect;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(redirect::cleanup(&config)) {
        Ok(report) if report.removed.is_empty() => println!("nothing to remove"),
        Ok(report) => print(&report),
        Err(errors) if errors.errors.iter().all(CleanupError::not_permitted) => {
            anyhow::bail!("not permitted to change this node's network: run as root or with CAP_NET_ADMIN")
        }
        Err(errors) => {
            print(&errors.report);
            return Err(errors.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &CleanupReport) {
    report.removed.iter().for_each(|line| println!("removed {line}"));
}
