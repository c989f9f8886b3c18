//! What the process says on standard error.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};

/// Starts logging. Fails when it was started before, or the filter is none.
///
/// A thread of its own writes the lines, and loses lines rather than wait: a pipe that nobody reads must not
/// stop the datapath. Dropping the guard writes what is left.
pub(crate) fn start(config: &LogConfig) -> anyhow::Result<WorkerGuard> {
    let mut filter = EnvFilter::try_new(&config.filter)?;
    if !config.filter.contains("kube") {
        // It tells of every request that fails, which is told here as it matters.
        filter = filter.add_directive("kube_client::client::builder=off".parse()?);
    }
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let lines = fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("start logging: {error}"))?;
    Ok(guard)
}
