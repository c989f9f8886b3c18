//! What can go wrong while a cluster is built or a process in it is driven.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the lab. Each names the namespace, file or object it is about, in one line that a person can act on; what
/// programs were given and have printed is in the fields.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program of the system that is missing.
    #[error("`{program}` is not installed: apt-get install {package}")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// A program of the system could not be started.
    #[error("start `{program}`")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// `ip` or `nft` refused its input.
    #[error("`{program}` in {place} refused: {}", complaint(.stderr, .input))]
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
    #[error("{what} did not happen within {limit:?}: {}", shown(.context.lines().next().unwrap_or_default()))]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen instead: the process's standard error, the last answer.
        context: String,
    },
    /// The process ended while it was needed.
    #[error("sluice on {node} ended with {status}: {}", last_words(.stderr))]
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

/// What of a line is shown to a person.
const SHOWN: usize = 500;

/// The first line of what a program said, and the line of its script that this is about, where it tells (ip-batch
/// counts: `Command failed -:3`).
fn complaint(stderr: &str, input: &str) -> String {
    let said = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    let number =
        stderr.lines().find_map(|line| line.strip_prefix("Command failed -:")?.trim().parse::<usize>().ok());
    match number.and_then(|number| input.lines().nth(number.checked_sub(1)?)) {
        Some(line) => format!("{} (in `{}`)", shown(said), shown(line)),
        None => shown(said),
    }
}

/// The last line of a log, which says why its process has ended.
fn last_words(log: &str) -> String {
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
    shown(last.strip_prefix("sluice: ").unwrap_or(last))
}

fn shown(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_refused_is_one_line_with_the_line_of_its_script() {
        let error = |program, stderr: &str, input: &str| LabError::Refused {
            program,
            place: "slu-1-1-node1".to_owned(),
            stderr: stderr.to_owned(),
            input: input.to_owned(),
        };
        let of_ip = error(
            "ip",
            "Error: Unknown device type.\nCommand failed -:2\n",
            "link set lo up\nlink add x type y\n",
        );
        assert_eq!(
            of_ip.to_string(),
            "`ip` in slu-1-1-node1 refused: Error: Unknown device type. (in `link add x type y`)"
        );
        let of_nft = error("nft", "/dev/stdin:1:1-2: Error: syntax error\ntable\n^^\n", "table\n");
        assert_eq!(
            of_nft.to_string(),
            "`nft` in slu-1-1-node1 refused: /dev/stdin:1:1-2: Error: syntax error"
        );
        for number in ["0", "3", "x", ""] {
            let stderr = format!("no\nCommand failed -:{number}\n");
            assert_eq!(error("ip", &stderr, "a\nb\n").to_string(), "`ip` in slu-1-1-node1 refused: no");
        }
        assert!(error("ip", "", "").to_string().ends_with("it does not say why"));
    }

    #[test]
    fn of_a_process_that_has_ended_its_last_words_are_shown() {
        let ended = |stderr: &str| LabError::Exited {
            node: "node1".to_owned(),
            status: "exit status: 2".to_owned(),
            stderr: stderr.to_owned(),
        };
        assert_eq!(
            ended("INFO started\nsluice: this node lacks ipset: apt-get install ipset\n\n").to_string(),
            "sluice on node1 ended with exit status: 2: this node lacks ipset: apt-get install ipset"
        );
        assert!(ended("").to_string().ends_with("it did not say why"));
    }
}
