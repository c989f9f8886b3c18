//! Installs the scripts, looks whether they stand, and takes them away.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::{NOTES, Stale, Version, restore_script, tables};
use super::script::Table;
use super::tools::{Tools, destroy_set, restore_sets, save_set};
use super::{CHAIN_PREFIX, IptablesVariant, classify, sets};
use crate::listing::base_chains;
use crate::nfnetlink::{Family, Nfnetlink};
use crate::pods::SetElements;
use crate::ruleset::GATE_CHAIN;
use crate::spec::{CreatedBases, RedirectSpec};
use crate::tool::ToolError;

const TABLES: [&str; 3] = ["mangle", "raw", "filter"];
/// Every chain that an installation may have, whatever its configuration; and the gate of the nft rules.
const CHAINS: [&str; 46] = [
    GATE_CHAIN,
    NOTES,
    "SLUICE-ACCEPTED",
    "SLUICE-ALIVE",
    "SLUICE-ASK",
    "SLUICE-DATAGRAM",
    "SLUICE-FLOW",
    "SLUICE-FLOW-CLOSED",
    "SLUICE-FLOW-FROM-ISOLATED",
    "SLUICE-FLOW-FROM-OBSERVED",
    "SLUICE-FLOW-FROM-PASSED",
    "SLUICE-FLOW-FROM-UNKNOWN",
    "SLUICE-FLOW-OBSERVED",
    "SLUICE-FLOW-OPEN",
    "SLUICE-FLOW-TO-OBSERVED",
    "SLUICE-FLOW-TO-UNKNOWN",
    "SLUICE-FORWARD",
    "SLUICE-HOLD",
    "SLUICE-INPUT",
    "SLUICE-LEG",
    "SLUICE-LEGS",
    "SLUICE-LINKS",
    "SLUICE-OPENING",
    "SLUICE-OURS",
    "SLUICE-OUTPUT",
    "SLUICE-PASS",
    "SLUICE-POSTROUTING",
    "SLUICE-PREROUTING",
    "SLUICE-REFUSE",
    "SLUICE-REFUSED",
    "SLUICE-RESET",
    "SLUICE-SETTLE",
    "SLUICE-SOURCE",
    "SLUICE-SOURCE-OF-FLOW",
    "SLUICE-STRAY-FROM",
    "SLUICE-STRAY-TO",
    "SLUICE-SYN",
    "SLUICE-SYN-CLOSED",
    "SLUICE-SYN-FROM-ISOLATED",
    "SLUICE-SYN-FROM-OBSERVED",
    "SLUICE-SYN-FROM-PASSED",
    "SLUICE-SYN-FROM-UNKNOWN",
    "SLUICE-SYN-OBSERVED",
    "SLUICE-SYN-OPEN",
    "SLUICE-SYN-TO-OBSERVED",
    "SLUICE-TPROXY",
];
const MORE_CHAINS: [&str; 4] =
    ["SLUICE-OF-PODS", "SLUICE-UNREACHABLE", "SLUICE-UNTRACKED-IN", "SLUICE-UNTRACKED-OUT"];
const SETS: [&str; 4] = ["isolated", "ranges", "observed", "passed"];

/// The tools by which one node's rules are kept.
#[derive(Debug)]
pub(crate) struct Xtables {
    tools: Vec<Tools>,
}

/// What the tools showed of our chains, the jumps to them included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen(Vec<Vec<Listed>>);

/// What differs from what was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing.
    Same,
    /// A chain, rule or jump.
    Rules,
    /// A set or its elements.
    Sets,
}

/// Our part of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    table: String,
    chains: Vec<String>,
    rules: Vec<String>,
    /// Those of the chain that follows the pods' interfaces.
    links: Vec<String>,
    /// Rules of other chains that lead to ours.
    jumps: Vec<String>,
}

impl Xtables {
    pub(crate) async fn find(variant: IptablesVariant, ipv6: bool) -> Result<Self, ToolError> {
        let mut tools = vec![Tools::find(variant, Version::V4).await?];
        if ipv6 {
            tools.push(Tools::find(variant, Version::V6).await?);
        }
        Ok(Self { tools })
    }

    fn variant(&self) -> IptablesVariant {
        self.tools[0].variant
    }

