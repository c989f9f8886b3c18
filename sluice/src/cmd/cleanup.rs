//! `sluice cleanup`: takes away what an installation left on this node and says what it was.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use redirect::{CleanupError, CleanupErrors, CleanupReport, RedirectConfig};

use crate::config::Config;

/// An agent that still runs puts back what is missing five times a second.
const COMES_BACK: Duration = Duration::from_millis(500);

/// Arguments of `sluice cleanup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML) of the installation
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also while a process reads the agent's queue. A live agent puts its rules back at once, and until then
    /// nothing is enforced
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().redirect;
    if let Some(queue) = read_queue(&config).filter(|_| !args.force) {
        anyhow::bail!(
            "`sluice run` works on this node (queue {queue} is read) and would put back what is removed; stop it \
             first. If another program reads that queue: --force"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let removed = runtime.block_on(async {
        let report = redirect::cleanup(&config).await?;
        if report.removed.is_empty() {
            return Ok((report, CleanupReport::default()));
        }
        tokio::time::sleep(COMES_BACK).await;
        Ok((report, redirect::cleanup(&config).await?))
    });
    match removed {
        Ok((report, _)) if report.removed.is_empty() => println!("nothing to remove"),
        Ok((report, again)) => {
            print(&report);
            if !again.removed.is_empty() {
                anyhow::bail!(
                    "what was removed came back at once: `sluice run` still works on this node; stop it first"
                );
            }
        }
        Err::<_, CleanupErrors>(errors) if errors.errors.iter().all(CleanupError::not_permitted) => {
            anyhow::bail!("not permitted to change this node's network: run as root or with CAP_NET_ADMIN")
        }
        Err(errors) => {
            print(&errors.report);
            return Err(errors.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The first of the configured queues that a process reads: as a rule, the agent.
fn read_queue(config: &RedirectConfig) -> Option<u16> {
    let bound = redirect::survey::bound_queues();
    (config.queue..=config.queue.saturating_add(config.queues.saturating_sub(1)))
        .find(|queue| bound.contains(queue))
}

fn print(report: &CleanupReport) {
    report.removed.iter().for_each(|line| println!("removed {line}"));
}
