//! Follows what the installed state depends on and is not: the node's devices, the bridges of pods among them, and the
//! settings that the configuration lets Sluice change.

use std::io;

use super::{Difference, InstallError, Kernel, chain};
use crate::accounting;
use crate::bridge_settings::{self, Setting};
use crate::bridges::{self, PodBridge};
use crate::ipv6;
use crate::links::Links;
use crate::listing::list_bridge_table;
use crate::other_ends;
use crate::owners::Owners;
use crate::probe::builds_bridge_rules;
use crate::tool::nft;

/// What it means when conntrack does not count.
const NOT_COUNTED: &str = "records of UDP and SCTP flows have no packets and bytes";

impl Kernel {
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
        let by_ipv6 = if self.spec.ipv6 { None } else { ipv6::passes_unseen() };
        let Some(PodBridge { name, .. }) = found.first() else { return by_ipv6.into_iter().collect() };
        let settings = self.settings_in_the_way(&found).map(|setting| {
            let setting = setting.name();
            format!(
                "bridge {name} of pods: with {setting}=1 connections between its pods pass unseen; set it to 0 on the node"
            )
        });
        let mut obstacles: Vec<String> =
            settings.chain(self.links.obstacles(pods, patterns)).chain(by_ipv6).collect();
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

    /// Follows the addresses of the pods of bridges. Nobody tells of their changes.
    pub(crate) async fn follow_owners(&mut self) -> Result<(), InstallError> {
        let before = self.spec.owners.clone();
        self.find_owners().await;
        let Some(installed) = &mut self.installed else { return Ok(()) };
        if before != self.spec.owners {
            nft(&["-f", "-"], &bridges::table(&self.spec)).await?;
            installed.bridges = list_bridge_table().await;
        }
        Ok(())
    }

    /// What cannot be asked for stays as it is, as with the pods' interfaces.
    pub(super) async fn find_owners(&mut self) {
        if self.spec.bridges.is_empty() {
            self.spec.owners = Owners::default();
            return;
        }
        let ports = self.links.ports_of(&self.spec.bridges);
        let found = other_ends::find(self.routes.handle(), ports, &self.spec.owners).await;
        match found {
            Ok(owners) => self.spec.owners = owners,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot find the addresses of pods on bridges")
            }
        }
    }

    pub(super) async fn read_links(&mut self) -> Result<(), InstallError> {
        let read = Links::read(self.routes.handle()).await;
        self.links = read.map_err(|error| InstallError::Links(Box::new(error)))?;
        self.links_are_old = false;
        Ok(())
    }

    /// The bridges of pods that the rules can be for.
    pub(super) async fn bridges(&mut self) -> Vec<PodBridge> {
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
    pub(super) fn show_bridged_frames_to_nobody(&mut self) {
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

    /// Records of flows lack packets and bytes where this fails; nothing else does.
    pub(super) fn count_datagrams(&mut self) {
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
}
