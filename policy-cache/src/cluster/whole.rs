//! A whole set of objects in the place of what was known.

use std::collections::HashSet;

use flow::PolicyKind;

use super::Cluster;
use crate::objects::{Kind, ObjectKey, Objects};

impl Cluster {
    /// Makes these the objects of the cluster: each of them is put, and what is not among them goes. False when
    /// nothing changed.
    pub(crate) fn replace(&mut self, objects: &Objects) -> bool {
        let gone = self.vanished(objects);
        self.exchange(objects, &gone)
    }

    /// Puts each of these objects, and deletes what is gone. False when nothing changed.
    pub(crate) fn exchange(&mut self, objects: &Objects, gone: &[ObjectKey]) -> bool {
        let mut changed = false;
        for key in gone {
            changed |= self.delete(key);
        }
        // Policies first: selectors are then there when identities come, and need not look for them.
        for policy in &objects.policies {
            changed |= self.put_policy(policy);
        }
        for policy in &objects.tiers {
            changed |= self.put_tier_policy(policy);
        }
        for namespace in &objects.namespaces {
            changed |= self.put_namespace(namespace);
        }
        for node in &objects.nodes {
            changed |= self.put_node(node);
        }
        for service in &objects.services {
            changed |= self.put_service(service);
        }
        for slice in &objects.slices {
            changed |= self.put_slice(&slice.namespace, &slice.name);
        }
        for pod in &objects.pods {
            changed |= self.put_pod(pod);
        }
        changed |= self.set_names(&objects.domains);
        changed |= self.counts.skipped != objects.skipped;
        self.counts.skipped.clone_from(&objects.skipped);
        changed
    }

    /// What is known and not among the objects.
    pub(crate) fn vanished(&self, objects: &Objects) -> Vec<ObjectKey> {
        let mut vanished = Vec::new();
        let mut compare =
            |kind, known: &mut dyn Iterator<Item = (&str, &str)>, present: HashSet<(&str, &str)>| {
                let gone = known.filter(|key| !present.contains(key));
                vanished.extend(gone.map(|(namespace, name)| ObjectKey {
                    kind,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                }));
            };
        let pods = objects.pods.iter().map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
        compare(Kind::Pod, &mut self.pod_names(), pods.collect());
        let namespaces = objects.namespaces.iter().map(|namespace| ("", namespace.name.as_str()));
        let declared = &mut self.namespaces.declared().map(|name| ("", &**name));
        compare(Kind::Namespace, declared, namespaces.collect());
        let nodes = objects.nodes.iter().map(|node| ("", node.name.as_str()));
        compare(Kind::Node, &mut self.nodes.declared().map(|name| ("", &**name)), nodes.collect());
        let services = objects.services.iter().map(|one| (one.namespace.as_str(), one.name.as_str()));
        let known = &mut self.services.names().map(|(namespace, name)| (&**namespace, &**name));
        compare(Kind::Service, known, services.collect());
        let slices = objects.slices.iter().map(|one| (one.namespace.as_str(), one.name.as_str()));
        let known = &mut self.slices.iter().map(|(namespace, name)| (&**namespace, &**name));
        compare(Kind::EndpointSlice, known, slices.collect());
        let policies = objects.policies.iter().map(|one| (one.namespace.as_str(), one.name.as_str()));
        compare(Kind::Policy(PolicyKind::NetworkPolicy), &mut self.policy_names(), policies.collect());
        let tiers: HashSet<(PolicyKind, &str)> =
            objects.tiers.iter().map(|one| (one.kind, one.name.as_str())).collect();
        let gone = self.tier_policy_names().filter(|(kind, name)| !tiers.contains(&(*kind, &**name)));
        vanished.extend(gone.map(|(kind, name)| ObjectKey {
            kind: Kind::Policy(*kind),
            namespace: String::new(),
            name: name.to_string(),
        }));
        vanished
    }
}
