//! What the datapath can be told. Every field has a default that suits a node; nothing here is read from
//! files or the environment.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the client of a denied connection sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DenyAction {
    /// A TCP reset: `connect()` fails at once with ECONNREFUSED.
    #[default]
    Reset,
    /// Silence: `connect()` runs into the client's own limit.
    Drop,
}

/// The datapath's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// What the client of a denied connection sees: `reset` or `drop`.
    pub deny_action: DenyAction,
    /// How long the server may stay silent before an attempt is given up, in milliseconds. The default is a
    /// little over Linux' own limit with `tcp_syn_retries=6`, so that the client's kernel gives up first.
    pub connect_timeout_ms: u64,
    /// How long a client may take to complete the handshake once its SYN was released, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Connections without a byte in either direction for this long are reset, in milliseconds; 0 is never.
    pub idle_timeout_ms: u64,
    /// Keepalive probes start after this many idle seconds on both legs; 0 turns keepalive off.
    pub keepalive_s: u32,
    /// Connection attempts of all clients together that are held or in their handshake. More are dropped and
    /// retried by their kernels. Stay below `net.core.somaxconn` (4096): beyond it the kernel answers with SYN
    /// cookies, and those connections never reach the proxy.
    pub max_pending: usize,
    /// Held connection attempts of one client address.
    pub max_pending_per_client: usize,
    /// How long an attempt from or to a pod of this node that is not known yet is held, in milliseconds, before
    /// it is refused; 0 refuses it at once. The default is more than kubelet and API server usually take to
    /// tell of a new pod, and less than most clients wait: their kernels send the SYN again meanwhile, and
    /// change nothing by it. At most 30000: an attempt that is held takes a place among the pending ones.
    pub unknown_pod_timeout_ms: u64,
    /// Flows of UDP and SCTP that are live at a time; more are refused. Conntrack has a limit of its own
    /// (`net.netfilter.nf_conntrack_max`), and each flow takes about 1 KiB here.
    pub max_flows: usize,
    /// Of these, how many one client address may have; more are refused.
    pub max_flows_per_client: usize,
    /// Whether the server name and the protocols that a client asks for in a TLS ClientHello are read, for the records.
    /// The bytes are looked at as they pass. Default true.
    pub tls_hellos: bool,
    /// The kernel is asked for round trip time and retransmissions of both legs of connections that have lived for
    /// this long, in milliseconds, when they end; 0 asks for all, `null` for none. Default 1000.
    pub tcp_info_after_ms: Option<u64>,
    /// Source ports for legs that cannot keep the client's own port. Must not overlap the pods'
    /// `net.ipv4.ip_local_port_range`.
    pub upstream_ports: PortRange,
    /// Bytes a connection must move in one read before splice(2) takes over from copying.
    pub splice_threshold_bytes: usize,
    /// Size asked for a pipe, in bytes; the kernel may grant less.
    pub pipe_bytes: usize,
    /// Pipes in use and pooled together. Streams beyond that are copied, not spliced.
    pub max_pipes: usize,
    /// Descriptors kept back for everything that is no connection: files, the admin API, netlink.
    pub reserved_descriptors: u64,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    pub(crate) fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            deny_action: DenyAction::Reset,
            connect_timeout_ms: 130_000,
            handshake_timeout_ms: 15_000,
            idle_timeout_ms: 0,
            keepalive_s: 300,
            max_pending: 2_048,
            max_pending_per_client: 512,
            unknown_pod_timeout_ms: 5_000,
            max_flows: 262_144,
            max_flows_per_client: 65_536,
            tls_hellos: true,
            tcp_info_after_ms: Some(1_000),
            upstream_ports: PortRange { first: 16_384, last: 32_767 },
            splice_threshold_bytes: 16_384,
            pipe_bytes: 1 << 20,
            max_pipes: 128,
            reserved_descriptors: 256,
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field's name.
    pub field: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl ProxyConfig {
    /// Every setting that cannot be used; empty when all can.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let ports = self.upstream_ports;
        let checks = [
            (
                self.connect_timeout_ms == 0,
                "connect_timeout_ms",
                self.connect_timeout_ms.to_string(),
                "must be above 0",
            ),
            (
                self.handshake_timeout_ms == 0,
                "handshake_timeout_ms",
                self.handshake_timeout_ms.to_string(),
                "must be above 0",
            ),
            (
                self.keepalive_s > 32_767,
                "keepalive_s",
                self.keepalive_s.to_string(),
                "the kernel takes at most 32767 seconds",
            ),
            (
                self.max_pending == 0 || self.max_pending > 60_000,
                "max_pending",
                self.max_pending.to_string(),
                "must be from 1 to 60000, below the kernel's queue length",
            ),
            (
                self.max_pending_per_client == 0 || self.max_pending_per_client > self.max_pending,
                "max_pending_per_client",
                self.max_pending_per_client.to_string(),
                "must be from 1 to max_pending",
            ),
            (
                self.unknown_pod_timeout_ms > 30_000,
                "unknown_pod_timeout_ms",
                self.unknown_pod_timeout_ms.to_string(),
                "must be at most 30000",
            ),
            (
                !(1..=1 << 24).contains(&self.max_flows),
                "max_flows",
                self.max_flows.to_string(),
                "must be from 1 to 16777216",
            ),
            (
                self.max_flows_per_client == 0,
                "max_flows_per_client",
                self.max_flows_per_client.to_string(),
                "must be above 0",
            ),
            (
                ports.first < 1_024 || ports.first > ports.last || ports.range().len() < 1_000,
                "upstream_ports",
                format!("{}-{}", ports.first, ports.last),
                "must start at 1024 or above and span at least 1000 ports",
            ),
            (
                !(1_024..=1 << 20).contains(&self.splice_threshold_bytes),
                "splice_threshold_bytes",
                self.splice_threshold_bytes.to_string(),
                "must be from 1024 to 1048576",
            ),
            (
                !(4_096..=1 << 24).contains(&self.pipe_bytes),
                "pipe_bytes",
                self.pipe_bytes.to_string(),
                "must be from 4096 to 16777216",
            ),
        ];
        checks
            .into_iter()
            .filter(|(wrong, ..)| *wrong)
            .map(|(_, field, value, problem)| ConfigProblem { field, value, problem })
            .collect()
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        (self.idle_timeout_ms > 0).then(|| Duration::from_millis(self.idle_timeout_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable() {
        assert_eq!(ProxyConfig::default().validate(), []);
    }

    #[test]
    fn every_unusable_setting_is_reported_at_once() {
        let config = ProxyConfig {
            connect_timeout_ms: 0,
            max_pending: 0,
            upstream_ports: PortRange { first: 9, last: 3 },
            pipe_bytes: 1,
            unknown_pod_timeout_ms: 30_001,
            ..ProxyConfig::default()
        };
        let fields: Vec<_> = config.validate().into_iter().map(|problem| problem.field).collect();
        assert_eq!(
            fields,
            [
                "connect_timeout_ms",
                "max_pending",
                "max_pending_per_client",
                "unknown_pod_timeout_ms",
                "upstream_ports",
                "pipe_bytes"
            ]
        );
    }
}
