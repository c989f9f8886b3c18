//! Finds out which parts of the kernel and which tools this node has, by asking the kernel itself.
//!
//! nft parts: `nft --check` sends the whole transaction to the kernel, which builds every expression and then
//! aborts for want of an end marker; nothing is ever installed. iptables' NFQUEUE: its `--test` builds no rule,
//! so a chain of a unique name that nothing jumps to is loaded and removed.

use std::collections::BTreeMap;
use std::fmt;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rtnetlink::IpVersion;

use crate::config::BackendChoice;
use crate::gate::Iptables;
use crate::ipv6;
use crate::listing::mangle_exists;
use crate::nfnetlink::{Family, Nfnetlink};
use crate::routes::Routes;
use crate::spec::GateBackend;
use crate::tool::{ToolError, nft};
use crate::xtables::{IptablesVariant, missing_parts};

/// What this node offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The version `nft` says it has; `None` when it is not installed.
    pub nft_version: Option<String>,
    /// Whether this process may change the ruleset.
    pub permitted: bool,
    /// What nft said instead of building the plainest rule; `None` when it did, or is not installed.
    pub refusal: Option<String>,
    /// nft `tproxy`, in the families the node has.
    pub nft_tproxy: bool,
    /// nft `socket`.
    pub nft_socket: bool,
    /// nft `queue`.
    pub nft_queue: bool,
    /// nft `fib` in family inet.
    pub nft_fib: bool,
    /// nft `reject` in family inet.
    pub nft_reject: bool,
    /// nft `ct` with connection marks, and `notrack`.
    pub nft_ct: bool,
    /// nft chains of type `route` in family inet.
    pub nft_route_chain: bool,
    /// The nf_tables variant of iptables and the kernel's NFQUEUE target, in the families the node has.
    pub iptables_nfqueue: bool,
    /// Routing by rules, in the families the node has.
    pub policy_routing: bool,
    /// Conntrack's netlink: by it flows that policies no longer allow are ended, and counted.
    pub ctnetlink: bool,
    /// Whether the node has IPv6.
    pub ipv6: bool,
    /// What iptables' variants lack for rules without nft. Only those are asked that the choice could fall on.
    pub iptables: BTreeMap<IptablesVariant, Vec<MissingPart>>,
}

/// A part this node lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPart {
    /// Its name.
    pub part: &'static str,
    /// The kernel's configuration option, empty for what is no part of the kernel.
    pub kernel_option: &'static str,
    /// How to get it.
    pub remedy: &'static str,
}

/// All parts this node lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingParts(pub Vec<MissingPart>);