    /// Puts sets and chains in place. Sets come first: rules cannot be made without.
    pub(crate) async fn install(&self, spec: &mut RedirectSpec) -> Result<Seen, ToolError> {
        if self.variant() == IptablesVariant::Nft {
            for tools in &self.tools {
                note_bases(tools, spec).await;
            }
        }
        restore_sets(&sets::replace_script(spec)).await?;
        let mut seen = Vec::new();
        for tools in &self.tools {
            let wanted = tables(spec, tools.version);
            let stale = stale(&list(tools).await?, &wanted);
            tools.restore(&restore_script(spec, tools.version, &stale)).await?;
            let listed = list(tools).await?;
            if let Some(missing) = lacking(&listed, &wanted) {
                return Err(ToolError::Failed {
                    program: format!("{}-{}-restore", tools.version.command(), tools.variant.word()),
                    status: "success".into(),
                    message: format!("{missing} is not as it was just installed"),
                });
            }
            seen.push(listed);
        }
        Ok(Seen(seen))
    }

    /// Changes the sets, and the chain of the pods' interfaces.
    pub(crate) async fn change(
        &self,
        old: &SetElements,
        spec: &RedirectSpec,
        seen: &mut Seen,
    ) -> Result<(), ToolError> {
        let new = spec.elements();
        // Who is told of what comes in by an interface has to be known before, and until after.
        if let Some(script) = sets::delta_script(old, &new, spec.ipv6) {
            restore_sets(&script).await?;
        }
        if old.links != new.links {
            for (tools, seen) in self.tools.iter().zip(&mut seen.0) {
                tools.restore(&classify::links_script(spec)).await?;
                let listed = list(tools).await?;
                // The rest is looked at later: a stranger's change to it is a difference.
                for (before, now) in seen.iter_mut().zip(listed) {
                    before.links = now.links;
                }
            }
        }
        Ok(())
    }

    /// Whether everything is as it was installed.
    pub(crate) async fn look(
        &self,
        spec: &RedirectSpec,
        seen: &Seen,
        rules: bool,
    ) -> Result<Look, ToolError> {
        if rules {
            for (tools, seen) in self.tools.iter().zip(&seen.0) {
                if list(tools).await? != *seen {
                    return Ok(Look::Rules);
                }
            }
        }
        for set in sets::sets(&spec.elements(), spec.ipv6) {
            let is = save_set(&set.name).await?.and_then(|text| elements(&text, &set.name));
            let wanted: BTreeSet<IpNet> = set.elements.iter().filter_map(|text| range(text)).collect();
            if is != Some(wanted) {
                return Ok(Look::Sets);
            }
        }
        Ok(Look::Same)
    }
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX) && (CHAINS.contains(&chain) || MORE_CHAINS.contains(&chain))
}

async fn list(tools: &Tools) -> Result<Vec<Listed>, ToolError> {
    let mut listed = Vec::new();
    for table in TABLES {
        listed.push(parse(table, &tools.save(table).await?));
    }
    Ok(listed)
}

fn parse(table: &str, text: &str) -> Listed {
    let mut listed = Listed { table: table.to_owned(), ..Listed::default() };
    for line in text.lines().map(str::trim) {
        if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
            if is_ours(chain) {
                listed.chains.push(chain.to_owned());
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let target = line.rsplit(' ').next().unwrap_or_default();
            let chain = rule.split(' ').next().unwrap_or_default();
            if chain == classify::LINKS {
                listed.links.push(line.to_owned());
            } else if is_ours(chain) {
                listed.rules.push(line.to_owned());
            } else if is_ours(target) {
                listed.jumps.push(line.to_owned());
            }
        }
    }
    listed
}

/// What has to go, and the jumps that may stay: others may have put rules before them on purpose.
fn stale(listed: &[Listed], wanted: &[Table]) -> Stale {
    let mut stale = Stale::default();
    for table in wanted {
        let Some(is) = listed.iter().find(|listed| listed.table == table.name) else { continue };
        let mut lines = Vec::new();
        if has_its_jumps(is, table) {
            stale.keep_jumps.push(table.name.to_owned());
        } else {
            lines.extend(is.jumps.iter().map(|jump| jump.replacen("-A ", "-D ", 1)));
        }
        let old = || is.chains.iter().filter(|name| !table.chains.iter().any(|chain| chain.name == **name));
        lines.extend(old().map(|name| format!("-F {name}")));
        lines.extend(old().map(|name| format!("-X {name}")));
        stale.lines.push((table.name.to_owned(), lines));
    }
    stale
}

