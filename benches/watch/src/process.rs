//! What a process has used. Sources: proc_pid_status(5), proc_pid_schedstat (Documentation/scheduler/sched-stats).

use std::time::Duration;

use anyhow::Context;

/// Memory held and processor time used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) resident_mib: f64,
    pub(crate) peak_mib: f64,
    pub(crate) cpu: Duration,
}

impl Usage {
    /// Of all threads of a process, ended ones excepted.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |field: &str| -> anyhow::Result<f64> {
            let line =
                status.lines().find_map(|line| line.strip_prefix(field)).context("a field of status")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
        };
        let mut nanoseconds = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(Self {
            resident_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
            cpu: Duration::from_nanos(nanoseconds),
        })
    }
}
