//! What can go wrong while a cluster is built or a process in it is driven.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the lab. Each names the namespace, file or object it is about.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program of the system is missing or could not be started.
    #[error("start `{program}` (is it installed, and are you root?)")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// `ip` or `nft` refused its input.
    #[error("`{program}` in {place} refused:\n{stderr}input was:\n{input}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The namespace, or `the caller's namespace`.
        place: String,
        /// What it printed.
        stderr: String,
        /// What it was given.
        input: String,
    },
    /// A namespace could not be opened or entered.
    #[error("network namespace {name}")]
    Namespace {
        /// Its name under /run/netns.
        name: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A kernel switch could not be set.
    #[error("sysctl {key}={value} in {name}")]
    Sysctl {
        /// The namespace.
        name: String,
        /// The key, with dots.
        key: String,
        /// The value that was to be set.
        value: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file or folder of the lab.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The description contradicts itself.
    #[error("{object}: {problem}")]
    Description {
        /// The pod, Service or node.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No such pod, node or Service.
    #[error("no {kind} named {name} in this cluster")]
    Unknown {
        /// `pod`, `node` or `service`.
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The binary under test was not found.
    #[error("no sluice binary at {} (build it with `cargo build -p sluice`, or set SLUICE_BIN)", path.display())]
    NoBinary {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something that was waited for did not come.
    #[error("{what} did not happen within {limit:?}\n{context}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen instead: the process's standard error, the last answer.
        context: String,
    },
    /// The process ended while it was needed.
    #[error("sluice on {node} ended with {status}\n{stderr}")]
    Exited {
        /// Its node.
        node: String,
        /// The exit status.
        status: String,
        /// What it printed.
        stderr: String,
    },
    /// The admin interface did not answer as expected.
    #[error("GET {path} on {node}")]
    Http {
        /// The node.
        node: String,
        /// The path asked for.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A metric that the process does not have.
    #[error("no metric {series} on {node}")]
    NoMetric {
        /// The node.
        node: String,
        /// The series asked for.
        series: String,
    },
}
