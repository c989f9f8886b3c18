//! The tools of one variant of iptables, and what the kernel takes from them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::rules::Version;
use super::{IptablesVariant, SET_PREFIX};
use crate::listing::table_names;
use crate::nfnetlink::{Family, Nfnetlink};
use crate::probe::MissingPart;
use crate::tool::{self, ToolError};

/// How many seconds a tool waits for another that holds the lock of the older interface.
const WAIT: &str = "5";

/// The restore and save commands of one variant and family.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) version: Version,
    pub(super) variant: IptablesVariant,
    restore: PathBuf,
    save: PathBuf,
}

impl Version {
    /// What the tools' names begin with.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// nft's word for the family.
    pub(super) fn family(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl Tools {
    /// Finds them by their own names, or by the general ones where those are of this variant.
    pub(super) async fn find(variant: IptablesVariant, version: Version) -> Result<Self, ToolError> {
        let (command, word) = (version.command(), variant.word());
        let missing = || ToolError::Missing {
            program: format!("{command}-{word}-restore"),
            remedy: "apt-get install iptables".into(),
        };
        for middle in [format!("-{word}"), String::new()] {
            let of = |what: &str| tool::find(&[&format!("{command}{middle}-{what}")]);
            let (Some(restore), Some(save)) = (of("restore"), of("save")) else { continue };
            let says = tool::run(&restore, &["--version"], "").await?;
            if says.contains("nf_tables") == (variant == IptablesVariant::Nft) {
                return Ok(Self { version, variant, restore, save });
            }
        }
        Err(missing())
    }

    /// One table as `iptables-save` prints it. A table that the older interface does not have yet is not made.
    pub(super) async fn save(&self, table: &str) -> Result<String, ToolError> {
        if self.variant == IptablesVariant::Legacy && !self.is_in_use(table) {
            return Ok(String::new());
        }
        tool::run(&self.save, &["-t", table], "").await
    }

    fn is_in_use(&self, table: &str) -> bool {
        let list = match self.version {
            Version::V4 => "/proc/thread-self/net/ip_tables_names",
            Version::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        std::fs::read_to_string(list).is_ok_and(|names| names.lines().any(|name| name == table))
    }

    pub(super) async fn restore(&self, script: &str) -> Result<(), ToolError> {
        tool::run(&self.restore, &["--noflush", "-w", WAIT], script).await.map(drop)
    }
}

/// Runs `ipset restore`.
pub(super) async fn restore_sets(script: &str) -> Result<(), ToolError> {
    tool::run(&find_ipset()?, &["restore"], script).await.map(drop)
}

/// One set as `ipset save` prints it; `None` when there is no such set.
pub(super) async fn save_set(name: &str) -> Result<Option<String>, ToolError> {
    match tool::run(&find_ipset()?, &["save", name], "").await {
        Ok(text) => Ok(Some(text)),
        Err(ToolError::Failed { message, .. }) if message.contains("does not exist") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a set away. Whether there was one.
pub(super) async fn destroy_set(name: &str) -> Result<bool, ToolError> {
    match tool::run(&find_ipset()?, &["destroy", name], "").await {
        Ok(_) => Ok(true),
        Err(ToolError::Failed { message, .. }) if message.contains("does not exist") => Ok(false),
        Err(error) => Err(error),
    }
}

fn find_ipset() -> Result<PathBuf, ToolError> {
    tool::find(&["ipset"])
        .ok_or_else(|| ToolError::Missing { program: "ipset".into(), remedy: "apt-get install ipset".into() })
}

/// The tables that parts are asked for in.
const PROBED: [&str; 3] = ["filter", "raw", "mangle"];

/// A part of iptables' side of the kernel, and the rule that shows whether it is there.
struct Part {
    missing: MissingPart,
    table: &'static str,
    /// `SET` stands for a set's name.
    rule: fn(Version) -> &'static str,
}

macro_rules! part {
    ($table:literal, $part:literal, $option:literal, $module:literal, $rule:expr) => {
        Part {
            missing: MissingPart {
                part: concat!("iptables ", $part),
                kernel_option: $option,
                remedy: concat!("modprobe ", $module),
            },
            table: $table,
            rule: $rule,
        }
    };
}

const PARTS: [Part; 13] = [
    part!("mangle", "TPROXY", "CONFIG_NETFILTER_XT_TARGET_TPROXY", "xt_TPROXY", |version| match version {
        Version::V4 => "-p tcp -j TPROXY --on-ip 127.0.0.1 --on-port 1 --tproxy-mark 0x1/0x1",
        Version::V6 => "-p tcp -j TPROXY --on-ip ::1 --on-port 1 --tproxy-mark 0x1/0x1",
    }),
    part!("raw", "socket", "CONFIG_NETFILTER_XT_MATCH_SOCKET, Linux 4.3", "xt_socket", |_| {
        "-p tcp -m socket --transparent --restore-skmark -j RETURN"
    }),
    part!("mangle", "NFQUEUE", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE", "xt_NFQUEUE", |_| {
        "-j NFQUEUE --queue-num 1 --queue-bypass"
    }),
    part!("raw", "CT", "CONFIG_NETFILTER_XT_TARGET_CT", "xt_CT", |_| "-j CT --notrack"),
    part!("mangle", "MARK and mark", "CONFIG_NETFILTER_XT_MARK", "xt_mark", |_| {
        "-m mark --mark 0x1/0x1 -j MARK --set-xmark 0x1/0x1"
    }),
    part!("mangle", "CONNMARK and connmark", "CONFIG_NETFILTER_XT_CONNMARK", "xt_connmark", |_| {
        "-m connmark --mark 0x1/0x1 -j CONNMARK --set-xmark 0x1/0x1"
    }),
    part!("mangle", "conntrack", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK", "xt_conntrack", |_| {
        "-m conntrack --ctstate NEW,INVALID --ctdir REPLY -j RETURN"
    }),
    part!("mangle", "addrtype", "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE", "xt_addrtype", |_| {
        "-m addrtype ! --dst-type LOCAL -j RETURN"
    }),
    part!("mangle", "rpfilter", "CONFIG_IP_NF_MATCH_RPFILTER", "ipt_rpfilter ip6t_rpfilter", |_| {
        "-m rpfilter --invert -j RETURN"
    }),
    part!("mangle", "hashlimit", "CONFIG_NETFILTER_XT_MATCH_HASHLIMIT", "xt_hashlimit", |_| {
        "-m hashlimit --hashlimit-above 10000/sec --hashlimit-burst 5000 --hashlimit-mode srcip \
         --hashlimit-name sluice_probe -j RETURN"
    }),
    part!("mangle", "multiport", "CONFIG_NETFILTER_XT_MATCH_MULTIPORT", "xt_multiport", |_| {
        "-p sctp -m multiport --dports 1,2 -j RETURN"
    }),
    part!("mangle", "set", "CONFIG_NETFILTER_XT_SET, CONFIG_IP_SET_HASH_IP", "xt_set ip_set_hash_ip", |_| {
        "-m set --match-set SET src -j RETURN"
    }),
    part!(
        "filter",
        "REJECT",
        "CONFIG_IP_NF_TARGET_REJECT, CONFIG_IP6_NF_TARGET_REJECT",
        "ipt_REJECT ip6t_REJECT",
        |_| { "-p tcp -j REJECT --reject-with tcp-reset" }
    ),
];

/// What `variant` lacks for the backend, in the families the node has.
pub(crate) type Absent = Vec<MissingPart>;

/// Asks the kernel, by chains of unique names that nothing jumps to. Takes them away again.
pub(crate) async fn missing_parts(variant: IptablesVariant, ipv6: bool) -> Absent {
    let mut absent: Absent = Vec::new();
    let mut lacks = |part: MissingPart| {
        if !absent.contains(&part) {
            absent.push(part);
        }
    };
    if tool::find(&["ipset"]).is_none() {
        lacks(MissingPart { part: "ipset", kernel_option: "", remedy: "apt-get install ipset" });
        return absent;
    }
    for version in [Version::V4, Version::V6].into_iter().take(if ipv6 { 2 } else { 1 }) {
        let Ok(tools) = Tools::find(variant, version).await else {
            let (part, remedy) = match variant {
                IptablesVariant::Nft => ("iptables-nft", "apt-get install iptables (1.8 or later)"),
                IptablesVariant::Legacy => ("iptables-legacy", "apt-get install iptables"),
            };
            lacks(MissingPart { part, kernel_option: "", remedy });
            continue;
        };
        // The older variant says the same without rights as without a part: the right to make a set tells.
        let Ok(probe) = Probe::new(&tools).await else {
            lacks(crate::probe::PERMISSION);
            continue;
        };
        if probe.takes(&PARTS.iter().collect::<Vec<_>>()).await.is_err() {
            for part in &PARTS {
                match probe.takes(&[part]).await {
                    Ok(()) => {}
                    Err(ToolError::NotPermitted { .. }) => {
                        lacks(crate::probe::PERMISSION);
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, part = part.missing.part, variant = variant.word(), "not there");
                        lacks(part.missing.clone());
                    }
                }
            }
        }
        probe.end().await;
    }
    absent
}

struct Probe<'a> {
    tools: &'a Tools,
    /// nft's tables that were there before; `None` where they cannot be asked for.
    tables: Option<BTreeSet<String>>,
    chain: String,
    set: String,
}

impl<'a> Probe<'a> {
    /// Errors: [`ToolError::NotPermitted`]. A kernel without sets has none of the parts that need one.
    async fn new(tools: &'a Tools) -> Result<Self, ToolError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let tables = match tools.variant {
            IptablesVariant::Nft => table_names(tools.version.family()).await.ok(),
            IptablesVariant::Legacy => None,
        };
        let (chain, set) = (format!("SLUICE-{unique}"), format!("{SET_PREFIX}{unique}"));
        let probe = Self { tools, tables, chain, set };
        let family = if tools.version == Version::V4 { "inet" } else { "inet6" };
        match restore_sets(&format!("create {} hash:ip family {family}\n", probe.set)).await {
            Err(error @ ToolError::NotPermitted { .. }) => return Err(error),
            Err(error) => tracing::debug!(%error, "no sets"),
            Ok(()) => {}
        }
        Ok(probe)
    }

