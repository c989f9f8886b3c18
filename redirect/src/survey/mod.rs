//! Reads what is on a node beside Sluice: the rules, marks, queues, interfaces and settings that bear on the
//! interception. Changes nothing, and judges nothing: what it means is for the reader to say.
//!
//! What tools print is a stranger's text. It is read line by line, within limits of bytes, lines and time
//! (`lines`), and names are cut and stripped of control characters before anybody prints them.

mod iptables;
mod lines;
mod links;
mod listed;
mod settings;

use std::fmt;
use std::path::PathBuf;

pub use links::{Link, LinkKind, MarkRule};
pub use settings::{bound_queues, setting};

use crate::config::BackendChoice;
use crate::nfnetlink::Nfnetlink;
use crate::probe::{Capabilities, builds_bridge_rules, probe_for};
use crate::tool::{ToolError, find};

/// The longest name that is kept; longer ones are cut. The kernel's own limit for tables and chains is 255.
const NAME_LENGTH: usize = 128;
const COMPLAINT_LENGTH: usize = 1_000;
/// How many chains, and how many uses of each kind, are kept.
const ENTRIES: usize = 100_000;

/// What a node has that bears on the interception.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The parts of the kernel and the tools.
    pub capabilities: Capabilities,
    /// Whether the kernel has the rules that bridges of pods need.
    pub bridge_rules: bool,
    /// The tools that Sluice or its self-test runs.
    pub tools: Vec<Tool>,
    /// Everything that netfilter has been given by others and by Sluice.
    pub filter: Filter,
    /// The names of ipsets; empty where there is no `ipset`.
    pub ipsets: Vec<String>,
    /// The interfaces.
    pub links: Vec<Link>,
    /// Routing rules that ask for a mark.
    pub mark_rules: Vec<MarkRule>,
    /// The numbers of the netfilter queues that a program reads.
    pub bound_queues: Vec<u16>,
    /// Ports with a TCP listener on an IPv4 loopback or wildcard address.
    pub listening: Vec<u16>,
    /// What could not be read, or not to its end.
    pub unread: Vec<Unread>,
}

/// A tool, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Its file; `None` when it is not installed.
    pub path: Option<PathBuf>,
}

/// Something that was not read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// What was to be read.
    pub what: Source,
    /// Why it was not.
    pub why: String,
}

/// Where a survey is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// nft's own list.
    Ruleset,
    /// Rules of iptables, of either variant.
    Iptables,
    /// ipset's list.
    Ipsets,
    /// Interfaces and routing rules.
    Links,
    /// Who reads netfilter's queues.
    Queues,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ruleset => "the nft ruleset",
            Self::Iptables => "the rules of iptables",
            Self::Ipsets => "ipsets",
            Self::Links => "interfaces and routing rules",
            Self::Queues => "who reads netfilter's queues",
        })
    }
}

/// Tables, chains and the rules among them that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// nft tables.
    pub tables: Vec<Table>,
    /// Chains, of nft and of the older iptables.
    pub chains: Vec<Chain>,
    /// Rules that write a mark.
    pub mark_writes: Vec<MarkWrite>,
    /// Rules that hand packets to a queue.
    pub queue_uses: Vec<QueueUse>,
    /// Rules that divert, untrack or offload packets.
    pub detours: Vec<Detour>,
}

/// An nft table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// `ip`, `ip6`, `inet`, `bridge`, `arp` or `netdev`.
    pub family: String,
    /// Its name.
    pub name: String,
}

/// Where a chain or rule is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The family, as of a [`Table`].
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Whether it belongs to the older iptables, which nft does not show.
    pub legacy: bool,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where it is.
    pub place: Place,
    /// What it hangs on, if packets come to it by themselves.
    pub base: Option<Base>,
    /// How many rules it has.
    pub rules: usize,
}

/// The hook of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `prerouting`, `input`, `forward`, `output`, `postrouting` or `ingress`.
    pub hook: String,
    /// Lower ones come first.
    pub priority: i32,
    /// Whether it drops what none of its rules decides.
    pub drops: bool,
}

/// A rule that writes the packet's mark or the connection's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkWrite {
    /// Where it is.
    pub place: Place,
    /// Whether it is the connection's mark.
    pub connection: bool,
    /// The bits that it may turn on.
    pub sets: u32,
    /// The bits that it may turn off.
    pub clears: u32,
}

/// A rule that hands packets to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueUse {
    /// Where it is.
    pub place: Place,
    /// The first queue.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A rule by which packets do not take their usual way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// Where it is.
    pub place: Place,
    /// What it does.
    pub kind: DetourKind,
}

/// What a rule does with a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DetourKind {
    /// Hands it to a local listener (TPROXY).
    Divert,
    /// Keeps it out of conntrack.
    Untrack,
    /// Lets the rest of its flow pass by all rules (a flow table).
    Offload,
}

/// Reads all of it, in the network namespace of the calling thread. What cannot be read is in
/// [`Survey::unread`]; the rest is there nevertheless. Of the parts of the kernel those are asked for that the
/// choice could fall on.
pub async fn survey(choice: BackendChoice) -> Survey {
    let mut survey = Survey {
        capabilities: probe_for(choice).await,
        bridge_rules: builds_bridge_rules().await,
        tools: tools(),
        ..Survey::default()
    };
    let mut unread = Vec::new();
    let mut note = |what: Source, outcome: Result<(), ToolError>| {
        if let Err(error) = outcome {
            unread.push(Unread { what, why: printable(&error) });
        }
    };
    let listed = match find(&["nft"]) {
        Some(nft) => listed::read(&nft, &mut survey.filter).await,
        // Where the kernel has nf_tables, others may have given it rules.
        None if Nfnetlink::kernel_has_nf_tables() => {
            Err(ToolError::Missing { program: "nft".into(), remedy: "apt-get install nftables".into() })
        }
        None => Ok(()),
    };
    note(Source::Ruleset, listed);
    note(Source::Iptables, iptables::read_legacy(&mut survey.filter).await);
    note(Source::Iptables, iptables::read_marks(&mut survey.filter).await);
    if let Some(ipset) = find(&["ipset"]) {
        note(Source::Ipsets, names(&ipset, &mut survey.ipsets).await);
    }
    match links::read().await {
        Ok((links, mark_rules)) => (survey.links, survey.mark_rules) = (links, mark_rules),
        Err(error) => unread.push(Unread { what: Source::Links, why: printable(&error) }),
    }
    match settings::queues_read() {
        Ok(queues) => survey.bound_queues = queues,
        Err(error) => unread.push(Unread { what: Source::Queues, why: printable(&error) }),
    }
    survey.listening = settings::listening();
    survey.unread = unread;
    survey
}

fn tools() -> Vec<Tool> {
    let known = ["nft", "iptables-nft-restore", "ip6tables-nft-restore", "ip", "ipset"];
    known.map(|name| Tool { name, path: find(&[name]) }).into()
}

async fn names(ipset: &PathBuf, into: &mut Vec<String>) -> Result<(), ToolError> {
    lines::each(ipset, &["list", "-n"], |line| {
        if into.len() < ENTRIES {
            into.push(plain(line));
        }
    })
    .await
}

/// A name that can be printed: cut, and without control characters.
fn plain(name: &str) -> String {
    without_control(name, NAME_LENGTH)
}

/// An error in one line that can be printed: tools' own words may be in it.
fn printable(error: &dyn std::error::Error) -> String {
    without_control(&crate::kernel::chain(error), COMPLAINT_LENGTH)
}

fn without_control(text: &str, length: usize) -> String {
    text.chars().take(length).map(|c| if c.is_control() { '?' } else { c }).collect()
}
