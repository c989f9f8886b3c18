//! What is so on this node when it is scraped: readiness and its conditions, pods, the process, conntrack's table.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use crate::status::{Board, Status};

/// The state of the agent behind a board.
#[derive(Debug)]
pub(crate) struct NodeMetrics {
    board: Board,
}

impl NodeMetrics {
    /// What `board` tells.
    pub(crate) fn new(board: Board) -> Self {
        Self { board }
    }
}

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.board.status();
        encode_state(&mut encoder, &status)?;
        encode_conntrack(&mut encoder)?;
        encode_process(&mut encoder, self.board.started_at())
    }
}

fn encode_state(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), std::fmt::Error> {
    let version = Info::new([("version", status.versions.sluice.clone())]);
    version.encode(encoder.encode_descriptor(
        "sluice_build",
        "What this agent is",
        None,
        MetricType::Info,
    )?)?;
    gauge(
        encoder,
        "sluice_ready",
        "1 while every condition holds, as /readyz tells",
        None,
        flag(status.ready),
    )?;
    let help = "1 while the condition holds: gate, node, rules, snapshot, or a thread that ended";
    let mut family = encoder.encode_descriptor("sluice_condition", help, None, MetricType::Gauge)?;
    for condition in &status.conditions {
        let labels = [("condition", condition.name.as_str())];
        ConstGauge::new(flag(condition.holds)).encode(family.encode_family(&labels)?)?;
    }
    let help = "Pods of this node whose connections are intercepted: isolated by a policy, or observed";
    let mut family = encoder.encode_descriptor("sluice_pods", help, None, MetricType::Gauge)?;
    for (state, count) in [("isolated", status.pods.isolated), ("observed", status.pods.observed)] {
        ConstGauge::new(as_float(count)).encode(family.encode_family(&[("state", state)])?)?;
    }
    Ok(())
}

/// The table in which flows of datagrams live, and legs that leave the cluster. Of this network namespace.
fn encode_conntrack(encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let series = [
        ("sluice_conntrack_entries", "Entries in the node's conntrack table", "nf_conntrack_count"),
        ("sluice_conntrack_limit", "Entries that the node's conntrack table may have", "nf_conntrack_max"),
    ];
    for (name, help, file) in series {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{file}")).unwrap_or_default();
        if let Ok(value) = text.trim().parse() {
            gauge(encoder, name, help, None, value)?;
        }
    }
    Ok(())
}

/// The names that Prometheus' client libraries agree upon. Descriptors are `sluice_descriptors_…`.
fn encode_process(encoder: &mut DescriptorEncoder<'_>, started_at: f64) -> Result<(), std::fmt::Error> {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let help = "Processor time of this process, user and system";
        let used = seconds(usage.user_time()) + seconds(usage.system_time());
        let unit = Some(&Unit::Seconds);
        let counter = encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
        ConstCounter::new(used).encode(counter)?;
    }
    if let Some(bytes) = resident_bytes() {
        let help = "Memory of this process";
        gauge(encoder, "process_resident_memory", help, Some(&Unit::Bytes), bytes)?;
    }
    gauge(
        encoder,
        "process_start_time",
        "When this process started, since 1970",
        Some(&Unit::Seconds),
        started_at,
    )
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: f64,
) -> Result<(), std::fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn seconds(time: TimeVal) -> f64 {
    let micros = u32::try_from(time.tv_usec()).map_or(0.0, f64::from);
    u32::try_from(time.tv_sec()).map_or(f64::from(u32::MAX), f64::from) + micros / 1e6
}

/// Source: proc_pid_status(5), `VmRSS`.
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

fn as_float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
