//! The desired interception as a value: what the configuration says, what the node offers, and whom it is for.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::bridges::PodBridge;
use crate::bypass::Bypassed;
use crate::config::{FailMode, Icmp, RedirectConfig};
use crate::marks::{Marks, MarksError};
use crate::overlays::Overlays;
use crate::owners::Owners;
use crate::pods::{LocalPods, SetElements};
use crate::xtables::IptablesVariant;

/// The parts of the kernel by which packets are intercepted and held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateBackend {
    /// nft, and its `queue`: all in our own table.
    NftQueue,
    /// nft, and the NFQUEUE target of iptables (nf_tables variant) in our own chain of table `mangle`.
    IptablesNfqueue,
    /// iptables and ipset alone, for kernels whose nf_tables has no `tproxy`.
    Iptables(IptablesVariant),
}

impl GateBackend {
    /// The variant of iptables, where the rules are iptables' own.
    pub fn iptables(self) -> Option<IptablesVariant> {
        match self {
            Self::NftQueue | Self::IptablesNfqueue => None,
            Self::Iptables(variant) => Some(variant),
        }
    }
}

/// Which of iptables' base tables and chains the node had not before the gate needed them, and which of its
/// settings were changed. Written into our table as empty chains, so that cleanup by another process knows
/// what to take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreatedBases {
    /// Table `ip mangle`.
    pub table4: bool,
    /// Its chain `INPUT`.
    pub input4: bool,
    /// Its chain `FORWARD`.
    pub forward4: bool,
    /// Table `ip6 mangle`.
    pub table6: bool,
    /// Its chain `INPUT`.
    pub input6: bool,
    /// Its chain `FORWARD`.
    pub forward6: bool,
    /// Conntrack's accounting was off.
    pub accounting: bool,
    /// Frames on bridges were shown to iptables.
    pub call_iptables: bool,
    /// Frames on bridges were shown to ip6tables.
    pub call_ip6tables: bool,
    /// All interfaces told of shorter ways.
    pub send_redirects: bool,
}

impl CreatedBases {
    /// What either of two says was created.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            table4: self.table4 | other.table4,
            input4: self.input4 | other.input4,
            forward4: self.forward4 | other.forward4,
            table6: self.table6 | other.table6,
            input6: self.input6 | other.input6,
            forward6: self.forward6 | other.forward6,
            accounting: self.accounting | other.accounting,
            call_iptables: self.call_iptables | other.call_iptables,
            call_ip6tables: self.call_ip6tables | other.call_ip6tables,
            send_redirects: self.send_redirects | other.send_redirects,
        }
    }

    /// Takes over what a marker's name says. Other names say nothing.
    pub(crate) fn note(&mut self, marker: &str) {
        match marker {
            "created_ip_mangle" => self.table4 = true,
            "created_ip_mangle_input" => self.input4 = true,
            "created_ip_mangle_forward" => self.forward4 = true,
            "created_ip6_mangle" => self.table6 = true,
            "created_ip6_mangle_input" => self.input6 = true,
            "created_ip6_mangle_forward" => self.forward6 = true,
            "enabled_accounting" => self.accounting = true,
            "disabled_bridge_call_iptables" => self.call_iptables = true,
            "disabled_bridge_call_ip6tables" => self.call_ip6tables = true,
            "disabled_send_redirects" => self.send_redirects = true,
            _ => {}
        }
    }

    /// The marker chains' names, and whether each is wanted.
    pub(crate) fn markers(&self) -> [(&'static str, bool); 10] {
        [
            ("created_ip_mangle", self.table4),
            ("created_ip_mangle_input", self.input4),
            ("created_ip_mangle_forward", self.forward4),
            ("created_ip6_mangle", self.table6),
            ("created_ip6_mangle_input", self.input6),
            ("created_ip6_mangle_forward", self.forward6),
            ("enabled_accounting", self.accounting),
            ("disabled_bridge_call_iptables", self.call_iptables),
            ("disabled_bridge_call_ip6tables", self.call_ip6tables),
            ("disabled_send_redirects", self.send_redirects),
        ]
    }
}

