//! What a proxy's processes use: CPU time, memory, system calls. Read from outside, the same for every proxy.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ATTACH_LIMIT: Duration = Duration::from_secs(10);

/// CPU seconds of all threads so far. Source: `/proc/PID/task/TID/schedstat`, first field, in nanoseconds
/// (Documentation/scheduler/sched-stats.rst): finer than the ticks of `/proc/PID/stat`.
pub(crate) fn cpu_seconds(pids: &[i32]) -> anyhow::Result<f64> {
    let mut nanoseconds = 0.0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that ended meanwhile is gone.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let first = text.split(' ').next().context("an empty schedstat")?;
            nanoseconds += first.parse::<f64>()?;
        }
    }
    Ok(nanoseconds / 1e9)
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident, files included.
    pub(crate) resident: f64,
    /// Resident and of no file: what the process has allocated.
    pub(crate) anonymous: f64,
}

/// Memory of all processes together. Source: proc(5), `/proc/PID/status`.
pub(crate) fn memory(pids: &[i32]) -> anyhow::Result<Memory> {
    let mut memory = Memory { resident: 0.0, anonymous: 0.0 };
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |key: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
        };
        memory.resident += bytes("VmRSS:")?;
        memory.anonymous += bytes("RssAnon:")?;
    }
    Ok(memory)
}

/// Counts the system calls of processes while `body` runs, with strace(1), by name.
pub(crate) fn system_calls(
    pids: &[i32],
    folder: &Path,
    body: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let (summary, said) = (folder.join("strace.summary"), folder.join("strace.said"));
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(&summary);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
    let mut strace = command.spawn().context("start strace (make setup-bench installs it)")?;
    let mut text = String::new();
    let attached = wait_until(ATTACH_LIMIT, || {
        text.clear();
        let read = fs::File::open(&said).and_then(|mut file| file.read_to_string(&mut text));
        read.is_ok() && pids.iter().all(|pid| text.contains(&format!("Process {pid} attached")))
    });
    let outcome = if attached { body() } else { Err(anyhow::anyhow!("strace does not attach: {text}")) };
    kill(Pid::from_raw(i32::try_from(strace.id())?), Signal::SIGINT)?;
    strace.wait()?;
    outcome?;
    let calls = parse_summary(&fs::read_to_string(&summary)?);
    if calls.is_empty() {
        bail!("strace counted nothing: {text}");
    }
    Ok(calls)
}

/// The table of `strace -c`: percent, seconds, per call, calls, perhaps errors, name.
fn parse_summary(text: &str) -> BTreeMap<String, f64> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let name = *columns.last()?;
        let calls: f64 = columns.get(3)?.parse().ok()?;
        (name != "total").then(|| (name.to_owned(), calls))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_gives_calls_by_name_with_and_without_errors() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 53.63    0.125722         125      1003           splice
 18.99    0.044511          11      3900       950 accept4
------ ----------- ----------- --------- --------- ----------------
100.00    0.234408          47      4903       950 total
";
        let expected = [("accept4".to_owned(), 3900.0), ("splice".to_owned(), 1003.0)];
        assert_eq!(parse_summary(text), BTreeMap::from(expected));
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let own = [i32::try_from(std::process::id()).unwrap()];
        assert!(cpu_seconds(&own).unwrap() > 0.0);
        let memory = memory(&own).unwrap();
        assert!(memory.anonymous > 0.0 && memory.resident >= memory.anonymous);
    }
}
