//! Owns the installed state of one network namespace: installs it whole, changes its sets, and tells what has
//! come to differ from what was installed.
//!
//! Order of installation: routes, gate, table. The table is what sends packets, so it comes last.

mod differences;
mod surroundings;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

pub(crate) use self::differences::Difference;
use crate::bridge_settings::Setting;
use crate::cleanup;
use crate::config::BackendChoice;
use crate::gate::Iptables;
use crate::kept::Kept;
use crate::links::{LinkWatch, Links};
use crate::listing::{Listing, list_bridge_table, list_table, mangle_exists, quieted};
use crate::nfnetlink::{Family, Nfnetlink};
use crate::pod_links;
use crate::pods::{LocalPods, SetElements, delta_of};
use crate::probe::{MissingParts, probe_for};
use crate::routes::{RouteError, RouteSpec, Routes};
use crate::ruleset::{TABLE, ruleset};
use crate::spec::{GateBackend, RedirectSpec};
use crate::tool::{ToolError, nft};
use crate::xtables::{Noted, Seen, Xtables, noted, remove_all};

/// How often an installation is repeated to find a moment in which nobody else changes the ruleset.
const QUIET_ATTEMPTS: u32 = 5;

/// Addresses of nobody, for questions.
const NOBODY: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Why the interception could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The node lacks parts.
    #[error("{0}")]
    Missing(MissingParts),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A rule or route was refused.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// No word from nf_tables.
    #[error("ask nf_tables for its generation")]
    Generation(#[from] io::Error),
    /// The node's devices cannot be asked for.
    #[error("list the node's bridges")]
    Links(#[source] Box<rtnetlink::Error>),
    /// The table was accepted and is not there.
    #[error("table inet sluice vanished while it was installed")]
    Vanished,
}

/// The owner of the installed state.
pub(crate) struct Kernel {
    spec: RedirectSpec,
    netlink: Nfnetlink,
    routes: Routes,
    iptables: Vec<Iptables>,
    /// Where the rules are iptables' own, the tools by which they are kept.
    xtables: Option<Xtables>,
    /// What an earlier process has left of rules of iptables.
    left: Noted,
    /// Looks since the last comparison of what tells of no change.
    looks: u32,
    links: Links,
    links_are_old: bool,
    watch: LinkWatch,
    /// Why the bridges of pods cannot be enforced; empty when they can, or there are none.
    obstacles: Vec<String>,
    /// Settings that could not be turned off.
    stuck: Vec<Setting>,
    /// Whether this kernel has rules for bridges; asked when the first bridge of pods is found.
    has_bridge_rules: Option<bool>,
    /// Settings as they were after the installation.
    kept: Kept,
    installed: Option<Installed>,
    /// The ruleset's generation at which everything was last seen to be as installed.
    generation: Option<u32>,
}

/// What the kernel showed right after the installation.
struct Installed {
    shape: Vec<Value>,
    bridges: Option<Vec<Value>>,
    gates: Vec<Vec<String>>,
    /// The rules, where they are iptables' own; the shape is empty then.
    xtables: Option<Seen>,
}

impl Kernel {
    /// Installs everything, over whatever a former process may have left.
    pub(crate) async fn install(spec: RedirectSpec) -> Result<Self, InstallError> {
        let mut iptables = Vec::new();
        if spec.gate == GateBackend::IptablesNfqueue {
            iptables.push(Iptables::find(Family::V4).await?);
            if spec.ipv6 {
                iptables.push(Iptables::find(Family::V6).await?);
            }
        }
        let xtables = match spec.gate.iptables() {
            Some(variant) => Some(Xtables::find(variant, spec.ipv6).await?),
            None => None,
        };
        let (netlink, routes) = (Nfnetlink::open()?, Routes::open()?);
        // Before the devices are read, so that no change falls between.
        let watch = LinkWatch::open()?;
        let mut kernel = Self {
            spec,
            netlink,
            routes,
            iptables,
            xtables,
            left: Noted::default(),
            looks: 0,
            links: Links::default(),
            links_are_old: true,
            watch,
            obstacles: Vec::new(),
            stuck: Vec::new(),
            has_bridge_rules: None,
            kept: Kept::default(),
            installed: None,
            generation: None,
        };
        kernel.read_links().await?;
        kernel.spec.bridges = kernel.bridges().await;
        kernel.spec.overlays = kernel.links.overlays();
        // What a former process left keeps isolated pods closed; only what is ours alone is taken back.
        let is_first = !kernel.finds_rules().await?;
        let mut outcome = kernel.replace().await;
        if outcome.is_ok() {
            outcome = kernel.remove_other_backends().await;
        } else if is_first {
            cleanup::undo(&kernel.spec).await;
        }
        match outcome {
            Ok(()) => Ok(kernel),
            Err(InstallError::Tool(error @ ToolError::Failed { .. })) => {
                let choice = match kernel.spec.gate {
                    GateBackend::Iptables(_) => BackendChoice::Iptables,
                    GateBackend::NftQueue | GateBackend::IptablesNfqueue => BackendChoice::Nft,
                };
                let capabilities = probe_for(choice).await;
                Err(match capabilities.lacks_for(kernel.spec.gate) {
                    Some(missing) => InstallError::Missing(missing),
                    None => error.into(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an earlier installation is there, whatever its backend.
    async fn finds_rules(&mut self) -> Result<bool, InstallError> {
        self.left = noted().await?;
        Ok(self.left.is_there || left_table().await?.is_some())
    }

    /// Rules of both backends may stand together for a moment, but there is none without any: what another backend
    /// has left goes after this one's rules are in place.
    async fn remove_other_backends(&mut self) -> Result<(), InstallError> {
        let removed = match self.spec.gate.iptables() {
            Some(variant) => {
                if left_table().await?.is_some() {
                    nft(&["-f", "-"], &format!("delete table inet {TABLE}\n")).await?;
                    tracing::info!("removed the nft rules of an earlier process");
                }
                remove_all(Some(variant)).await?
            }
            None if self.left.is_there => remove_all(None).await?,
            None => return Ok(()),
        };
        if !removed.lines.is_empty() {
            tracing::info!(what = ?removed.lines, "removed the iptables rules of an earlier process");
        }
        Ok(())
    }

    /// Takes over what an earlier process, of any backend, kept in mind of the node's changed settings.
    async fn take_over_notes(&mut self) -> Result<(), InstallError> {
        if let Some(left) = left_table().await? {
            self.spec.created = left.created;
        }
        self.spec.created = self.spec.created.or(self.left.created);
        match self.xtables {
            Some(_) => self.spec.made_bases.extend(self.left.bases.iter().cloned()),
            // The gate's own notes hold for it; what else was made goes with the other backend's rules.
            None if self.spec.gate == GateBackend::IptablesNfqueue => {
                self.spec.created = self.spec.created.or(self.left.mangle_bases());
            }
            None => {}
        }
        self.spec.quieted = list_bridge_table().await.map(|table| quieted(&table)).unwrap_or_default();
        Ok(())
    }

    /// Puts everything in place anew. Routes are kept by [`repair_routes`](Self::repair_routes): what somebody does to them
    /// must not keep the rest away.
    pub(crate) async fn replace(&mut self) -> Result<(), InstallError> {
        self.generation = None;
        if self.installed.is_none() {
            self.take_over_notes().await?;
        }
        self.find_pod_links().await;
        self.find_owners().await;
        self.count_datagrams();
        self.show_bridged_frames_to_nobody();
        self.kept = Kept::now(&self.spec);
        if self.installed.is_none() {
            self.ensure_routes().await?;
        }
        if let Some(xtables) = &self.xtables {
            self.replace_bridges().await?;
            let seen = xtables.install(&mut self.spec).await?;
            let bridges = list_bridge_table().await.filter(|_| !self.spec.bridges.is_empty());
            self.installed =
                Some(Installed { shape: Vec::new(), bridges, gates: Vec::new(), xtables: Some(seen) });
            return Ok(());
        }
        let gates = self.replace_gates().await?;
        let (shape, generation) = self.replace_table().await?;
        let bridges = list_bridge_table().await.filter(|_| !self.spec.bridges.is_empty());
        self.installed = Some(Installed { shape, bridges, gates, xtables: None });
        self.generation = generation;
        Ok(())
    }

    /// Changes the sets. A change that fails is followed by a replacement of everything.
    pub(crate) async fn set_pods(&mut self, pods: LocalPods) -> Result<(), InstallError> {
        let old = self.spec.elements();
        self.spec.pods = pods;
        self.change_sets(old).await
    }

    /// Follows the pods' interfaces, which may come after the pods.
    pub(crate) async fn follow_pod_links(&mut self) -> Result<(), InstallError> {
        self.change_sets(self.spec.elements()).await
    }

    async fn change_sets(&mut self, old: SetElements) -> Result<(), InstallError> {
        self.find_pod_links().await;
        if let (Some(xtables), Some(Installed { xtables: Some(seen), .. })) =
            (&self.xtables, &mut self.installed)
        {
            if old == self.spec.elements() {
                return Ok(());
            }
            match xtables.change(&old, &self.spec, seen).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(%error, "set change refused; replacing the rules"),
            }
        } else if self.installed.is_some() {
            let Some(script) = delta_of(&old, &self.spec.elements()) else { return Ok(()) };
            match nft(&["-f", "-"], &script).await {
                // The table may have been replaced by a stranger's meanwhile; the next look will tell.
                Ok(_) => return Ok(()),
                Err(error) => tracing::debug!(%error, "set change refused; replacing the ruleset"),
            }
        }
        self.replace().await
    }

    /// What cannot be asked for stays as it is: the other rules do not depend on it.
    async fn find_pod_links(&mut self) {
        match pod_links::find(&self.routes, &self.spec.pods, self.spec.ipv6).await {
            Ok(links) => self.spec.pod_links = links,
            Err(error) => tracing::warn!(error = chain(&error), "cannot find the interfaces of pods"),
        }
    }

    /// The one nft table that stands beside rules of iptables: that of the bridges.
    async fn replace_bridges(&self) -> Result<(), InstallError> {
        let mut script = ruleset(&self.spec).nft;
        if self.spec.bridges.is_empty() && list_bridge_table().await.is_some() {
            script.push_str(&format!("delete table bridge {TABLE}\n"));
        }
        if !script.is_empty() {
            nft(&["-f", "-"], &script).await?;
        }
        Ok(())
    }

    /// Puts back routing rules and routes that are missing, and sees that packets follow them.
    pub(crate) async fn repair_routes(&self) -> Result<Vec<Difference>, InstallError> {
        let repaired = self.ensure_routes().await?;
        Ok(repaired.into_iter().map(Difference::Route).collect())
    }

    async fn ensure_routes(&self) -> Result<Vec<&'static str>, InstallError> {
        let want = RouteSpec::of(&self.spec);
        let done = self.routes.ensure(want).await?;
        self.routes.verify(want, &self.destinations()).await?;
        Ok(done)
    }

    /// Where the proxy's packets go: to a pod in each family, as far as one is known. Else to an address for
    /// documentation (RFC 5737, RFC 3849), which no node has.
    fn destinations(&self) -> Vec<IpAddr> {
        let mut of_pods =
            self.spec.pods.isolated.iter().chain(&self.spec.pods.observed).map(IpAddr::to_canonical);
        let four = of_pods.clone().find(IpAddr::is_ipv4).unwrap_or(NOBODY.0.into());
        let six = of_pods.find(IpAddr::is_ipv6).unwrap_or(NOBODY.1.into());
        if self.spec.ipv6 { vec![four, six] } else { vec![four] }
    }

    /// Settings that were as this process wants them, and were turned back by somebody.
    pub(crate) fn turned_back(&self) -> impl Iterator<Item = Difference> + use<> {
        self.kept.turned_back(Kept::now(&self.spec)).map(Difference::Setting)
    }

    async fn replace_gates(&mut self) -> Result<Vec<Vec<String>>, InstallError> {
        if self.iptables.is_empty() {
            return Ok(Vec::new());
        }
        let mut gates = Vec::new();
        for iptables in &self.iptables {
            let [table, input, forward] = mangle_exists(iptables.family.word()).await?;
            let created = &mut self.spec.created;
            match iptables.family {
                Family::V4 => {
                    created.table4 |= !table;
                    created.input4 |= !input;
                    created.forward4 |= !forward;
                }
                Family::V6 => {
                    created.table6 |= !table;
                    created.input6 |= !input;
                    created.forward6 |= !forward;
                }
            }
            gates.push(self.replace_gate(iptables).await?);
        }
        Ok(gates)
    }

    async fn replace_gate(&self, iptables: &Iptables) -> Result<Vec<String>, InstallError> {
        let mut attempt = 1;
        loop {
            let before = self.netlink.generation()?;
            iptables.install(&self.spec).await?;
            let listing = iptables.list().await?;
            let whole = listing.is_whole();
            let lines = iptables.glance().await?;
            let quiet = self.netlink.generation()? == before.wrapping_add(1);
            if whole && (quiet || attempt >= QUIET_ATTEMPTS) {
                return Ok(lines);
            }
            if attempt >= QUIET_ATTEMPTS {
                return Err(InstallError::Vanished);
            }
            attempt += 1;
        }
    }

    /// Replaces the table and gives back what the kernel shows of it. When the generation moved by exactly
    /// one, what it shows is ours alone and no stranger's change is taken for wanted.
    async fn replace_table(&self) -> Result<(Vec<Value>, Option<u32>), InstallError> {
        let mut script = ruleset(&self.spec).nft;
        if self.spec.bridges.is_empty() && list_bridge_table().await.is_some() {
            script.push_str(&format!("delete table bridge {TABLE}\n"));
        }
        let mut attempt = 1;
        loop {
            let before = self.netlink.generation()?;
            nft(&["-f", "-"], &script).await?;
            let listing = list_table().await?;
            let after = self.netlink.generation()?;
            let quiet = after == before.wrapping_add(1);
            match listing {
                Some(listing) if quiet => return Ok((listing.shape, Some(after))),
                Some(listing) if attempt >= QUIET_ATTEMPTS => return Ok((listing.shape, None)),
                None if attempt >= QUIET_ATTEMPTS => return Err(InstallError::Vanished),
                _ => attempt += 1,
            }
        }
    }
}

/// The nft table that is there; none where there is no nft.
async fn left_table() -> Result<Option<Listing>, ToolError> {
    match list_table().await {
        Err(ToolError::Missing { .. }) => Ok(None),
        found => found,
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