/// One jump for each that there has to be, and no other.
fn has_its_jumps(is: &Listed, table: &Table) -> bool {
    let count = |hook: &str, chain: &str| {
        let (from, to) = (format!("-A {hook} "), format!(" -j {chain}"));
        is.jumps.iter().filter(|jump| jump.starts_with(&from) && jump.ends_with(&to)).count()
    };
    is.jumps.len() == table.jumps.len() && table.jumps.iter().all(|jump| count(jump.hook, &jump.chain) == 1)
}

/// The first thing that is not there right after it was installed.
fn lacking(listed: &[Listed], wanted: &[Table]) -> Option<String> {
    for table in wanted {
        let is = listed.iter().find(|listed| listed.table == table.name)?;
        let has_chain = |name: &String| is.chains.contains(name);
        if let Some(chain) = table.chains.iter().find(|chain| !has_chain(&chain.name)) {
            return Some(format!("chain {} of table {}", chain.name, table.name));
        }
        let rules: usize = table.chains.iter().map(super::script::Chain::length).sum();
        if is.rules.len() + is.links.len() != rules || !has_its_jumps(is, table) {
            return Some(format!("table {}", table.name));
        }
    }
    None
}

fn elements(text: &str, name: &str) -> Option<BTreeSet<IpNet>> {
    let added = text.lines().filter_map(|line| line.strip_prefix("add ")?.strip_prefix(name));
    added.map(|element| range(element.trim())).collect()
}

/// A range, or an address as one.
fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn notes(listed: &[Listed]) -> (CreatedBases, BTreeSet<String>) {
    let (mut created, mut bases) = (CreatedBases::default(), BTreeSet::new());
    for listed in listed {
        for rule in &listed.rules {
            let Some(note) = rule.strip_prefix(&format!("-A {NOTES} -m comment --comment ")) else {
                continue;
            };
            let note = note.trim_matches('"');
            if note.starts_with(MADE) {
                bases.insert(note.to_owned());
            } else {
                created.note(note);
            }
        }
    }
    (created, bases)
}

/// What a note of a base that was made begins with; family, table and chain follow.
const MADE: &str = "made/";

/// Notes the tables and base chains that are not there before the installation makes them.
async fn note_bases(tools: &Tools, spec: &mut RedirectSpec) {
    let family = tools.version.family();
    // Without nft they cannot be asked for, and stay behind, empty.
    let Ok(bases) = base_chains(family).await else { return };
    for table in tables(spec, tools.version) {
        for hook in table.jumps.iter().map(|jump| jump.hook) {
            if !bases.contains(&(table.name.to_owned(), hook.to_owned())) {
                spec.made_bases.insert(format!("{MADE}{family}/{}/{hook}", table.name));
            }
        }
        if !bases.iter().any(|(name, _)| name == table.name) {
            spec.made_bases.insert(format!("{MADE}{family}/{}", table.name));
        }
    }
}

/// The variants of which rules can be there: of iptables-nft none, where the kernel has no nf_tables.
fn variants() -> impl Iterator<Item = IptablesVariant> {
    let has_nf_tables = Nfnetlink::kernel_has_nf_tables();
    [IptablesVariant::Nft, IptablesVariant::Legacy]
        .into_iter()
        .filter(move |variant| has_nf_tables || *variant != IptablesVariant::Nft)
}

/// What an installation noted of its changes to the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// Whether there is an installation at all.
    pub(crate) is_there: bool,
    pub(crate) created: CreatedBases,
    pub(crate) bases: BTreeSet<String>,
}

impl Noted {
    /// The bases that the gate of the nft rules needs as well.
    pub(crate) fn mangle_bases(&self) -> CreatedBases {
        let made = |what: &str| self.bases.contains(&format!("{MADE}{what}"));
        CreatedBases {
            table4: made("ip/mangle"),
            input4: made("ip/mangle/INPUT"),
            forward4: made("ip/mangle/FORWARD"),
            table6: made("ip6/mangle"),
            input6: made("ip6/mangle/INPUT"),
            forward6: made("ip6/mangle/FORWARD"),
            ..CreatedBases::default()
        }
    }
}

