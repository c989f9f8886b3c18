//! A whole set of objects → each of them, as events need them.

use super::{Entity, Object, Objects};

impl Objects {
    /// Every object, kind by kind.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let namespaces = self.namespaces.iter().cloned().map(Entity::Namespace);
        let nodes = self.nodes.iter().cloned().map(Entity::Node);
        let pods = self.pods.iter().map(|pod| Entity::Pod(Box::new(pod.clone())));
        let services = self.services.iter().cloned().map(Entity::Service);
        let slices = self.slices.iter().cloned().map(Entity::EndpointSlice);
        let policies = self.policies.iter().map(|policy| Entity::NetworkPolicy((**policy).clone()));
        let tiers = self.tiers.iter().map(|policy| Entity::TierPolicy((**policy).clone()));
        let objects = namespaces.chain(nodes).chain(pods).chain(services).chain(slices).chain(policies);
        objects.chain(tiers).map(Object)
    }
}
