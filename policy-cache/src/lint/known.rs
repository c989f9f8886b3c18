//! What the manifests show of the cluster, and so what may be concluded from them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::places::{Places, WORKLOADS};
use super::services::ServicePorts;
use crate::manifest;
use crate::objects::{
    Labels, NetworkPolicy, Objects, Peer, Phase, Pod, PodsIn, Rule, Selector, TierPolicy, TierRule,
};

/// The label every namespace carries with its own name (KEP-2161).
pub(super) const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The cluster as far as it is known.
#[derive(Debug)]
pub(super) struct Known<'o> {
    pub(super) objects: &'o Objects,
    pub(super) places: &'o Places<'o>,
    /// Pods that policies can select, those of workloads' templates included, by namespace.
    pub(super) pods: Vec<Pod>,
    /// The labels of every namespace that is declared or has pods, and where its pods stand.
    namespaces: BTreeMap<String, (Labels, Range<usize>)>,
    pub(super) services: ServicePorts<'o>,
    /// Pods themselves are listed, and namespaces: the set looks like a cluster, not like one application.
    pub(super) is_cluster: bool,
}

/// One direction of a policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'o> {
    /// The field of the rules: `ingress` or `egress`.
    pub(super) key: &'static str,
    /// The field of a rule's peers.
    pub(super) peers: &'static str,
    pub(super) rules: &'o [Rule],
}

impl<'o> Known<'o> {
    pub(super) fn new(objects: &'o Objects, places: &'o Places<'o>) -> Self {
        let selectable = |pod: &&Pod| pod.phase != Phase::Finished && !pod.host_network;
        let mut pods: Vec<Pod> = objects.pods.iter().filter(selectable).cloned().collect();
        let listed = !pods.is_empty();
        for template in &places.templates {
            // A template that is no valid pod is somebody else's to refuse.
            if let Ok(own) = manifest::parse([(Path::new("template.json"), template.to_string().as_str())]) {
                pods.extend(own.pods.into_iter().filter(|pod| !pod.host_network));
            }
        }
        pods.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        let namespaces = namespaces(objects, &pods);
        let services = ServicePorts::new(&objects.services, &pods, |namespace| {
            namespaces.get(namespace).map(|(_, range)| range.clone()).unwrap_or_default()
        });
        let is_cluster = listed && !objects.namespaces.is_empty();
        Self { objects, places, pods, namespaces, services, is_cluster }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let is_workload = |kind: &str| kind.rsplit('/').next().is_some_and(|kind| WORKLOADS.contains(&kind));
        let mut notes = self.objects.notes_except(is_workload);
        if self.pods.is_empty() {
            notes.push(
                "no pods or workloads in the manifests: what policies select was not checked".to_owned(),
            );
        } else if !self.is_cluster {
            notes.push(
                "the manifests list no pods with their namespaces: whom peers match was not checked"
                    .to_owned(),
            );
        }
        notes
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &'o Arc<NetworkPolicy>> + use<'o> {
        self.objects.policies.iter()
    }

    /// The pods of a namespace.
    fn pods_in(&self, namespace: &str) -> &[Pod] {
        let range = self.namespaces.get(namespace).map(|(_, range)| range.clone()).unwrap_or_default();
        &self.pods[range]
    }

    pub(super) fn selected<'k>(&'k self, policy: &'k NetworkPolicy) -> impl Iterator<Item = &'k Pod> {
        self.pods_in(&policy.namespace).iter().filter(|pod| policy.pod_selector.matches(&pod.labels))
    }

    /// The policies of the Admin and Baseline tiers, in the order of their evaluation.
    pub(super) fn tiers(&self) -> &'o [Arc<TierPolicy>] {
        &self.objects.tiers
    }

    /// The pods that both selectors match.
    pub(super) fn pods_of<'k>(&'k self, selectors: &'k PodsIn) -> impl Iterator<Item = &'k Pod> {
        let names = self.namespaces(&selectors.namespaces).into_iter();
        names.flat_map(|name| self.pods_in(name)).filter(|pod| selectors.pods.matches(&pod.labels))
    }

    /// True when both selectors match a pod.
    pub(super) fn speaks_about(&self, selectors: &PodsIn, pod: &Pod) -> bool {
        self.namespaces.get(&pod.namespace).is_some_and(|(labels, _)| selectors.namespaces.matches(labels))
            && selectors.pods.matches(&pod.labels)
    }