/// Reads the notes of an earlier installation, of either variant.
pub(crate) async fn noted() -> Result<Noted, ToolError> {
    let mut noted = Noted::default();
    for variant in variants() {
        for version in [Version::V4, Version::V6] {
            let tools = match Tools::find(variant, version).await {
                Ok(tools) => tools,
                Err(ToolError::Missing { .. }) => continue,
                Err(error) => return Err(error),
            };
            let listed = [parse("mangle", &tools.save("mangle").await?)];
            let (created, bases) = notes(&listed);
            noted.is_there |= listed[0].chains.iter().any(|chain| chain == NOTES);
            noted.created = noted.created.or(created);
            noted.bases.extend(bases);
        }
    }
    Ok(noted)
}

/// What was removed, and what was noted of changes to the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removed {
    pub(crate) lines: Vec<String>,
    pub(crate) created: CreatedBases,
    bases: BTreeSet<String>,
}

/// Takes away all chains, jumps and sets of ours, of both variants but `keep`. The sets stay with a variant.
pub(crate) async fn remove_all(keep: Option<IptablesVariant>) -> Result<Removed, ToolError> {
    let mut removed = Removed::default();
    for variant in variants() {
        for version in [Version::V4, Version::V6] {
            if keep == Some(variant) {
                continue;
            }
            match Tools::find(variant, version).await {
                // The gate of the nft rules is theirs to keep, or has its own removal.
                Ok(tools) => remove_chains(&tools, keep.is_some(), &mut removed).await?,
                // Without the tool there never was a chain of its making.
                Err(ToolError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if keep.is_none() {
        match remove_sets(&mut removed).await {
            Ok(()) | Err(ToolError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        remove_bases(&mut removed);
    }
    Ok(removed)
}

async fn remove_chains(tools: &Tools, gate: bool, removed: &mut Removed) -> Result<(), ToolError> {
    let listed = list(tools).await?;
    let (created, bases) = notes(&listed);
    removed.created = removed.created.or(created);
    removed.bases.extend(bases);
    let command = tools.version.command();
    let mut script = String::new();
    for Listed { table, chains, jumps, .. } in &listed {
        let chains: Vec<&String> = chains.iter().filter(|chain| gate || *chain != GATE_CHAIN).collect();
        let jumps: Vec<&String> =
            jumps.iter().filter(|jump| gate || !jump.ends_with(&format!(" {GATE_CHAIN}"))).collect();
        if chains.is_empty() && jumps.is_empty() {
            continue;
        }
        script.push_str(&format!("*{table}\n"));
        for jump in &jumps {
            script.push_str(&format!("{}\n", jump.replacen("-A ", "-D ", 1)));
        }
        chains.iter().for_each(|chain| script.push_str(&format!("-F {chain}\n")));
        chains.iter().for_each(|chain| script.push_str(&format!("-X {chain}\n")));
        script.push_str("COMMIT\n");
        let word = tools.variant.word();
        removed.lines.push(format!(
            "{command}-{word} -t {table}: {} chains, {} jumps",
            chains.len(),
            jumps.len()
        ));
    }
    if script.is_empty() { Ok(()) } else { tools.restore(&script).await }
}

async fn remove_sets(removed: &mut Removed) -> Result<(), ToolError> {
    for version in [4, 6] {
        for set in SETS {
            let name = format!("sluice-{set}{version}");
            // A process that died between may have left the second.
            for name in [name.clone(), format!("{name}.next")] {
                if destroy_set(&name).await? {
                    removed.lines.push(format!("ipset {name}"));
                }
            }
        }
    }
    Ok(())
}

/// Tables and base chains that were made for ours, unless somebody uses them by now: the kernel refuses then.
fn remove_bases(removed: &mut Removed) {
    let Ok(netlink) = Nfnetlink::open() else { return };
    // Chains before their tables: longer names first.
    let mut notes: Vec<String> = removed.bases.iter().cloned().collect();
    notes.sort_by_key(|note| std::cmp::Reverse(note.matches('/').count()));
    for note in notes {
        let words: Vec<&str> = note.trim_start_matches(MADE).split('/').collect();
        let family = if words.first() == Some(&"ip6") { Family::V6 } else { Family::V4 };
        let gone = match words.as_slice() {
            [_, table, chain] => netlink.remove_empty_chain(family, table, chain),
            [_, table] => netlink.remove_empty_table(family, table),
            _ => Ok(false),
        };
        if gone.unwrap_or(false) {
            removed.lines.push(format!("{} (empty)", words.join(" ")));
        }
    }
}