/// A proxy's ports where nobody says otherwise: below those that Linux gives to sockets by itself.
const UPSTREAM_PORTS: RangeInclusive<u16> = 16_384..=32_767;

/// All of the desired interception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectSpec {
    /// The mark bits.
    pub marks: Marks,
    /// The listener's port on the loopback addresses.
    pub listener_port: u16,
    /// The gate's first queue.
    pub queue: u16,
    /// How many queues there are, at least 1.
    pub queues: u16,
    /// The proxy's routing table.
    pub route_table: u32,
    /// The priority of the rule that leads to it.
    pub rule_priority: u32,
    /// The ports of the proxy's legs that conntrack sees, which pods do not use themselves.
    pub upstream_ports: RangeInclusive<u16>,
    /// What becomes of new connections while no proxy listens.
    pub fail_mode: FailMode,
    /// What becomes of echo requests to and from isolated pods.
    pub icmp: Icmp,
    /// Whether conntrack is made to count packets and bytes.
    pub conntrack_accounting: bool,
    /// New connections and flows a second from one client address; 0 is no limit.
    pub syn_rate_per_client: u32,
    /// The part of the kernel that holds first packets.
    pub gate: GateBackend,
    /// Whether the node has IPv6.
    pub ipv6: bool,
    /// The interfaces that lead to pods, as names with an optional `*` at the end.
    pub pod_interfaces: Vec<String>,
    /// Whether there may be pods out of scope, [`LocalPods::passed`].
    pub passes: bool,
    /// What the connections of observed pods are not intercepted for.
    pub bypass: Bypassed,
    /// The pods to intercept.
    pub pods: LocalPods,
    /// The bridges that pods are ports of. The installer finds them.
    pub bridges: Vec<PodBridge>,
    /// Who may speak there with which address. The installer finds it.
    pub owners: Owners,
    /// Those of them that told of shorter ways before. Known to the installer.
    pub quieted: BTreeSet<String>,
    /// Whether the node's settings that hide bridged traffic are turned off.
    pub bridge_settings: bool,
    /// The interfaces that lead to them and nowhere else. The installer finds them.
    pub pod_links: BTreeSet<String>,
    /// What the node's tunnels are reached by, which is not for pods. The installer finds it.
    pub overlays: Overlays,
    /// Known to the installer; the default elsewhere.
    pub created: CreatedBases,
    /// Tables and base chains that iptables' nf_tables variant made for ours, beside those. Known to the installer.
    pub made_bases: BTreeSet<String>,
}

impl RedirectSpec {
    /// Combines the configuration with what the node offers. The ports of legs are those of a proxy that nobody has
    /// configured.
    pub fn new(
        config: &RedirectConfig,
        gate: GateBackend,
        ipv6: bool,
        pods: LocalPods,
    ) -> Result<Self, MarksError> {
        Ok(Self {
            marks: Marks::from_mask(config.mark_mask)?,
            listener_port: config.listener_port,
            queue: config.queue,
            queues: config.queues.max(1),
            route_table: config.route_table,
            rule_priority: config.rule_priority,
            upstream_ports: UPSTREAM_PORTS,
            fail_mode: config.fail_mode,
            icmp: config.icmp,
            conntrack_accounting: config.conntrack_accounting,
            syn_rate_per_client: config.syn_rate_per_client,
            gate,
            ipv6,
            pod_interfaces: config.pod_interfaces.clone(),
            passes: false,
            bypass: Bypassed::of(&config.bypass),
            pods,
            bridges: Vec::new(),
            owners: Owners::default(),
            quieted: BTreeSet::new(),
            bridge_settings: config.bridge_settings,
            pod_links: BTreeSet::new(),
            overlays: Overlays::default(),
            created: CreatedBases::default(),
            made_bases: BTreeSet::new(),
        })
    }

    pub(crate) fn elements(&self) -> SetElements {
        SetElements { links: self.pod_links.clone(), ..SetElements::of(&self.pods, self.ipv6) }
    }

    pub(crate) fn last_queue(&self) -> u16 {
        self.queue.saturating_add(self.queues.saturating_sub(1))
    }
}
