//! Owns the installed state of one network namespace: installs it whole, changes its sets, and tells what has
//! come to differ from what was installed.
//!
//! Order of installation: gate, routes, table. The table is what sends packets, so it comes last.

use std::io;

use serde_json::Value;

use crate::accounting;
use crate::bridge_settings::{self, Setting};
use crate::bridges::PodBridge;
use crate::cleanup;
use crate::config::BackendChoice;
use crate::gate::Iptables;
use crate::links::{LinkWatch, Links};
use crate::listing::{Listing, list_bridge_table, list_table, mangle_exists, quieted};
use crate::nfnetlink::{Family, Nfnetlink};
use crate::pod_links;
use crate::pods::{LocalPods, SetElements, delta_of};
use crate::probe::{MissingParts, builds_bridge_rules, probe_for};
use crate::routes::{RouteError, RouteSpec, Routes};
use crate::ruleset::{GateBackend, RedirectSpec, TABLE, ruleset};
use crate::tool::{ToolError, nft};
use crate::xtables::{IptablesVariant, Look, Noted, Seen, Xtables, noted, remove_all};

/// How often an installation is repeated to find a moment in which nobody else changes the ruleset.
const QUIET_ATTEMPTS: u32 = 5;

/// How many looks it is from one comparison of what tells of no change by itself to the next: sets of ipset, and
/// the rules of the older iptables.
const LOOKS_PER_COMPARISON: u32 = 4;

