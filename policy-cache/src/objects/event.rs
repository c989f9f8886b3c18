//! What can happen to the objects: one is put in the place of whatever had its key, or one goes.

use std::fmt;
use std::sync::Arc;

use flow::PolicyKind;

use super::{EndpointSlice, Namespace, NetworkPolicy, Node, Objects, Pod, Service, TierPolicy};

/// One validated object of any kind that decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(pub(crate) Entity);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entity {
    Namespace(Namespace),
    Pod(Box<Pod>),
    NetworkPolicy(NetworkPolicy),
    TierPolicy(TierPolicy),
    Node(Node),
    Service(Service),
    EndpointSlice(EndpointSlice),
}

/// A kind of object that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// v1.
    Namespace,
    /// v1.
    Pod,
    /// v1.
    Node,
    /// v1.
    Service,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// A policy of any of the kinds.
    Policy(PolicyKind),
}

/// What an object is found by. Prints as `Kind/namespace/name`, cluster-scoped kinds without a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is now so, whether it was there before or not.
    Put(Object),
    /// There is no such object any more; nothing happens when there was none.
    Delete(ObjectKey),
}

impl Kind {
    /// The `kind` field of such an object.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Policy(kind) => kind.as_str(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)
    }
}

impl Object {
    /// What it is found by.
    pub fn key(&self) -> ObjectKey {
        let (kind, namespace, name) = match &self.0 {
            Entity::Namespace(object) => (Kind::Namespace, "", &object.name),
            Entity::Pod(object) => (Kind::Pod, object.namespace.as_str(), &object.name),
            Entity::NetworkPolicy(object) => {
                (Kind::Policy(PolicyKind::NetworkPolicy), object.namespace.as_str(), &object.name)
            }
            Entity::TierPolicy(object) => (Kind::Policy(object.kind), "", &object.name),
            Entity::Node(object) => (Kind::Node, "", &object.name),
            Entity::Service(object) => (Kind::Service, object.namespace.as_str(), &object.name),
            Entity::EndpointSlice(object) => (Kind::EndpointSlice, object.namespace.as_str(), &object.name),
        };
        ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() }
    }
}

impl Objects {
    /// Each of them, to be put somewhere else.
    pub fn into_objects(self) -> impl Iterator<Item = Object> {
        let own = |policy: Arc<NetworkPolicy>| Arc::unwrap_or_clone(policy);
        let tiers = self.tiers.into_iter().map(|policy| Entity::TierPolicy(Arc::unwrap_or_clone(policy)));
        let policies = self.policies.into_iter().map(own).map(Entity::NetworkPolicy).chain(tiers);
        let namespaces = self.namespaces.into_iter().map(Entity::Namespace);
        let nodes = self.nodes.into_iter().map(Entity::Node);
        let services = self.services.into_iter().map(Entity::Service);
        let slices = self.slices.into_iter().map(Entity::EndpointSlice);
        let pods = self.pods.into_iter().map(|pod| Entity::Pod(Box::new(pod)));
        policies.chain(namespaces).chain(nodes).chain(services).chain(slices).chain(pods).map(Object)
    }

    /// Applies one event. False when it changed nothing.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Put(object) => self.put(object),
            Event::Delete(key) => self.delete(&key),
        }
    }

    fn put(&mut self, object: Object) -> bool {
        match object.0 {
            Entity::Namespace(new) => put(&mut self.namespaces, new, |a, b| a.name.cmp(&b.name)),
            Entity::Pod(new) => {
                put(&mut self.pods, *new, |a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
            }
            Entity::NetworkPolicy(new) => put(&mut self.policies, Arc::new(new), |a, b| {
                (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))
            }),
            Entity::TierPolicy(new) => {
                // Its place follows from its priority, which may be another now.
                let same = |old: &Arc<TierPolicy>| old.kind == new.kind && old.name == new.name;
                match self.tiers.iter().position(same) {
                    Some(place) if *self.tiers[place] == new => return false,
                    Some(place) => {
                        self.tiers.remove(place);
                    }
                    None => {}
                }
                put(&mut self.tiers, Arc::new(new), |a, b| a.order().cmp(&b.order()))
            }
            Entity::Node(new) => put(&mut self.nodes, new, |a, b| a.name.cmp(&b.name)),
            Entity::Service(new) => {
                put(&mut self.services, new, |a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
            }
            Entity::EndpointSlice(new) => {
                put(&mut self.slices, new, |a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey) -> bool {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let wanted = (namespace, name);
        match key.kind {
            Kind::Namespace => delete(&mut self.namespaces, |object| object.name == name),
            Kind::Pod => delete(&mut self.pods, |pod| (pod.namespace.as_str(), pod.name.as_str()) == wanted),
            Kind::Node => delete(&mut self.nodes, |object| object.name == name),
            Kind::Service => delete(&mut self.services, |service| {
                (service.namespace.as_str(), service.name.as_str()) == wanted
            }),
            Kind::EndpointSlice => {
                delete(&mut self.slices, |slice| (slice.namespace.as_str(), slice.name.as_str()) == wanted)
            }
            Kind::Policy(PolicyKind::NetworkPolicy) => delete(&mut self.policies, |policy| {
                (policy.namespace.as_str(), policy.name.as_str()) == wanted
            }),
            Kind::Policy(kind) => {
                delete(&mut self.tiers, |policy| policy.kind == kind && policy.name == name)
            }
        }
    }
}

fn put<T: PartialEq>(list: &mut Vec<T>, new: T, order: impl Fn(&T, &T) -> std::cmp::Ordering) -> bool {
    match list.binary_search_by(|old| order(old, &new)) {
        Ok(place) if list[place] == new => false,
        Ok(place) => {
            list[place] = new;
            true
        }
        Err(place) => {
            list.insert(place, new);
            true
        }
    }
}

fn delete<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool) -> bool {
    match list.iter().position(is_it) {
        Some(place) => {
            list.remove(place);
            true
        }
        None => false,
    }
}
