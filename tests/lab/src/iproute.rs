//! Gives scripts to `ip` and `nft`, one process for many commands.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::LabError;
use crate::programs::find;
use crate::shape::Family;

/// Runs the lines of `script` with one `ip -batch`, in `netns` or in the caller's namespace.
///
/// Nothing is rolled back when a line fails: the error carries `ip`'s own message and the whole script.
pub fn ip_batch(netns: Option<&str>, script: &str) -> Result<(), LabError> {
    let mut command = Command::new(find("ip")?);
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]);
    feed(command, "ip", netns, script)
}

/// Runs the lines of `script` with one `bridge -batch` in `netns`.
pub(crate) fn bridge_batch(netns: &str, script: &str) -> Result<(), LabError> {
    let mut command = Command::new(find("bridge")?);
    command.args(["-n", netns, "-batch", "-"]);
    feed(command, "bridge", Some(netns), script)
}

/// Loads `script` with `nft -f -` in `netns`, as one transaction.
pub fn nft_script(netns: &str, script: &str) -> Result<(), LabError> {
    let mut command = Command::new(find("ip")?);
    command.args(["netns", "exec", netns]).arg(find("nft")?).args(["-f", "-"]);
    feed(command, "nft", Some(netns), script)
}

/// Loads `script` with the restore command of a family in `netns`, beside what is there.
pub(crate) fn iptables_script(netns: &str, family: Family, script: &str) -> Result<(), LabError> {
    let program = match family {
        Family::V4 => "iptables-nft-restore",
        Family::V6 => "ip6tables-nft-restore",
    };
    let mut command = Command::new(find("ip")?);
    command.args(["netns", "exec", netns]).arg(find(program)?).arg("--noflush");
    feed(command, program, Some(netns), script)
}

fn feed(
    mut command: Command,
    program: &'static str,
    netns: Option<&str>,
    script: &str,
) -> Result<(), LabError> {
    let spawn_error = |cause| LabError::Spawn { program: program.to_owned(), cause };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    // A failed write means that the child ended early; its exit status tells why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Refused {
        program,
        place: netns.unwrap_or("the caller's namespace").to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        input: script.to_owned(),
    })
}
