//! Runs a tool and hands out its lines one by one, so that a ruleset of any size takes no memory and a tool that
//! never ends is ended.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{ChildStdout, Command};

use crate::tool::ToolError;

/// A node with ten thousand Services lists some tens of megabytes.
const MOST_BYTES: u64 = 256 << 20;
/// A longer line is cut here.
const LINE: usize = 16 << 10;
const COMPLAINT: u64 = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives every line of what `program` prints to `take`, cut at 16 KiB.
///
/// Errors: the tool failed, printed more than 256 MiB or took longer than 20 s; the lines until then were taken.
pub(super) async fn each(
    program: &PathBuf,
    arguments: &[&str],
    mut take: impl FnMut(&str),
) -> Result<(), ToolError> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run_error = |cause| ToolError::Run { program: name.clone(), cause };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run_error)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaint = async {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(COMPLAINT).read_to_end(&mut text).await;
            // What is not kept is read all the same: a full pipe would stop the tool.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let reading = async {
        let whole = match stdout {
            Some(stdout) => split(stdout, &mut take).await.map_err(run_error)?,
            None => true,
        };
        Ok::<bool, ToolError>(whole)
    };
    let work = async {
        let (whole, message) = tokio::join!(
            async {
                let whole = reading.await?;
                if !whole {
                    return Err(ToolError::Failed {
                        program: name.clone(),
                        status: "stopped".to_owned(),
                        message: format!("more than {} MiB", MOST_BYTES >> 20),
                    });
                }
                Ok(())
            },
            complaint
        );
        whole?;
        let status = child.wait().await.map_err(run_error)?;
        if status.success() {
            return Ok(());
        }
        Err(ToolError::Failed { program: name.clone(), status: status.to_string(), message })
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(ToolError::TimedOut { program: name.clone(), limit: PATIENCE }))
}

/// False when there was more than may be read.
async fn split(mut stdout: ChildStdout, take: &mut impl FnMut(&str)) -> std::io::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    let (mut line, mut read) = (Vec::new(), 0_u64);
    loop {
        let length = stdout.read(&mut buffer).await?;
        if length == 0 {
            if !line.is_empty() {
                take(&String::from_utf8_lossy(&line));
            }
            return Ok(true);
        }
        read += length as u64;
        if read > MOST_BYTES {
            // Dropped here, so that the tool ends by its next write.
            return Ok(false);
        }
        for part in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
            let ended = part.last() == Some(&b'\n');
            let text = if ended { &part[..part.len() - 1] } else { part };
            let room = LINE.saturating_sub(line.len()).min(text.len());
            line.extend_from_slice(&text[..room]);
            if ended {
                take(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(script: &str) -> (Vec<String>, Result<(), ToolError>) {
        let mut lines = Vec::new();
        let outcome = each(&"/bin/sh".into(), &["-c", script], |line| lines.push(line.to_owned())).await;
        (lines, outcome)
    }

    #[tokio::test]
    async fn every_line_is_given_also_a_last_one_without_its_end() {
        let (lines, outcome) = lines_of("printf 'one\\n\\ntwo'").await;
        assert_eq!(lines, ["one", "", "two"]);
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_line_of_any_length_is_cut_and_bytes_that_are_no_text_are_survived() {
        let (lines, outcome) =
            lines_of("head -c 5000000 /dev/zero | tr '\\0' a; printf '\\n\\377\\376\\n'").await;
        outcome.unwrap();
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE, 6]);
    }

    #[tokio::test]
    async fn a_tool_that_prints_without_end_is_ended_and_told() {
        let mut count = 0_u64;
        let outcome = each(&"/bin/sh".into(), &["-c", "exec yes"], |_| count += 1).await;
        assert!(count > 1_000_000, "{count}");
        assert!(outcome.unwrap_err().to_string().contains("more than 256 MiB"));
    }

    #[tokio::test]
    async fn what_a_failing_tool_says_is_told_and_bounded() {
        let (_, outcome) = lines_of("echo broken >&2; head -c 1000000 /dev/zero >&2; exit 3").await;
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("broken") && text.contains('3') && text.len() < 10_000, "{text}");
    }
}
