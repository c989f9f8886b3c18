//! Where flows are served, and to whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The API that Hubble's tools speak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubbleConfig {
    /// Address and port. Default: none, and no such API. Beyond loopback it needs `tls`.
    pub listen: Option<SocketAddr>,
    /// The cluster's name in flows. Default `default`.
    pub cluster_name: String,
    /// Certificates. Default: none, and no TLS.
    pub tls: Option<HubbleTls>,
}

impl Default for HubbleConfig {
    fn default() -> Self {
        Self { listen: None, cluster_name: "default".to_owned(), tls: None }
    }
}

/// The files are looked at every minute, so they can be renewed under their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubbleTls {
    /// PEM of the certificate, with those between it and its authority.
    pub cert_file: PathBuf,
    /// PEM of its key.
    pub key_file: PathBuf,
    /// PEM of the authorities that clients must show a certificate of. Default: clients need none.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    /// The name in the certificates of this cluster's agents, as relays are told it; `*` stands for the node's name,
    /// its dots as dashes. Default `*.CLUSTER.hubble-grpc.cilium.io`, which Hubble's own certificates have.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The field's name.
    pub field: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl HubbleConfig {
    /// Every setting that cannot be used; empty when all can.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let is_open =
            self.listen.filter(|listen| !listen.ip().to_canonical().is_loopback() && self.tls.is_none());
        let is_name = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
        let name = &self.cluster_name;
        let is_named = (1..=63).contains(&name.len()) && name.bytes().all(is_name);
        let open = is_open.map(|listen| ConfigProblem {
            field: "listen",
            value: listen.to_string(),
            problem: "must be a loopback address unless there is tls",
        });
        let named = (!is_named).then(|| ConfigProblem {
            field: "cluster_name",
            value: name.clone(),
            problem: "must be 1 to 63 lower case letters, digits and dashes",
        });
        open.into_iter().chain(named).collect()
    }

    /// The name in the certificate of a node's agent; `None` without TLS.
    pub(crate) fn server_name(&self, node: &str) -> Option<String> {
        let tls = self.tls.as_ref()?;
        let pattern = || format!("*.{}.hubble-grpc.cilium.io", self.cluster_name);
        Some(tls.server_name.clone().unwrap_or_else(pattern).replace('*', &node.replace('.', "-")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_there_is_tls() {
        let listening =
            |listen: &str| HubbleConfig { listen: Some(listen.parse().unwrap()), ..HubbleConfig::default() };
        assert_eq!(listening("127.0.0.1:4245").validate(), []);
        assert_eq!(listening("[::1]:4245").validate(), []);
        for open in ["0.0.0.0:4244", "[::]:4244", "192.0.2.1:4244"] {
            assert_eq!(listening(open).validate().len(), 1, "{open}");
        }
        let tls = HubbleTls {
            cert_file: "cert".into(),
            key_file: "key".into(),
            client_ca_file: None,
            server_name: None,
        };
        let mut config = HubbleConfig { tls: Some(tls), ..listening("0.0.0.0:4244") };
        assert_eq!(config.validate(), []);
        assert_eq!(config.server_name("node.a").unwrap(), "node-a.default.hubble-grpc.cilium.io");
        config.tls.as_mut().unwrap().server_name = Some("agent.example".to_owned());
        assert_eq!(config.server_name("node.a").unwrap(), "agent.example");
        config.cluster_name = "Big/Name".to_owned();
        assert_eq!(config.validate().len(), 1);
    }
}