impl fmt::Display for MissingParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this node lacks ")?;
        for (index, MissingPart { part, kernel_option, remedy }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            match *kernel_option {
                "" => write!(f, "{comma}{part}: {remedy}")?,
                option => write!(f, "{comma}{part} ({option}): {remedy}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for MissingParts {}

const NFT: MissingPart = MissingPart { part: "nft", kernel_option: "", remedy: "apt-get install nftables" };
pub(crate) const PERMISSION: MissingPart = MissingPart {
    part: "permission to change the ruleset",
    kernel_option: "",
    remedy: "run as root or with CAP_NET_ADMIN",
};
const TPROXY: MissingPart =
    MissingPart { part: "nft tproxy", kernel_option: "CONFIG_NFT_TPROXY", remedy: "modprobe nft_tproxy" };
const SOCKET: MissingPart =
    MissingPart { part: "nft socket", kernel_option: "CONFIG_NFT_SOCKET", remedy: "modprobe nft_socket" };
const FIB: MissingPart =
    MissingPart { part: "nft fib", kernel_option: "CONFIG_NFT_FIB_INET", remedy: "modprobe nft_fib_inet" };
const REJECT: MissingPart = MissingPart {
    part: "nft reject",
    kernel_option: "CONFIG_NFT_REJECT_INET",
    remedy: "modprobe nft_reject_inet",
};
const CT: MissingPart = MissingPart {
    part: "nft ct with connection marks",
    kernel_option: "CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_MARK",
    remedy: "modprobe nft_ct",
};
const ROUTE_CHAIN: MissingPart = MissingPart {
    part: "nft route chains of family inet",
    kernel_option: "CONFIG_NF_TABLES_INET",
    remedy: "a kernel of version 5.2 or later",
};
const RULES: MissingPart = MissingPart {
    part: "routing by rules",
    kernel_option: "CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES",
    remedy: "a kernel built with it",
};
const CTNETLINK: MissingPart = MissingPart {
    part: "netlink of conntrack",
    kernel_option: "CONFIG_NF_CT_NETLINK",
    remedy: "modprobe nf_conntrack_netlink",
};
const QUEUE: MissingPart =
    MissingPart { part: "nft queue", kernel_option: "CONFIG_NFT_QUEUE", remedy: "modprobe nft_queue" };
const NFQUEUE: MissingPart = MissingPart {
    part: "NFQUEUE through iptables-nft",
    kernel_option: "CONFIG_NETFILTER_XT_TARGET_NFQUEUE, CONFIG_NFT_COMPAT",
    remedy: "modprobe xt_NFQUEUE, apt-get install iptables (1.8 or later, nf_tables variant)",
};

const NOT_ASKED: MissingPart =
    MissingPart { part: "iptables", kernel_option: "", remedy: "set redirect.backend to iptables" };

impl Capabilities {
    /// The best gate this node has, or all parts that are missing for any.
    pub fn gate_backend(&self) -> Result<GateBackend, MissingParts> {
        self.choose(BackendChoice::Auto)
    }

    /// The gate that the configuration asks for, or all parts that are missing for it.
    pub fn choose(&self, choice: BackendChoice) -> Result<GateBackend, MissingParts> {
        use GateBackend::{Iptables, IptablesNfqueue, NftQueue};
        use IptablesVariant::{Legacy, Nft};
        let backends: &[GateBackend] = match choice {
            BackendChoice::Auto => &[NftQueue, IptablesNfqueue, Iptables(Nft), Iptables(Legacy)],
            BackendChoice::Nft => &[NftQueue],
            BackendChoice::NftNfqueue => &[IptablesNfqueue],
            BackendChoice::Iptables => &[Iptables(Nft), Iptables(Legacy)],
            BackendChoice::IptablesNft => &[Iptables(Nft)],
            BackendChoice::IptablesLegacy => &[Iptables(Legacy)],
        };
        let mut missing: Vec<MissingPart> = Vec::new();
        for backend in backends {
            let not_asked = backend.iptables().is_some_and(|variant| !self.iptables.contains_key(&variant));
            if not_asked && !missing.is_empty() {
                continue;
            }
            match self.lacks_for(*backend) {
                None => return Ok(*backend),
                Some(parts) => parts.0.into_iter().for_each(|part| {
                    if !missing.contains(&part) {
                        missing.push(part);
                    }
                }),
            }
        }
        Err(MissingParts(missing))
    }

    pub(crate) fn lacks_for(&self, backend: GateBackend) -> Option<MissingParts> {
        if let GateBackend::Iptables(variant) = backend {
            let mut missing = self.iptables.get(&variant).cloned().unwrap_or_else(|| vec![NOT_ASKED]);
            let kernel = [(self.policy_routing, RULES), (self.ctnetlink, CTNETLINK)];
            missing.extend(kernel.into_iter().filter(|(there, _)| !there).map(|(_, part)| part));
            return (!missing.is_empty()).then_some(MissingParts(missing));
        }
        if self.nft_version.is_none() {
            return Some(MissingParts(vec![NFT]));
        }
        if !self.permitted {
            return Some(MissingParts(vec![PERMISSION]));
        }
        let gate = match backend {
            GateBackend::NftQueue => (self.nft_queue, QUEUE),
            GateBackend::IptablesNfqueue | GateBackend::Iptables(_) => (self.iptables_nfqueue, NFQUEUE),
        };
        let parts = [
            (self.nft_tproxy, TPROXY),
            (self.nft_socket, SOCKET),
            (self.nft_fib, FIB),
            (self.nft_reject, REJECT),
            (self.nft_ct, CT),
            (self.nft_route_chain, ROUTE_CHAIN),
            (self.policy_routing, RULES),
            (self.ctnetlink, CTNETLINK),
            gate,
        ];
        let missing: Vec<_> = parts.into_iter().filter(|(there, _)| !there).map(|(_, part)| part).collect();
        (!missing.is_empty()).then_some(MissingParts(missing))
    }
}

/// Asks the kernel, in the network namespace of the calling thread. Leaves nothing behind.
pub async fn probe() -> Capabilities {
    probe_for(BackendChoice::Auto).await
}

/// Asks as much as the choice needs. Asking the older iptables has the kernel make its tables, which are then there
/// and empty: it is asked only where nothing else will do, or it is wanted by name.
pub async fn probe_for(choice: BackendChoice) -> Capabilities {
    let mut found = probe_nft().await;
    let variants: &[IptablesVariant] = match choice {
        BackendChoice::Nft | BackendChoice::NftNfqueue => &[],
        BackendChoice::IptablesNft => &[IptablesVariant::Nft],
        BackendChoice::IptablesLegacy => &[IptablesVariant::Legacy],
        BackendChoice::Auto | BackendChoice::Iptables => &[IptablesVariant::Nft, IptablesVariant::Legacy],
    };
    for variant in variants {
        if found.choose(choice).is_ok() {
            break;
        }
        let missing = missing_parts(*variant, found.ipv6).await;
        found.iptables.insert(*variant, missing);
    }
    found
}

async fn probe_nft() -> Capabilities {
    let mut found = Capabilities { ipv6: ipv6::is_on(), ..Capabilities::default() };
    if let Ok(routes) = Routes::open() {
        found.policy_routing =
            routes.has_rules(IpVersion::V4).await && (!found.ipv6 || routes.has_rules(IpVersion::V6).await);
    }
    found.ctnetlink = Nfnetlink::kernel_has_ctnetlink();
    match nft(&["--version"], "").await {
        Ok(version) => {
            found.nft_version =
                version.split_whitespace().nth(1).map(|v| v.trim_start_matches('v').to_owned())
        }
        Err(_) => return found,
    }
    match checked("add rule inet NAME probe accept", "").await {
        Ok(()) => found.permitted = true,
        Err(error) => {
            tracing::warn!(%error, "nft does not build the plainest rule");
            found.refusal = error.to_string().lines().next().map(str::to_owned);
            return found;
        }
    }
    found.nft_tproxy = builds("meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1 accept").await
        && (!found.ipv6 || builds("meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:1 accept").await);
    found.nft_socket = builds("socket transparent 1 socket mark 1 accept").await;
    found.nft_queue = builds("queue num 1").await;
    found.nft_reject = (!found.ipv6
        || hooked_builds("filter", "input", "reject with icmpv6 type addr-unreachable").await)
        && hooked_builds("filter", "input", "meta l4proto tcp reject with tcp reset").await
        && hooked_builds("filter", "forward", "reject with icmpx type port-unreachable").await;
    found.nft_ct = builds("ct state new ct mark set ct mark or 0x1").await
        && hooked_builds("filter", "output", "notrack").await;
    found.nft_fib = hooked_builds("filter", "output", "fib daddr type local accept").await;
    found.nft_route_chain = hooked_builds("route", "output", "accept").await;
    found.iptables_nfqueue = has_nfqueue(Family::V4).await && (!found.ipv6 || has_nfqueue(Family::V6).await);
    found
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether the kernel builds a rule of a chain that nothing hooks.
async fn builds(rule: &str) -> bool {
    check(&format!("add rule inet NAME probe {rule}"), "").await
}

/// Whether the kernel builds a rule of a base chain; the transaction is aborted before it would be hooked.
async fn hooked_builds(kind: &str, hook: &str, rule: &str) -> bool {
    check(&format!("add rule inet NAME probe {rule}"), &format!(" {{ type {kind} hook {hook} priority 0; }}"))
        .await
}

/// Whether the kernel builds the rules of a bridge's table.
pub(crate) async fn builds_bridge_rules() -> bool {
    let script = "add table bridge NAME\nadd chain bridge NAME probe { type filter hook prerouting priority -300; }\n\
                  add map bridge NAME own { type ifname : ether_addr; }\n\
                  add rule bridge NAME probe ether daddr set iifname map @own meta pkttype set host accept\n";
    let script = script.replace("NAME", &format!("sluice_probe_{}", unique().replace('-', "_")));
    nft(&["--check", "-f", "-"], &script).await.is_ok()
}

async fn check(rule: &str, base: &str) -> bool {
    checked(rule, base).await.is_ok()
}

async fn checked(rule: &str, base: &str) -> Result<(), ToolError> {
    let script = format!("add table inet NAME\nadd chain inet NAME probe{base}\n{rule}\n");
    let script = script.replace("NAME", &format!("sluice_probe_{}", unique().replace('-', "_")));
    nft(&["--check", "-f", "-"], &script).await.map(drop)
}

async fn has_nfqueue(family: Family) -> bool {
    match try_nfqueue(family).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, family = family.word(), "no NFQUEUE through iptables");
            false
        }
    }
}

async fn try_nfqueue(family: Family) -> Result<(), ToolError> {
    let iptables = Iptables::find(family).await?;
    let [existed, ..] = mangle_exists(family.word()).await?;
    // Chain names are limited to 28 characters.
    let chain = format!("SLUICE-{}", unique());
    let loaded = iptables
        .restore(&format!("*mangle\n:{chain} - [0:0]\n-A {chain} -j NFQUEUE --queue-num 1\nCOMMIT\n"))
        .await;
    let removed = match loaded {
        Ok(()) => iptables.restore(&format!("*mangle\n-F {chain}\n-X {chain}\nCOMMIT\n")).await,
        Err(_) => Ok(()),
    };
    if !existed && let Ok(netlink) = Nfnetlink::open() {
        // Refused by the kernel when somebody has begun to use it meanwhile.
        let _ = netlink.remove_empty_table(family, "mangle");
    }
    loaded.and(removed)
}
