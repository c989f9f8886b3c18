//! Services by what clients dial.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::Cluster;
use crate::objects;
use crate::shared::key_of_ip;
use crate::snapshot::{OutsideKey, ServiceEntry, node_port_key};

#[derive(Debug, Default)]
pub(super) struct Services {
    by_name: HashMap<(Arc<str>, Arc<str>), Arc<ServiceEntry>>,
    by_cluster_ip: HashMap<u128, Vec<Arc<ServiceEntry>>>,
    by_node_port: HashMap<u128, Vec<Arc<ServiceEntry>>>,
    by_outside: HashMap<OutsideKey, Vec<Arc<ServiceEntry>>>,
}

impl Services {
    /// Namespaces and names of all Services.
    pub(super) fn names(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.by_name.keys()
    }
}

impl ServiceEntry {
    fn cluster_ip_keys(&self) -> impl Iterator<Item = u128> + '_ {
        self.cluster_ips.iter().map(|ip| key_of_ip(*ip))
    }

    fn node_port_keys(&self) -> impl Iterator<Item = u128> + '_ {
        let ports = self.ports.iter();
        ports.filter_map(|(protocol, _, node_port)| Some(node_port_key((*node_port)?, *protocol)))
    }

    fn outside_keys(&self) -> impl Iterator<Item = OutsideKey> + '_ {
        let ports = |ip| self.ports.iter().map(move |(protocol, port, _)| (ip, *port, *protocol));
        self.outside_ips.iter().flat_map(move |ip| ports(*ip))
    }
}

impl Cluster {
    pub(super) fn put_service(&mut self, new: &objects::Service) -> bool {
        let (namespace, name) = (self.texts.text(&new.namespace), self.texts.text(&new.name));
        let key = (Arc::clone(&namespace), Arc::clone(&name));
        let entry = Arc::new(ServiceEntry {
            namespace,
            name,
            cluster_ips: new.cluster_ips.iter().copied().collect(),
            outside_ips: new.outside_ips.iter().copied().collect(),
            ports: new.ports.iter().map(|port| (port.protocol, port.port, port.node_port)).collect(),
        });
        match self.services.by_name.get(&key).cloned() {
            Some(old) if old == entry => return false,
            Some(old) => self.detach_service(&old),
            None => self.counts.services += 1,
        }
        self.attach_service(&entry);
        self.services.by_name.insert(key, entry);
        true
    }

    pub(super) fn delete_service(&mut self, namespace: &str, name: &str) -> bool {
        let Some(old) = self.services.by_name.remove(&(namespace.into(), name.into())) else { return false };
        self.detach_service(&old);
        self.counts.services -= 1;
        true
    }

    pub(super) fn put_slice(&mut self, namespace: &str, name: &str) -> bool {
        let new = self.slices.insert((self.texts.text(namespace), name.into()));
        self.counts.endpoint_slices += usize::from(new);
        new
    }

    pub(super) fn delete_slice(&mut self, namespace: &str, name: &str) -> bool {
        let was = self.slices.remove(&(namespace.into(), name.into()));
        self.counts.endpoint_slices -= usize::from(was);
        was
    }

    fn attach_service(&mut self, entry: &Arc<ServiceEntry>) {
        for key in entry.cluster_ip_keys() {
            self.services.by_cluster_ip.entry(key).or_default().push(Arc::clone(entry));
        }
        for key in entry.node_port_keys() {
            self.services.by_node_port.entry(key).or_default().push(Arc::clone(entry));
        }
        for key in entry.outside_keys() {
            self.services.by_outside.entry(key).or_default().push(Arc::clone(entry));
        }
        self.show_service(entry);
    }

    fn detach_service(&mut self, entry: &Arc<ServiceEntry>) {
        entry.cluster_ip_keys().for_each(|key| remove(&mut self.services.by_cluster_ip, &key, entry));
        entry.node_port_keys().for_each(|key| remove(&mut self.services.by_node_port, &key, entry));
        entry.outside_keys().for_each(|key| remove(&mut self.services.by_outside, &key, entry));
        self.show_service(entry);
    }

    /// Of Services that claim the same, the last by namespace and name has it.
    fn show_service(&mut self, entry: &ServiceEntry) {
        let ips = entry.cluster_ip_keys().map(|key| (key, last(&self.services.by_cluster_ip, &key)));
        self.view.services.update(ips.collect());
        let ports = entry.node_port_keys().map(|key| (key, last(&self.services.by_node_port, &key)));
        self.view.node_ports.update(ports.collect());
        for key in entry.outside_keys() {
            let outside = Arc::make_mut(&mut self.view.outside);
            match last(&self.services.by_outside, &key) {
                Some(service) => outside.insert(key, service),
                None => outside.remove(&key),
            };
        }
    }
}

fn remove<K: Eq + Hash>(all: &mut HashMap<K, Vec<Arc<ServiceEntry>>>, key: &K, entry: &Arc<ServiceEntry>) {
    if let Some(claiming) = all.get_mut(key) {
        claiming.retain(|other| !Arc::ptr_eq(other, entry));
        if claiming.is_empty() {
            all.remove(key);
        }
    }
}

fn last<K: Eq + Hash>(all: &HashMap<K, Vec<Arc<ServiceEntry>>>, key: &K) -> Option<Arc<ServiceEntry>> {
    let claiming = all.get(key)?.iter();
    claiming.max_by_key(|entry| (&entry.namespace, &entry.name)).cloned()
}
