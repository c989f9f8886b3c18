//! The `redirect:` section of the configuration file, and what is wrong with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bypass::Bypass;
use crate::marks::Marks;

/// Mark bits that kube-proxy gives a meaning of its own (masquerade and drop).
const KUBE_PROXY_BITS: u32 = 0x4000 | 0x8000;

/// How traffic is intercepted on this node.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RedirectConfig {
    /// Packet mark bits that are Sluice's; six single bits are taken from it, lowest first. Default 0x7e.
    pub mark_mask: u32,
    /// Port of the proxy's listener on the loopback addresses. Default 15093.
    pub listener_port: u16,
    /// Number of the first NFQUEUE of the gate. Default 1093.
    pub queue: u16,
    /// How many queues connections are spread over. Default 1.
    pub queues: u16,
    /// Routing table of the proxy's packets. Default 1093.
    pub route_table: u32,
    /// Priority of the routing rule that leads to it. Default 93.
    pub rule_priority: u32,
    /// What becomes of new connections while no proxy listens. Default `isolation`.
    pub fail_mode: FailMode,
    /// Which parts of the kernel intercept packets and hold the first. Default `auto`.
    pub backend: BackendChoice,
    /// New connections a second that one client address may bring to the gate; the kernel drops the SYNs of
    /// those beyond, so that a flood from one pod cannot delay the others. 0 is no limit. Default 10000.
    pub syn_rate_per_client: u32,
    /// What becomes of new ICMP echo requests to and from pods that a policy isolates: NetworkPolicy does not
    /// speak of ICMP. Neighbour discovery and errors always pass. Default `allow`.
    pub icmp: Icmp,
    /// Whether conntrack is made to count packets and bytes (`net.netfilter.nf_conntrack_acct`), for the
    /// records of UDP and SCTP flows; cleanup puts it back. Default true.
    pub conntrack_accounting: bool,
    /// Whether `net.bridge.bridge-nf-call-iptables` and `…-ip6tables`, and `send_redirects` for all interfaces and
    /// for the bridge, are turned off on a node whose pods share a bridge; cleanup turns them on again. With the
    /// first two on connections would pass unseen: with false such a node is not ready until its owner has turned
    /// them off. Default true.
    pub bridge_settings: bool,
    /// Names of the interfaces that lead to pods, each with an optional `*` at its end: whatever comes from
    /// or goes to such an interface is a pod's, known or not. For nodes whose pods have addresses outside the
    /// Node's podCIDRs. Default none: a name that fits something else closes it.
    pub pod_interfaces: Vec<String>,
    /// Ports and ranges for which pods that no policy isolates are not intercepted. Default none.
    pub bypass: Bypass,
}

impl Default for RedirectConfig {
    fn default() -> Self {
        Self {
            mark_mask: 0x7e,
            listener_port: 15093,
            queue: 1093,
            queues: 1,
            route_table: 1093,
            rule_priority: 93,
            fail_mode: FailMode::default(),
            backend: BackendChoice::default(),
            syn_rate_per_client: 10_000,
            icmp: Icmp::default(),
            conntrack_accounting: true,
            bridge_settings: true,
            pod_interfaces: Vec::new(),
            bypass: Bypass::default(),
        }
    }
}

/// What becomes of a pod's new connections while no proxy listens.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum FailMode {
    /// Pods that a policy isolates are closed, and those that are not known yet; the others open.
    #[default]
    Isolation,
    /// Every local pod is closed.
    Closed,
    /// Every local pod is open.
    Open,
}

/// What becomes of new ICMP echo requests of isolated pods.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Icmp {
    /// They pass.
    #[default]
    Allow,
    /// They are dropped, unless they are from or for the pod's own node.
    Isolate,
}

/// Which parts of the kernel intercept packets.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// nft where the kernel has its `tproxy`, with nft's `queue` or else iptables' NFQUEUE; otherwise iptables.
    #[default]
    Auto,
    /// nft with its `queue`, or fail.
    Nft,
    /// nft with iptables' NFQUEUE, or fail.
    NftNfqueue,
    /// iptables and ipset: the nf_tables variant where it will do, else the older one; or fail.
    Iptables,
    /// iptables' nf_tables variant and ipset, or fail.
    IptablesNft,
    /// iptables' older variant and ipset, or fail.
    IptablesLegacy,
}

/// One field of the configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field's name in the `redirect:` section.
    pub field: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redirect.{}: {}: {}", self.field, self.value, self.problem)
    }
}

