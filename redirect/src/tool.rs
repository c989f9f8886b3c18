//! Runs the system's network tools: a script on standard input, the answer on standard output.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// A tool that has not answered by then hangs on a lock or a dead kernel thread.
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than any table of ours, and less than a machine's memory.
const MOST_BYTES: u64 = 64 << 20;
/// What is kept of a complaint.
const COMPLAINT: usize = 4 << 10;

/// Why a tool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program}: not found; {remedy}")]
    Missing {
        /// The program.
        program: String,
        /// How to get it.
        remedy: String,
    },
    /// The caller may not change the network.
    #[error("{program}: not permitted; run as root or with CAP_NET_ADMIN ({message})")]
    NotPermitted {
        /// The program.
        program: String,
        /// What it said.
        message: String,
    },
    /// It ran and refused.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// What it said.
        message: String,
    },
    /// It could not be run.
    #[error("run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It did not answer.
    #[error("{program}: no answer within {limit:?}")]
    TimedOut {
        /// The program.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
}

/// Where the first of `names` is installed: along PATH, and in the system directories that a service's PATH
/// may leave out.
pub(crate) fn find(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from)).collect();
    names.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()))
}

/// Runs nft, see [`run`].
pub(crate) async fn nft(arguments: &[&str], script: &str) -> Result<String, ToolError> {
    let Some(program) = find(&["nft"]) else {
        return Err(ToolError::Missing { program: "nft".into(), remedy: "apt-get install nftables".into() });
    };
    run(&program, arguments, script).await
}

/// Runs `program` with `script` on its standard input and gives back what it printed.
pub(crate) async fn run(program: &PathBuf, arguments: &[&str], script: &str) -> Result<String, ToolError> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed_to_run = |cause| ToolError::Run { program: name.clone(), cause };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed_to_run)?;
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(stdin) = &mut stdin {
            // A tool that has failed already closes its end; its exit status tells the story.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        drop(stdin);
    };
    let both = async {
        // A tool that prints beyond the limit is ended by its next write: its pipe is closed.
        let ((), stdout, stderr, status) = tokio::join!(feed, bounded(stdout), bounded(stderr), child.wait());
        Ok::<_, io::Error>((stdout?, stderr?, status?))
    };
    let (stdout, stderr, status) = tokio::time::timeout(PATIENCE, both)
        .await
        .map_err(|_| ToolError::TimedOut { program: name.clone(), limit: PATIENCE })?
        .map_err(failed_to_run)?;
    if stdout.len() as u64 >= MOST_BYTES {
        let message = format!("printed more than {} MiB", MOST_BYTES >> 20);
        return Err(ToolError::Failed { program: name, status: status.to_string(), message });
    }
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let complaint = &stderr[..stderr.len().min(COMPLAINT)];
    let message = String::from_utf8_lossy(complaint).trim().to_owned();
    // The kernel's words, those of iptables' nf_tables variant, and those of the older one, which may not even lock.
    const NOT_PERMITTED: [&str; 3] = ["Operation not permitted", "you must be root", "Permission denied"];
    if NOT_PERMITTED.iter().any(|words| message.contains(words)) {
        return Err(ToolError::NotPermitted { program: name, message });
    }
    Err(ToolError::Failed { program: name, status: status.to_string(), message })
}

/// Everything up to the limit. The pipe is closed then.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> Result<String, ToolError> {
        run(&"/bin/sh".into(), &["-c", script], "asked").await
    }

    #[tokio::test]
    async fn what_a_tool_prints_is_given_back_and_what_it_complains_of_is_the_error() {
        assert_eq!(sh("cat; printf ' answered'").await.unwrap(), "asked answered");
        let error = sh("echo broken >&2; exit 3").await.unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_permitted_is_told_from_what_is_not_there() {
        for said in [
            "netlink: Error: cache initialization failed: Operation not permitted",
            "Could not fetch rule set generation id: Permission denied (you must be root)",
            "Fatal: can't open lock file /run/xtables.lock: Permission denied",
        ] {
            let error = sh(&format!("echo \"{said}\" >&2; exit 4")).await.unwrap_err();
            assert!(matches!(error, ToolError::NotPermitted { .. }), "{error}");
        }
        let error = sh("echo 'Extension TPROXY is not supported' >&2; exit 2").await.unwrap_err();
        assert!(matches!(error, ToolError::Failed { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_prints_without_end_is_ended_and_told() {
        let error = sh("exec yes").await.unwrap_err();
        assert!(error.to_string().contains("more than 64 MiB"), "{error}");
    }
}
