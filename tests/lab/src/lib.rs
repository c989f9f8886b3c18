//! Turns a description of nodes, pods and Services into network namespaces that behave like a cluster.
//!
//! Every node and every pod is a network namespace of its own; pods hang on routed veth pairs or on a bridge of
//! their node, nodes on one bridge or a VXLAN over it, and kube-proxy's and a CNI's translations are played by two small nftables tables. Everything is
//! removed on drop, and what a killed process left behind is swept by the next one.
//!
//! Nothing here touches the network namespace of the caller, decides a policy, or waits without a limit.

mod cluster;
mod datagrams;
mod error;
mod http;
mod iproute;
mod iptables_mode;
mod manifests;
mod metrics;
mod netns;
mod process;
mod programs;
mod server;
mod services;
mod shape;
mod sockets;
mod spec;
mod topology;
mod wait;
mod wiring;

pub use cluster::{Cluster, External, Node, Pod};
pub use datagrams::{UdpServer, ask, hear};
pub use error::LabError;
pub use iproute::{ip_batch, nft_script};
pub use netns::{Netns, remove_namespaces};
pub use process::{Sluice, SluiceOptions, sluice_binary};
pub use server::{GREETING, Server, greeting_peer};
pub use services::KubeProxy;
pub use shape::{Backend, Families, Family, Topology, UnknownShape};
pub use spec::{ClusterBuilder, PodSpec, ServiceSpec, TargetPort, Transport};
pub use wait::{patiently, wait_for, wait_until};