impl RedirectConfig {
    /// Everything that is wrong with these values; empty when they can be used.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut report = |field, value: String, problem: String| {
            problems.push(ConfigProblem { field, value, problem });
        };
        match Marks::from_mask(self.mark_mask) {
            Err(error) => {
                report(
                    "mark_mask",
                    format!("{:#x}", self.mark_mask),
                    format!("{} bits, six are needed", error.bits),
                );
            }
            Ok(marks) if marks.used() & KUBE_PROXY_BITS != 0 => report(
                "mark_mask",
                format!("{:#x}", self.mark_mask),
                "its six lowest bits include 0x4000 or 0x8000, which kube-proxy uses".into(),
            ),
            Ok(_) => {}
        }
        if self.listener_port == 0 {
            report("listener_port", "0".into(), "a port from 1 to 65535 is needed".into());
        }
        if self.queues == 0 {
            report("queues", "0".into(), "at least one queue is needed".into());
        } else if self.queue.checked_add(self.queues - 1).is_none() {
            let problem = format!(
                "queues {} to {} end beyond 65535",
                self.queue,
                u32::from(self.queue) + u32::from(self.queues) - 1
            );
            report("queues", self.queues.to_string(), problem);
        }
        if matches!(self.route_table, 0 | 253..=255) {
            report(
                "route_table",
                self.route_table.to_string(),
                "0 and 253 to 255 are the kernel's own tables".into(),
            );
        }
        // The rule for the table `main` stands at 32766 (ip-rule(8)); a later rule would never be asked.
        if !(1..=32765).contains(&self.rule_priority) {
            report(
                "rule_priority",
                self.rule_priority.to_string(),
                "a priority from 1 to 32765 is needed".into(),
            );
        }
        for pattern in &self.pod_interfaces {
            if let Some(problem) = problem_of_interface(pattern) {
                report("pod_interfaces", format!("{pattern:?}"), problem.into());
            }
        }
        for (field, value, problem) in self.bypass.problems() {
            report(field, value, problem.into());
        }
        problems
    }
}

/// Why a pattern of interface names cannot be used. Names: `dev_valid_name` in net/core/dev.c, and what nft
/// reads without quoting rules of its own.
fn problem_of_interface(pattern: &str) -> Option<&'static str> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    if !name.chars().all(is_plain) {
        Some("letters, digits and - _ . @ are possible, and one * at the end")
    } else if name.len() < 2 {
        Some("at least two characters before a *, so that it does not fit every interface")
    } else if pattern.len() > 15 {
        Some("interfaces have names of at most 15 characters")
    } else if name == "lo" || (pattern.ends_with('*') && "lo".starts_with(name)) {
        Some("lo leads to no pod")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_interfaces_that_fit_everything_or_nothing_are_refused() {
        let problems = |pattern: &str| {
            let config =
                RedirectConfig { pod_interfaces: vec![pattern.to_owned()], ..RedirectConfig::default() };
            config.validate().len()
        };
        for good in ["cali*", "veth*", "eni*", "lxc*", "cni0", "br-pods", "pod.*", "en*"] {
            assert_eq!(problems(good), 0, "{good}");
        }
        for bad in ["", "*", "e*", "lo", "lo*", "a b", "c\"", "a*b", "cali**", "x{", "sixteen_letters_"] {
            assert_eq!(problems(bad), 1, "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(RedirectConfig::default().validate(), vec![]);
    }

    #[test]
    fn each_unusable_value_is_named() {
        let default = RedirectConfig::default();
        let cases = [
            ("mark_mask", RedirectConfig { mark_mask: 0x1f, ..default.clone() }),
            ("mark_mask", RedirectConfig { mark_mask: 0xf800, ..default.clone() }),
            ("listener_port", RedirectConfig { listener_port: 0, ..default.clone() }),
            ("queues", RedirectConfig { queues: 0, ..default.clone() }),
            ("queues", RedirectConfig { queue: 65535, queues: 2, ..default.clone() }),
            ("route_table", RedirectConfig { route_table: 254, ..default.clone() }),
            ("route_table", RedirectConfig { route_table: 0, ..default.clone() }),
            ("rule_priority", RedirectConfig { rule_priority: 0, ..default.clone() }),
            ("rule_priority", RedirectConfig { rule_priority: 32766, ..default.clone() }),
        ];
        for (field, config) in cases {
            let problems = config.validate();
            assert_eq!(problems.iter().map(|p| p.field).collect::<Vec<_>>(), [field], "{config:?}");
        }
    }

    #[test]
    fn the_last_queue_may_be_65535() {
        let config = RedirectConfig { queue: 65532, queues: 4, ..RedirectConfig::default() };
        assert_eq!(config.validate(), vec![]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let config = RedirectConfig {
            mark_mask: 0,
            listener_port: 0,
            queues: 0,
            route_table: 0,
            rule_priority: 0,
            ..RedirectConfig::default()
        };
        assert_eq!(config.validate().len(), 5);
    }

    #[test]
    fn unknown_fields_are_refused_and_absent_ones_have_defaults() {
        let config: RedirectConfig =
            serde_json::from_str(r#"{"fail_mode":"closed","backend":"iptables"}"#).unwrap();
        assert_eq!(
            config,
            RedirectConfig {
                fail_mode: FailMode::Closed,
                backend: BackendChoice::Iptables,
                ..RedirectConfig::default()
            }
        );
        assert!(serde_json::from_str::<RedirectConfig>(r#"{"mark":2}"#).is_err());
    }
}
