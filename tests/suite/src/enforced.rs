//! A cluster with Sluice in force on its nodes: changes that are waited for, records that are complete.

use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use lab::{Cluster, ClusterBuilder, Pod, Sluice, SluiceOptions, wait_for, wait_until};
use serde_json::Value;

use crate::schema;

/// No wait of a test takes longer, on a machine that others use too.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A cluster whose nodes run Sluice. Everything is ended and removed on drop.
#[derive(Debug)]
pub struct Enforced {
    // Dropped before the namespaces they run in.
    sluices: Vec<(String, Sluice)>,
    cluster: Cluster,
}

impl Enforced {
    /// Builds the cluster with these policy files and starts Sluice on every node, with this configuration.
    pub fn start(builder: ClusterBuilder, policies: &[(&str, &str)], config: &str) -> Self {
        let cluster = builder.build().expect("build the cluster");
        for (file, yaml) in policies {
            cluster.write_policy(file, yaml).expect("write a policy");
        }
        let nodes: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
        Self::on(cluster, &nodes, config)
    }

    /// Starts Sluice on these nodes of a cluster.
    pub fn on(cluster: Cluster, nodes: &[impl AsRef<str>], config: &str) -> Self {
        for node in cluster.nodes() {
            // A link-local address that appears late is a change of the node's addresses, in the middle of a
            // test: interfaces that are not up yet get none.
            node.sysctl("net.ipv6.conf.all.addr_gen_mode", "1").expect("no more link-local addresses");
        }
        let options = SluiceOptions { config: config.to_owned(), ..SluiceOptions::default() };
        let mut sluices: Vec<(String, Sluice)> = nodes
            .iter()
            .map(|name| {
                let node = cluster.node(name.as_ref()).expect("the node");
                (name.as_ref().to_owned(), node.start_sluice(&options).expect("start sluice"))
            })
            .collect();
        for (_, sluice) in &mut sluices {
            sluice.wait_ready(LIMIT).expect("sluice is ready");
        }
        Self { sluices, cluster }
    }

    /// A pod of the cluster.
    pub fn pod(&self, name: &str) -> &Pod {
        self.cluster.pod(name).expect("the pod")
    }

    /// The Sluice of a node.
    pub fn sluice(&self, node: &str) -> &Sluice {
        &self.sluices.iter().find(|(name, _)| name == node).expect("a node with sluice").1
    }

    /// Kills the Sluice of a node.
    pub fn kill(&mut self, node: &str) {
        let index = self.index(node);
        self.sluices[index].1.kill9();
    }

    /// Tells the Sluice of a node to stop, waits until it has, and gives all its records.
    pub fn stop(&mut self, node: &str) -> Vec<Value> {
        let index = self.index(node);
        let sluice = &mut self.sluices[index].1;
        sluice.sigterm();
        assert_eq!(sluice.wait_exit(LIMIT * 3).expect("it ends"), 0, "{}", sluice.stderr());
        sluice.records().expect("records")
    }

    /// Starts Sluice on a node in place of one that has ended, and waits until it is ready.
    pub fn start_again(&mut self, node: &str, options: &SluiceOptions) {
        let index = self.index(node);
        let node = self.cluster.node(node).expect("the node");
        let mut sluice = node.start_sluice(options).expect("start sluice");
        sluice.wait_ready(LIMIT).expect("sluice is ready");
        self.sluices[index].1 = sluice;
    }

    fn index(&self, node: &str) -> usize {
        self.sluices.iter().position(|(name, _)| name == node).expect("a node with sluice")
    }

    /// Changes the manifests and waits until every Sluice has judged its connections by them.
    pub fn change<T>(&self, change: impl FnOnce(&Cluster) -> T) -> T {
        let generation = |sluice: &Sluice| sluice.metric("sluice_snapshot_generation").expect("a generation");
        let before: Vec<f64> = self.sluices.iter().map(|(_, sluice)| generation(sluice)).collect();
        let result = change(&self.cluster);
        for ((node, sluice), before) in self.sluices.iter().zip(before) {
            let changed = wait_until(LIMIT, || generation(sluice) > before);
            assert!(changed, "{node} did not take up the change\n{}", sluice.stderr());
        }
        result
    }

    /// Writes a policy file and waits until it is in force.
    pub fn apply(&self, file: &str, yaml: &str) {
        self.change(|cluster| cluster.write_policy(file, yaml).expect("write a policy"));
    }

    /// Every record of a node so far. The counters say how many there must be, so none is missing and none
    /// is there twice.
    pub fn records(&self, node: &str) -> Vec<Value> {
        let sluice = self.sluice(node);
        let mut seen = String::new();
        let complete = wait_for(LIMIT, || {
            let text = sluice.metrics().expect("metrics");
            let records = sluice.records().expect("records");
            let counted: f64 = ["opened", "closed", "denied", "failed"]
                .iter()
                .map(|what| sum(&text, &format!("sluice_connections_{what}_total")))
                .sum();
            seen = format!("{} records, {counted} counted", records.len());
            #[expect(clippy::cast_precision_loss, reason = "a test writes few records")]
            (records.len() as f64 == counted).then_some(records)
        });
        complete.unwrap_or_else(|| panic!("{node}: {seen}\n{}", sluice.stderr()))
    }

    /// The records of a node about one client's address and port, in order.
    pub fn records_of(&self, node: &str, client: SocketAddr) -> Vec<Value> {
        let mut records = self.records(node);
        records.retain(|record| is_from(record, client));
        records
    }

    /// Waits for the last record of a client's one connection and checks that it is the only last one.
    pub fn last_record(&self, node: &str, client: SocketAddr) -> Value {
        let is_last = crate::stage::is_final;
        let matches = |record: &Value| is_from(record, client) && is_last(record);
        self.sluice(node).wait_record(matches, LIMIT).expect("a last record");
        let mut last = self.records_of(node, client);
        last.retain(is_last);
        assert_eq!(last.len(), 1, "{last:#?}");
        last.remove(0)
    }

    /// The value of one series of a node.
    pub fn metric(&self, node: &str, series: &str) -> f64 {
        self.sluice(node).metric(series).expect("a metric")
    }

    /// Waits until a series of a node has reached a value.
    pub fn wait_metric(&self, node: &str, series: &str, at_least: f64) {
        let reached = wait_until(LIMIT, || self.metric(node, series) >= at_least);
        assert!(reached, "{series} on {node} is {}", self.metric(node, series));
    }
}

impl Drop for Enforced {
    /// Every line that was written keeps to the schema.
    fn drop(&mut self) {
        self.sluices.iter().for_each(|(_, sluice)| schema::assert_all_valid(sluice));
    }
}

impl Deref for Enforced {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// True for a record about a connection from this address and port.
pub fn is_from(record: &Value, client: SocketAddr) -> bool {
    record["source"]["ip"] == client.ip().to_string() && record["source"]["port"] == client.port()
}

/// What a record says happened, and why: `connection-failed refused`.
pub fn told(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    format!("{} {}", text(&record["event"]["action"]), text(&record["sluice"]["end_cause"]))
}

fn sum(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