/// What it means when conntrack does not count.
const NOT_COUNTED: &str = "records of UDP and SCTP flows have no packets and bytes";

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

    /// Puts everything in place anew.
    pub(crate) async fn replace(&mut self) -> Result<(), InstallError> {
        self.generation = None;
        if self.installed.is_none() {
            self.take_over_notes().await?;
        }
        self.find_pod_links().await;
        self.count_datagrams();
        self.show_bridged_frames_to_nobody();
        if let Some(xtables) = &self.xtables {
            self.routes.ensure(RouteSpec::of(&self.spec)).await?;
            self.replace_bridges().await?;
            let seen = xtables.install(&mut self.spec).await?;
            let bridges = list_bridge_table().await.filter(|_| !self.spec.bridges.is_empty());
            self.installed =
                Some(Installed { shape: Vec::new(), bridges, gates: Vec::new(), xtables: Some(seen) });
            return Ok(());
        }
        let gates = self.replace_gates().await?;
        self.routes.ensure(RouteSpec::of(&self.spec)).await?;
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

    /// Waits for a change of the node's devices. Cancel safe.
    pub(crate) async fn links_changed(&self) {
        self.watch.changed().await;
    }

    /// Follows the bridges of pods and the node's tunnels: the rules go with their ports, and settings that would hide their traffic are
    /// off. Gives back the settings that somebody had turned on.
    pub(crate) async fn follow_bridges(&mut self) -> Result<Vec<Difference>, InstallError> {
        self.links_are_old |= self.watch.has_changed();
        if self.links_are_old {
            self.read_links().await?;
        }
        let bridges = self.bridges().await;
        self.stuck.retain(|setting| setting.is_on());
        let turned_on: Vec<Difference> = self
            .settings_in_the_way(&bridges)
            .filter(|_| self.spec.bridge_settings && !self.spec.bridges.is_empty())
            .filter(|setting| !self.stuck.contains(setting))
            .map(|setting| Difference::Setting(setting.name()))
            .collect();
        let overlays = self.links.overlays();
        if overlays != self.spec.overlays {
            tracing::info!(?overlays, "tunnels of this node, which take nothing from pods");
        }
        if bridges != self.spec.bridges || overlays != self.spec.overlays || !turned_on.is_empty() {
            let names: Vec<&str> = bridges.iter().map(|bridge| bridge.name.as_str()).collect();
            if names != self.spec.bridges.iter().map(|bridge| bridge.name.as_str()).collect::<Vec<_>>() {
                tracing::info!(bridges = ?names, "pods of this node share a bridge");
            }
            self.spec.bridges = bridges;
            self.spec.overlays = overlays;
            self.replace().await?;
        }
        self.obstacles = self.look_for_obstacles();
        Ok(turned_on)
    }

    fn look_for_obstacles(&self) -> Vec<String> {
        let (pods, patterns) = (&self.spec.pods, &self.spec.pod_interfaces);
        let found = self.links.pod_bridges(pods, patterns);
        let Some(PodBridge { name, .. }) = found.first() else { return Vec::new() };
        let settings = self.settings_in_the_way(&found).map(|setting| {
            let setting = setting.name();
            format!(
                "bridge {name} of pods: with {setting}=1 connections between its pods pass unseen; set it to 0 on the node"
            )
        });
        let mut obstacles: Vec<String> = settings.chain(self.links.obstacles(pods, patterns)).collect();
        if self.spec.bridges.is_empty() {
            obstacles.push(format!(
                "bridge {name} of pods: this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE), and \
                 connections between its pods pass unseen"
            ));
        }
        obstacles
    }

    /// Why bridged traffic could pass unseen.
    pub(crate) fn obstacles(&self) -> &[String] {
        &self.obstacles
    }

    async fn read_links(&mut self) -> Result<(), InstallError> {
        let read = Links::read(self.routes.handle()).await;
        self.links = read.map_err(|error| InstallError::Links(Box::new(error)))?;
        self.links_are_old = false;
        Ok(())
    }

    /// The bridges of pods that the rules can be for.
    async fn bridges(&mut self) -> Vec<PodBridge> {
        let found = self.links.pod_bridges(&self.spec.pods, &self.spec.pod_interfaces);
        if !found.is_empty() && self.has_bridge_rules.is_none() {
            self.has_bridge_rules = Some(builds_bridge_rules().await);
        }
        if self.has_bridge_rules == Some(false) { Vec::new() } else { found }
    }

    fn settings_in_the_way(&self, bridges: &[PodBridge]) -> impl Iterator<Item = Setting> + use<> {
        let ipv6 = self.spec.ipv6;
        let concerned = move |setting: &Setting| ipv6 || *setting == Setting::CallIptables;
        let settings = if bridges.is_empty() { &[][..] } else { &Setting::HIDING[..] };
        settings.iter().copied().filter(concerned).filter(|setting| setting.is_on())
    }

    /// What stays on is told by [`follow_bridges`](Self::follow_bridges).
    fn show_bridged_frames_to_nobody(&mut self) {
        if !self.spec.bridge_settings {
            return;
        }
        for setting in self.settings_in_the_way(&self.spec.bridges) {
            let created = &mut self.spec.created;
            match (setting.set(false), setting) {
                (Ok(()), Setting::CallIptables) => created.call_iptables = true,
                (Ok(()), Setting::CallIp6tables) => created.call_ip6tables = true,
                (Ok(()), Setting::SendRedirects) => created.send_redirects = true,
                (Err(error), _) => {
                    tracing::warn!(%error, setting = setting.name(), "cannot be turned off");
                    self.stuck.push(setting);
                    continue;
                }
            }
            tracing::info!(
                setting = setting.name(),
                "turned off: bridged frames come to the node by its own rules"
            );
        }
        self.tell_of_no_shorter_way();
    }

    /// Where this fails, clients of a bridge get no ICMP error with a refusal; nothing else differs.
    fn tell_of_no_shorter_way(&mut self) {
        if self.spec.bridges.is_empty() {
            return;
        }
        if Setting::SendRedirects.is_on() && Setting::SendRedirects.set(false).is_ok() {
            self.spec.created.send_redirects = true;
        }
        for PodBridge { name, .. } in &self.spec.bridges {
            if bridge_settings::sends_redirects(name) && bridge_settings::send_redirects(name, false).is_ok()
            {
                self.spec.quieted.insert(name.clone());
            }
        }
    }

    /// Puts back routing rules and routes that are missing.
    pub(crate) async fn repair_routes(&self) -> Result<Vec<Difference>, InstallError> {
        let repaired = self.routes.ensure(RouteSpec::of(&self.spec)).await?;
        Ok(repaired.into_iter().map(Difference::Route).collect())
    }

    /// Records of flows lack packets and bytes where this fails; nothing else does.
    fn count_datagrams(&mut self) {
        if !self.spec.conntrack_accounting {
            return;
        }
        match accounting::enable() {
            Ok(false) => {}
            Ok(true) => {
                self.spec.created.accounting = true;
                tracing::info!(setting = accounting::NAME, "conntrack counts packets and bytes from now on");
            }
            // As in most containers: the node's owner has to set it.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                tracing::info!(setting = accounting::NAME, "not ours to turn on: {NOT_COUNTED}");
            }
            Err(error) => {
                tracing::warn!(%error, setting = accounting::NAME, "cannot be turned on: {NOT_COUNTED}");
            }
        }
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
