//! One node with four pods, a policy that isolates one of them, and Sluice on the node.

use std::net::SocketAddr;
use std::time::Duration;

use lab::{Cluster, ClusterBuilder, LabError, Pod, PodSpec, Sluice, SluiceOptions};
use serde_json::Value;

use crate::schema;

/// For what takes milliseconds on a quiet machine.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A port of `server` that the policy allows to every pod.
pub const ALLOWED: u16 = 8000;
/// A port of `server` that the policy allows to nobody.
pub const DENIED: u16 = 9999;

/// `server` is isolated and open to the pods of its namespace on ports 8000 to 8999. No other pod is selected.
pub const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {}}]
    ports: [{protocol: TCP, port: 8000, endPort: 8999}]
";

/// `client`, `other`, `server` (isolated) and `plain` on `node1`.
pub fn pods() -> ClusterBuilder {
    Cluster::builder()
        .pod(PodSpec::new("client"))
        .pod(PodSpec::new("other"))
        .pod(PodSpec::new("server").label("app", "server"))
        .pod(PodSpec::new("plain"))
}

/// The cluster of [`pods`], its policy in place, and Sluice when it was started.
#[derive(Debug)]
pub struct Stage {
    // Ends before the namespace it runs in.
    sluice: Option<Sluice>,
    /// The cluster.
    pub cluster: Cluster,
    /// How Sluice is started.
    pub options: SluiceOptions,
}

impl Stage {
    /// The cluster without Sluice. `config` is for when it is started.
    pub fn without_sluice(config: &str) -> Result<Self, LabError> {
        let cluster = pods().build()?;
        cluster.write_policy("policy.yaml", POLICY)?;
        Ok(Self {
            sluice: None,
            cluster,
            options: SluiceOptions { config: config.to_owned(), ..SluiceOptions::default() },
        })
    }

    /// The cluster with Sluice, ready.
    pub fn new(config: &str) -> Result<Self, LabError> {
        let mut stage = Self::without_sluice(config)?;
        stage.start_sluice()?;
        Ok(stage)
    }

    /// Starts Sluice in place of the one that ran before, and waits until it is ready.
    pub fn start_sluice(&mut self) -> Result<&mut Sluice, LabError> {
        self.sluice = None;
        let mut sluice = self.cluster.node("node1")?.start_sluice(&self.options)?;
        sluice.wait_ready(LIMIT)?;
        Ok(self.sluice.insert(sluice))
    }

    /// The running Sluice.
    ///
    /// # Panics
    /// When it was not started.
    pub fn sluice(&self) -> &Sluice {
        self.sluice.as_ref().expect("started")
    }

    /// The running Sluice, to be signalled.
    ///
    /// # Panics
    /// When it was not started.
    pub fn sluice_mut(&mut self) -> &mut Sluice {
        self.sluice.as_mut().expect("started")
    }

    /// A pod.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.cluster.pod(name).expect("a pod of the stage")
    }

    /// Waits for the final record of the connection from `client`.
    pub fn final_record(&self, client: SocketAddr) -> Result<Value, LabError> {
        self.sluice().wait_record(|record| is_final(record) && is_from(record, client), LIMIT)
    }

    /// Waits until no connection is live and no pipe in use.
    #[must_use]
    pub fn settled(&self) -> bool {
        lab::wait_until(LIMIT, || {
            ["sluice_connections_live", "sluice_pipes_in_use", "sluice_gate_pending"]
                .iter()
                .all(|gauge| self.sluice().metric(gauge).is_ok_and(|value| value == 0.0))
        })
    }
}

impl Drop for Stage {
    /// Every line that was written keeps to the schema.
    fn drop(&mut self) {
        self.sluice.iter().for_each(schema::assert_all_valid);
    }
}

/// True for the record that says how a connection or an attempt ended.
pub fn is_final(record: &Value) -> bool {
    !matches!(action(record), "connection-started" | "connection-updated" | "records-lost")
}

/// `event.action`.
pub fn action(record: &Value) -> &str {
    record["event"]["action"].as_str().unwrap_or_default()
}

/// `sluice.end_cause`.
pub fn cause(record: &Value) -> &str {
    record["sluice"]["end_cause"].as_str().unwrap_or_default()
}

/// `source.bytes` and `destination.bytes`.
pub fn bytes(record: &Value) -> (u64, u64) {
    let side = |side: &str| record[side]["bytes"].as_u64().unwrap_or_default();
    (side("source"), side("destination"))
}

/// True when the connection came from this address and port.
pub fn is_from(record: &Value, client: SocketAddr) -> bool {
    record["source"]["ip"] == client.ip().to_string() && record["source"]["port"] == client.port()
}
