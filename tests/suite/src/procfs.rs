//! What a process holds, as proc(5) tells it.

use std::fs;
use std::io;

/// Descriptors of process `pid`.
pub fn descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Memory of process `pid` that holds data, in KiB: `RssAnon`. Its program's own pages come in as they are first used.
pub fn data_kib(pid: u32) -> io::Result<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: u32, key: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value =
        status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok());
    value
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {key} in the status of {pid}")))
}
