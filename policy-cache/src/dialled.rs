//! What a client dials → the Service behind it, for questions about a whole cluster: a ClusterIP, an address outside
//! the cluster that leads to a Service, or a node's address with a node port.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use flow::Protocol;

use crate::objects::{Objects, ServicePort};
use crate::snapshot::{End, Snapshot};

/// The Services of a set of objects, by what clients dial.
#[derive(Debug)]
pub(crate) struct Doors {
    /// Places in the list of Services, by namespace and name.
    places: HashMap<(Box<str>, Box<str>), usize>,
    /// `externalIPs` and those of load balancers, which several Services may share, by port.
    outside: HashMap<(IpAddr, u16, Protocol), usize>,
    /// By place: whoever comes from outside stays on the node that he dialled.
    keeps_to_node: Vec<bool>,
}

/// A Service as it was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// The place of the Service in the list of all.
    pub(crate) service: usize,
    pub(crate) by: By,
    /// Only the endpoints of this node are given the connection.
    pub(crate) only_node: Option<u32>,
}

/// Which of a Service's addresses was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Its own, or its name; the port is that of the Service.
    Service,
    /// A node's, by its number; the port is a node port.
    Node(u32),
}

impl By {
    /// True when this port of a Service is the one that was dialled.
    pub(crate) fn is(self, own: &ServicePort, port: u16, protocol: Protocol) -> bool {
        own.protocol == protocol
            && match self {
                Self::Service => own.port == port,
                Self::Node(_) => own.node_port == Some(port),
            }
    }
}

impl Doors {
    /// Where several Services claim the same, the last by namespace and name has it.
    pub(crate) fn new(objects: &Objects) -> Self {
        let mut doors = Self {
            places: HashMap::with_capacity(objects.services.len()),
            outside: HashMap::new(),
            keeps_to_node: objects.services.iter().map(|service| service.keeps_to_node).collect(),
        };
        for (place, service) in objects.services.iter().enumerate() {
            doors.places.insert((service.namespace.as_str().into(), service.name.as_str().into()), place);
            for (ip, port) in
                service.outside_ips.iter().flat_map(|ip| service.ports.iter().map(move |port| (ip, port)))
            {
                doors.outside.insert((*ip, port.port, port.protocol), place);
            }
        }
        doors
    }

    /// The place of a Service by its name.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<usize> {
        self.places.get(&(namespace.into(), name.into())).copied()
    }

    /// The Service that `source` reaches at an address, if there is one behind it. `snapshot` must have been compiled
    /// from the same objects.
    pub(crate) fn at(
        &self,
        snapshot: &Snapshot,
        source: IpAddr,
        dialled: SocketAddr,
        protocol: Protocol,
    ) -> Option<Door> {
        let door = |service, by| Door { service, by, only_node: None };
        if let Some(service) = snapshot.cluster_ip(dialled.ip()) {
            return Some(door(self.named(&service.namespace, &service.name)?, By::Service));
        }
        if !self.outside.is_empty()
            && let Some(service) = self.outside.get(&(dialled.ip(), dialled.port(), protocol))
        {
            // Which node a load balancer chooses is not known here.
            return Some(door(*service, By::Service));
        }
        let (service, node) = snapshot.node_port(dialled, protocol)?;
        let service = self.named(&service.namespace, &service.name)?;
        // kube-proxy leads clients of the cluster itself to every endpoint, whatever the policy.
        let from_outside = matches!(snapshot.end(source), End::External | End::UnknownLocal);
        let only_node = (from_outside && self.keeps_to_node.get(service) == Some(&true)).then_some(node);
        Some(Door { service, by: By::Node(node), only_node })
    }
}

impl Door {
    /// True when this endpoint may be given the connection. One of which it is not known where it runs may.
    pub(crate) fn leads_to(self, snapshot: &Snapshot, endpoint: IpAddr) -> bool {
        let Some(only) = self.only_node else { return true };
        match snapshot.end(endpoint) {
            End::Pod { node: Some(node), .. } | End::Node(node) => node == only,
            End::Pod { node: None, .. } | End::UnknownLocal | End::External => true,
        }
    }
}
