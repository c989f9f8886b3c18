//! Takes away everything an installation may have left, after a stop, a crash or a kill, whatever it was
//! configured to be.

use std::fmt;

use rtnetlink::IpVersion;

use crate::accounting;
use crate::bridge_settings::{self, Setting};
use crate::config::RedirectConfig;
use crate::gate::{GateListing, Iptables};
use crate::listing::{list_bridge_table, list_table, quieted};
use crate::marks::{Marks, MarksError};
use crate::nfnetlink::{Family, Nfnetlink};
use crate::routes::{RouteError, RouteSpec, Routes};
use crate::ruleset::{GATE_CHAIN, GATE_HOOKS, TABLE};
use crate::spec::{CreatedBases, RedirectSpec};
use crate::tool::{ToolError, nft};
use crate::xtables::remove_all;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// One line for each thing.
    pub removed: Vec<String>,
}

/// One thing that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The configuration's mark mask says not which rules are ours.
    #[error(transparent)]
    Marks(#[from] MarksError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A rule or route was refused.
    #[error(transparent)]
    Routes(#[from] RouteError),
}

impl CleanupError {
    /// Whether the caller lacks the privilege.
    pub fn not_permitted(&self) -> bool {
        match self {
            Self::Marks(_) => false,
            Self::Tool(error) => matches!(error, ToolError::NotPermitted { .. }),
            Self::Routes(error) => error.not_permitted(),
        }
    }
}

/// What could not be removed, and what was removed nevertheless.
#[derive(Debug, thiserror::Error)]
pub struct CleanupErrors {
    /// What failed, at least one.
    pub errors: Vec<CleanupError>,
    /// What was done.
    pub report: CleanupReport,
}

impl fmt::Display for CleanupErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "; " }, crate::kernel::chain(error))?;
        }
        Ok(())
    }
}

/// Removes the tables, the rules, sets and gate of iptables' both variants, the routing rules and the routes, in both families, in the network
/// namespace of the calling thread. With nothing there, removes nothing and succeeds.
pub async fn cleanup(config: &RedirectConfig) -> Result<CleanupReport, CleanupErrors> {
    let marks = Marks::from_mask(config.mark_mask)
        .map_err(|error| CleanupErrors { errors: vec![error.into()], report: CleanupReport::default() })?;
    remove(marks.proxy, config.route_table, config.rule_priority, CreatedBases::default()).await
}

/// Takes back a first installation that failed half-way.
pub(crate) async fn undo(spec: &RedirectSpec) {
    if let Err(errors) = remove(spec.marks.proxy, spec.route_table, spec.rule_priority, spec.created).await {
        tracing::error!(%errors, "a failed installation could not be taken back; run `sluice cleanup`");
    }
}

/// `known` are the bases that were created, as far as the table cannot tell.
async fn remove(
    mark: u32,
    table: u32,
    priority: u32,
    known: CreatedBases,
) -> Result<CleanupReport, CleanupErrors> {
    let mut report = CleanupReport::default();
    let mut errors = Vec::new();
    // The tables go first: without them no packet is sent to the gate or the routes.
    let mut created = known;
    match remove_table(&mut report).await {
        Ok(told) => created = created.or(told),
        Err(ToolError::Missing { .. }) => {}
        Err(error) => errors.push(error.into()),
    }
    match remove_all(None).await {
        Ok(removed) => {
            created = created.or(removed.created);
            report.removed.extend(removed.lines);
        }
        Err(error) => errors.push(error.into()),
    }
    for (setting, was_on) in [
        (Setting::CallIptables, created.call_iptables),
        (Setting::CallIp6tables, created.call_ip6tables),
        (Setting::SendRedirects, created.send_redirects),
    ] {
        if was_on && setting.set(true).is_ok() {
            report.removed.push(format!("{}=0, now 1 again", setting.name()));
        }
    }
    if created.accounting && accounting::disable().is_ok() {
        report.removed.push(format!("{}=1, now 0 again", accounting::NAME));
    }
    let v4 = (created.table4, [created.input4, created.forward4]);
    let v6 = (created.table6, [created.input6, created.forward6]);
    for (family, (table, chains)) in [(Family::V4, v4), (Family::V6, v6)] {
        if let Err(error) = remove_gate(family, table, chains, &mut report).await {
            errors.push(error.into());
        }
    }
    if let Err(error) = remove_routes(mark, table, priority, &mut report).await {
        errors.push(error);
    }
    if errors.is_empty() { Ok(report) } else { Err(CleanupErrors { errors, report }) }
}

async fn remove_table(report: &mut CleanupReport) -> Result<CreatedBases, ToolError> {
    if let Some(table) = list_bridge_table().await {
        for bridge in quieted(&table) {
            if bridge_settings::send_redirects(&bridge, true).is_ok() {
                report.removed.push(format!("net.ipv4.conf.{bridge}.send_redirects=0, now 1 again"));
            }
        }
        nft(&["-f", "-"], &format!("delete table bridge {TABLE}\n")).await?;
        report.removed.push(format!("nft table bridge {TABLE}"));
    }
    let Some(listing) = list_table().await? else { return Ok(CreatedBases::default()) };
    nft(&["-f", "-"], &format!("delete table inet {TABLE}\n")).await?;
    report.removed.push(format!("nft table inet {TABLE}"));
    Ok(listing.created)
}

async fn remove_gate(
    family: Family,
    table: bool,
    chains: [bool; 2],
    report: &mut CleanupReport,
) -> Result<(), ToolError> {
    // The gate stands beside nft's rules, and nowhere else.
    if !Nfnetlink::kernel_has_nf_tables() {
        return Ok(());
    }
    let iptables = match Iptables::find(family).await {
        Ok(iptables) => iptables,
        // Without the tool there never was a gate of its making.
        Err(ToolError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let command = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let GateListing { declared, jumps, .. } = iptables.remove().await?;
    report.removed.extend(jumps.iter().map(|jump| format!("{command} -t mangle {jump}")));
    if declared {
        report.removed.push(format!("{command} -t mangle chain {GATE_CHAIN}"));
    }
    let Ok(netlink) = Nfnetlink::open() else { return Ok(()) };
    // Made for the gate, and taken away unless somebody uses them by now: the kernel refuses then.
    for (chain, created) in GATE_HOOKS.into_iter().zip(chains) {
        if created && netlink.remove_empty_chain(family, "mangle", chain).unwrap_or(false) {
            report.removed.push(format!("{command} -t mangle base chain {chain} (empty)"));
        }
    }
    if table && netlink.remove_empty_table(family, "mangle").unwrap_or(false) {
        report.removed.push(format!("{command} table mangle (empty)"));
    }
    Ok(())
}

async fn remove_routes(
    mark: u32,
    table: u32,
    priority: u32,
    report: &mut CleanupReport,
) -> Result<(), CleanupError> {
    let routes = Routes::open()?;
    let want = RouteSpec { mark, table, priority, ipv6: routes.has_rules(IpVersion::V6).await };
    report.removed.extend(routes.remove(want).await?);
    Ok(())
}
