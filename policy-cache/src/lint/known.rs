//! What the manifests show of the cluster, and so what may be concluded from them.

use std::path::Path;
use std::sync::Arc;

use super::places::Places;
use crate::manifest;
use crate::objects::{Labels, NetworkPolicy, Objects, Peer, Phase, Pod, Rule, Selector};

/// The label every namespace carries with its own name (KEP-2161).
pub(super) const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The cluster as far as it is known.
#[derive(Debug)]
pub(super) struct Known<'o> {
    pub(super) objects: &'o Objects,
    pub(super) places: &'o Places,
    /// Pods that policies can select, those of workloads' templates included.
    pub(super) pods: Vec<Pod>,
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
    pub(super) fn new(objects: &'o Objects, places: &'o Places) -> Self {
        let selectable = |pod: &&Pod| pod.phase != Phase::Finished && !pod.host_network;
        let mut pods: Vec<Pod> = objects.pods.iter().filter(selectable).cloned().collect();
        let listed = !pods.is_empty();
        for template in &places.templates {
            // A template that is no valid pod is somebody else's to refuse.
            if let Ok(own) = manifest::parse([(Path::new("template.json"), template.to_string().as_str())]) {
                pods.extend(own.pods.into_iter().filter(|pod| !pod.host_network));
            }
        }
        Self { objects, places, pods, is_cluster: listed && !objects.namespaces.is_empty() }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
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

    pub(super) fn selected<'k>(&'k self, policy: &'k NetworkPolicy) -> impl Iterator<Item = &'k Pod> {
        self.pods
            .iter()
            .filter(|pod| pod.namespace == policy.namespace && policy.pod_selector.matches(&pod.labels))
    }

    /// The labels of every namespace that is declared or has pods.
    pub(super) fn namespace_labels(&self, name: &str) -> Labels {
        let declared = self.objects.namespaces.iter().find(|namespace| namespace.name == name);
        let mut labels = declared.map(|namespace| namespace.labels.clone()).unwrap_or_default();
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        labels
    }

    /// The names of known namespaces that a selector matches.
    pub(super) fn namespaces(&self, selector: &Selector) -> Vec<&str> {
        let declared = self.objects.namespaces.iter().map(|namespace| namespace.name.as_str());
        let mut names: Vec<&str> =
            declared.chain(self.pods.iter().map(|pod| pod.namespace.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| selector.matches(&self.namespace_labels(name)));
        names
    }

    /// The pods that a peer matches.
    pub(super) fn matched_by<'k>(&'k self, peer: &'k Peer, own_namespace: &str) -> Vec<&'k Pod> {
        match peer {
            Peer::Block { cidr, except } => {
                let inside = |pod: &&Pod| {
                    pod.ips
                        .iter()
                        .any(|ip| cidr.contains(ip) && !except.iter().any(|range| range.contains(ip)))
                };
                self.pods.iter().filter(inside).collect()
            }
            Peer::Pods { namespaces, pods } => {
                let names = match namespaces {
                    Some(selector) => self.namespaces(selector),
                    None => vec![own_namespace],
                };
                let matches = |pod: &&Pod| {
                    names.contains(&pod.namespace.as_str())
                        && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
                };
                self.pods.iter().filter(matches).collect()
            }
        }
    }
}

/// The directions in which a policy isolates.
pub(super) fn ways(policy: &NetworkPolicy) -> impl Iterator<Item = Way<'_>> {
    let ingress = policy.ingress.as_deref().map(|rules| Way { key: "ingress", peers: "from", rules });
    let egress = policy.egress.as_deref().map(|rules| Way { key: "egress", peers: "to", rules });
    ingress.into_iter().chain(egress)
}

/// A policy as findings name it.
pub(super) fn name(policy: &NetworkPolicy) -> String {
    format!("NetworkPolicy/{}/{}", policy.namespace, policy.name)
}
