//! `sluice lab`.

use std::process::ExitCode;

/// Arguments of `sluice lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn execute(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not available in this build")
}