    /// The names of known namespaces that a selector matches.
    pub(super) fn namespaces(&self, selector: &Selector) -> Vec<&str> {
        let matching = self.namespaces.iter().filter(|(_, (labels, _))| selector.matches(labels));
        matching.map(|(name, _)| name.as_str()).collect()
    }

    /// True when a peer matches a pod.
    pub(super) fn matches(&self, peer: &Peer, own_namespace: &str, pod: &Pod) -> bool {
        match peer {
            Peer::Block { cidr, except } => is_inside(pod, cidr, except),
            Peer::Pods { namespaces, pods } => {
                let in_namespace = match namespaces {
                    Some(selector) => self
                        .namespaces
                        .get(&pod.namespace)
                        .is_some_and(|(labels, _)| selector.matches(labels)),
                    None => pod.namespace == own_namespace,
                };
                in_namespace && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }
        }
    }

    /// The pods that a peer matches.
    pub(super) fn matched_by<'k>(&'k self, peer: &'k Peer, own_namespace: &str) -> Vec<&'k Pod> {
        match peer {
            Peer::Block { cidr, except } => {
                self.pods.iter().filter(|pod| is_inside(pod, cidr, except)).collect()
            }
            Peer::Pods { namespaces, pods } => {
                let names = match namespaces {
                    Some(selector) => self.namespaces(selector),
                    None => vec![own_namespace],
                };
                let matches = |pod: &&Pod| pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels));
                names.into_iter().flat_map(|name| self.pods_in(name)).filter(matches).collect()
            }
        }
    }
}

/// True when an address of the pod is in the block.
pub(super) fn is_inside(pod: &Pod, cidr: &IpNet, except: &[IpNet]) -> bool {
    pod.ips.iter().any(|ip| cidr.contains(ip) && !except.iter().any(|range| range.contains(ip)))
}

/// The namespaces that are declared or have pods, which stand together.
fn namespaces(objects: &Objects, pods: &[Pod]) -> BTreeMap<String, (Labels, Range<usize>)> {
    let declared = objects.namespaces.iter().map(|one| (one.name.clone(), (one.labels.clone(), 0..0)));
    let mut namespaces: BTreeMap<_, _> = declared.collect();
    let mut start = 0;
    for group in pods.chunk_by(|a, b| a.namespace == b.namespace) {
        let end = start + group.len();
        namespaces.entry(group[0].namespace.clone()).or_default().1 = start..end;
        start = end;
    }
    for (name, (labels, _)) in &mut namespaces {
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
    }
    namespaces
}

/// The directions in which a policy isolates.
pub(super) fn ways(policy: &NetworkPolicy) -> impl Iterator<Item = Way<'_>> {
    let ingress = policy.ingress.as_deref().map(|rules| Way { key: "ingress", peers: "from", rules });
    let egress = policy.egress.as_deref().map(|rules| Way { key: "egress", peers: "to", rules });
    ingress.into_iter().chain(egress)
}

/// One direction of a policy of the Admin or Baseline tier.
#[derive(Clone, Copy, Debug)]
pub(super) struct TierWay<'o> {
    /// The field of the rules: `ingress` or `egress`.
    pub(super) key: &'static str,
    /// The field of a rule's peers.
    pub(super) peers: &'static str,
    pub(super) rules: &'o [TierRule],
}

/// Both directions, with or without rules.
pub(super) fn tier_ways(policy: &TierPolicy) -> [TierWay<'_>; 2] {
    [
        TierWay { key: "ingress", peers: "from", rules: &policy.ingress },
        TierWay { key: "egress", peers: "to", rules: &policy.egress },
    ]
}

/// A policy of the Admin or Baseline tier as findings name it.
pub(super) fn tier_name(policy: &TierPolicy) -> String {
    format!("{}/{}", policy.kind.as_str(), policy.name)
}

/// True when whatever the narrow selector matches, the wide one matches too, as far as it is written.
pub(super) fn includes(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|requirement| narrow.requirements.contains(requirement))
}

/// A policy as findings name it.
pub(super) fn name(policy: &NetworkPolicy) -> String {
    format!("NetworkPolicy/{}/{}", policy.namespace, policy.name)
}
