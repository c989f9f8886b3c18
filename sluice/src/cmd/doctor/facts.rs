//! Everything the checks look at, read once.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use redirect::GateBackend;
use redirect::survey::{Place, Source, Survey, setting};

use super::finding::{Finding, warn};
use crate::config::Config;
use crate::rights::Rights;

/// Settings that are looked at, by their path under /proc/sys.
const SETTINGS: [&str; 22] = [
    "kernel/osrelease",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/default/route_localnet",
    "net/ipv4/conf/all/send_redirects",
    "net/ipv4/conf/all/accept_source_route",
    "net/ipv6/conf/all/seg6_enabled",
    "net/ipv6/conf/all/rpl_seg_enabled",
    "net/core/somaxconn",
    "net/netfilter/nf_conntrack_acct",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "fs/pipe-user-pages-soft",
    "fs/nr_open",
    "fs/file-max",
];
/// Settings of each interface.
const PER_INTERFACE: [&str; 3] = ["rp_filter", "route_localnet", "send_redirects"];

/// What a node is.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) survey: Survey,
    pub(super) config: Config,
    pub(super) settings: BTreeMap<String, String>,
    /// What this process may do.
    pub(super) rights: Rights,
    /// The most descriptors this process may have open.
    pub(super) descriptors: Option<u64>,
    /// Whether settings of the network can be written.
    pub(super) settings_writable: bool,
}

impl Facts {
    /// Reads what the survey has not, in the network namespace of the calling thread.
    pub(super) fn read(survey: Survey, config: Config) -> Self {
        let mut settings = BTreeMap::new();
        let mut keep = |path: &str| {
            if let Some(value) = setting(path) {
                settings.insert(path.to_owned(), value);
            }
        };
        SETTINGS.into_iter().for_each(&mut keep);
        // A dot in an interface's name stays a dot in its path.
        for link in survey.links.iter().filter(|link| !link.name.contains('/')) {
            PER_INTERFACE.iter().for_each(|name| keep(&format!("net/ipv4/conf/{}/{name}", link.name)));
        }
        Self {
            survey,
            config,
            settings,
            rights: Rights::own(),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
            settings_writable: fs::OpenOptions::new()
                .write(true)
                .open("/proc/sys/net/netfilter/nf_conntrack_acct")
                .is_ok(),
        }
    }

    /// A setting as it is written.
    pub(super) fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(String::as_str)
    }

    /// A setting that is a number.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.setting(path)?.parse().ok()
    }

    /// Whether this process has a capability.
    pub(super) fn may(&self, capability: u8) -> bool {
        self.rights.has(capability)
    }

    /// Whether a program reads the gate's first queue.
    pub(super) fn queue_is_read(&self) -> bool {
        self.survey.bound_queues.contains(&self.config.redirect.queue)
    }

    /// Whether the rules of Sluice are there, of either backend.
    pub(super) fn has_our_table(&self) -> bool {
        let filter = &self.survey.filter;
        filter.tables.iter().any(|table| is_ours(&table.family, &table.name))
            || filter.chains.iter().any(|chain| chain.place.chain == "SLUICE-PREROUTING")
    }

    /// In place of a good finding: it rests on what could not be read.
    pub(super) fn unknown(
        &self,
        name: &'static str,
        sources: &[Source],
        consequence: &'static str,
    ) -> Option<Finding> {
        let mut unread: Vec<String> = Vec::new();
        for source in
            self.survey.unread.iter().map(|unread| unread.what).filter(|what| sources.contains(what))
        {
            let source = source.to_string();
            if !unread.contains(&source) {
                unread.push(source);
            }
        }
        (!unread.is_empty()).then(|| {
            let found = format!("not known: {} cannot be read", unread.join(" and "));
            warn(name, found, consequence, "run as root on the node, with the tools installed")
        })
    }

    /// What `sluice run` would choose here.
    pub(super) fn backend(&self) -> Option<GateBackend> {
        self.survey.capabilities.choose(self.config.redirect.backend).ok()
    }
}

/// Whether a rule or chain there is Sluice's own.
pub(super) fn ours(place: &Place) -> bool {
    is_ours(&place.family, &place.table) || place.chain.starts_with("SLUICE-")
}

fn is_ours(family: &str, table: &str) -> bool {
    matches!(family, "inet" | "bridge") && table == "sluice"
}

/// A place as a person finds it.
pub(super) fn shown(place: &Place) -> String {
    let Place { family, table, chain, legacy } = place;
    let variant = if *legacy { " (iptables-legacy)" } else { "" };
    format!("{family} {table} {chain}{variant}")
}
