//! What a snapshot is compiled with besides the objects.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The `policy:` section of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// What egress from a pod to its own node is subject to. Default: `allow`.
    pub own_node_egress: OwnNodeEgress,
}

/// What egress from a pod to its own node is subject to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnNodeEgress {
    /// NetworkPolicy never denies it. The documented rule: "traffic to and from the node where a Pod is
    /// running is always allowed".
    #[default]
    Allow,
    /// NetworkPolicy decides, as for any other address.
    Policy,
}

/// Where and how a snapshot is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The node this process runs on; `None` when nothing is local, as for offline decisions.
    pub node: Option<String>,
    /// The addresses of that node's own interfaces. Probes come from a bridge's or an overlay device's
    /// address, which no Node object names.
    pub own_addresses: Vec<IpAddr>,
    /// What egress to a pod's own node is subject to.
    pub own_node_egress: OwnNodeEgress,
}