    /// Loads a chain with the parts' rules, and takes it away.
    async fn takes(&self, parts: &[&Part]) -> Result<(), ToolError> {
        let (mut load, mut unload) = (String::new(), String::new());
        let chain = &self.chain;
        for table in PROBED {
            let mut rules = parts.iter().filter(|part| part.table == table).peekable();
            if rules.peek().is_none() {
                continue;
            }
            load.push_str(&format!("*{table}\n:{chain} - [0:0]\n"));
            for part in rules {
                let rule = (part.rule)(self.tools.version).replace("SET", &self.set);
                load.push_str(&format!("-A {chain} {rule}\n"));
            }
            load.push_str("COMMIT\n");
            unload.push_str(&format!("*{table}\n-F {chain}\n-X {chain}\nCOMMIT\n"));
        }
        let loaded = self.tools.restore(&load).await;
        if loaded.is_ok() {
            return self.tools.restore(&unload).await;
        }
        // The tables before the one that was refused were committed.
        for table in PROBED {
            let _ = self.tools.restore(&format!("*{table}\n-F {chain}\n-X {chain}\nCOMMIT\n")).await;
        }
        loaded
    }

    async fn end(&self) {
        if let Err(error) = destroy_set(&self.set).await {
            tracing::debug!(%error, "the probe's set stays");
        }
        let (Some(before), Ok(netlink)) = (&self.tables, Nfnetlink::open()) else { return };
        let family = if self.tools.version == Version::V4 { Family::V4 } else { Family::V6 };
        for table in PROBED.iter().filter(|table| !before.contains(**table)) {
            // Refused by the kernel when somebody has begun to use it meanwhile.
            let _ = netlink.remove_empty_table(family, table);
        }
    }
}
