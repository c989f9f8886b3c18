//! Tells what has come to differ from what was installed.

use super::{InstallError, Kernel};
use crate::listing::{Listing, list_bridge_table, list_table};
use crate::nfnetlink::Family;
use crate::xtables::{IptablesVariant, Look};

/// How many looks it is from one comparison of what tells of no change by itself to the next: sets of ipset, and
/// the rules of the older iptables.
const LOOKS_PER_COMPARISON: u32 = 4;

/// Something that differs from what was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The whole table is gone.
    TableMissing,
    /// A chain, rule or set is gone, changed or added.
    TableChanged,
    /// A set has other elements.
    ElementsChanged,
    /// The gate's chain or jump.
    Gate(Family),
    /// A chain of iptables, one of its rules, or the jump to it.
    Chains,
    /// A set of ipset.
    Sets,
    /// The table of the bridges.
    Bridges,
    /// A setting that hides bridged traffic.
    Setting(&'static str),
    /// A routing rule or route, by name.
    Route(&'static str),
}

impl Difference {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TableMissing => "table inet sluice missing",
            Self::TableChanged => "table inet sluice changed",
            Self::ElementsChanged => "set elements changed",
            Self::Gate(Family::V4) => "iptables gate changed",
            Self::Gate(Family::V6) => "ip6tables gate changed",
            Self::Chains => "iptables rules changed",
            Self::Sets => "ipset sets changed",
            Self::Bridges => "table bridge sluice changed",
            Self::Setting(name) | Self::Route(name) => name,
        }
    }
}

impl Kernel {
    /// Looks for differences. Cheap while the ruleset's generation stands still.
    pub(crate) async fn differences(&mut self) -> Result<Vec<Difference>, InstallError> {
        if self.xtables.is_some() && self.installed.is_some() {
            return self.iptables_differences().await;
        }
        let Some(installed) = &self.installed else { return Ok(vec![Difference::TableMissing]) };
        let generation = self.netlink.generation()?;
        if self.generation == Some(generation) {
            return Ok(Vec::new());
        }
        let mut differences = Vec::new();
        match list_table().await? {
            None => differences.push(Difference::TableMissing),
            Some(Listing { shape, .. }) if shape != installed.shape => {
                differences.push(Difference::TableChanged)
            }
            Some(Listing { elements, .. }) if elements != Some(self.spec.elements()) => {
                differences.push(Difference::ElementsChanged);
            }
            Some(_) => {}
        }
        if !self.spec.bridges.is_empty() && list_bridge_table().await != installed.bridges {
            differences.push(Difference::Bridges);
        }
        for (iptables, gate) in self.iptables.iter().zip(&installed.gates) {
            if iptables.glance().await? != *gate {
                differences.push(Difference::Gate(iptables.family));
            }
        }
        if differences.is_empty() {
            // Read before the lists, so that a change between is looked at next time.
            self.generation = Some(generation);
        }
        Ok(differences)
    }

    /// nf_tables' generation tells of changes to rules of iptables' nf_tables variant; nothing tells of the others.
    async fn iptables_differences(&mut self) -> Result<Vec<Difference>, InstallError> {
        let (Some(xtables), Some(installed)) = (&self.xtables, &self.installed) else {
            return Ok(vec![Difference::Chains]);
        };
        let Some(seen) = &installed.xtables else { return Ok(vec![Difference::Chains]) };
        self.looks = (self.looks + 1) % LOOKS_PER_COMPARISON;
        let generation = self.netlink.generation().ok();
        let told = self.spec.gate.iptables() == Some(IptablesVariant::Nft) && generation.is_some();
        let has_changed = generation != self.generation;
        if self.looks != 0 && !(told && has_changed) {
            return Ok(Vec::new());
        }
        let mut differences = Vec::new();
        match xtables.look(&self.spec, seen, !told || has_changed).await? {
            Look::Same => {}
            Look::Rules => differences.push(Difference::Chains),
            Look::Sets => differences.push(Difference::Sets),
        }
        if !self.spec.bridges.is_empty() && list_bridge_table().await != installed.bridges {
            differences.push(Difference::Bridges);
        }
        if differences.is_empty() {
            // Read before the lists, so that a change between is looked at next time.
            self.generation = generation;
        }
        Ok(differences)
    }
}
