//! Who stands behind an address.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use crate::labels::Labels;
use crate::name::PodName;
use crate::uid::Uid;

/// What a snapshot knows of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A running pod that has the address to itself (never a hostNetwork pod).
    Pod(Arc<Pod>),
    /// A node's address, hostNetwork pods included.
    Node {
        /// The node's name.
        name: Arc<str>,
        /// True when it is the node this process runs on.
        own: bool,
    },
    /// An address of this node's pod ranges with no running pod known for it. Never allowed.
    UnknownLocal,
    /// Anything else: outside the cluster, as far as the snapshot knows.
    External,
}

impl Endpoint {
    /// The pod, when it is one.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}

/// A pod as records name it. What it shares with others of its workload is read as if it were its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// What the pods of its workload have in common.
    pub workload: Arc<Workload>,
    /// Name.
    pub name: PodName,
    /// `metadata.uid`; empty when the manifest has none.
    pub uid: Uid,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<Arc<str>>,
    /// True when it runs on the node this process runs on.
    pub local: bool,
}

impl Deref for Pod {
    type Target = Workload;

    fn deref(&self) -> &Workload {
        &self.workload
    }
}

/// What pods of one owner have in common: one of these for thousands of pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The controlling owner, a ReplicaSet resolved to its Deployment by the pod-template-hash suffix.
    pub owner: Option<Owner>,
}

/// Who owns a workload's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// For example `Deployment`.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A Service that a client dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The ClusterIP (or node address, for a NodePort) and port that was dialled.
    pub address: SocketAddr,
}
