//! What is measured: a cluster of one node, a client pod and a server pod, with or without Sluice between.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lab::{Cluster, PodSpec, Sluice, SluiceOptions};

use crate::load;
use crate::report::Figure;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: bench}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]
";
const PORT: u16 = 8080;
const GIB: f64 = 1_073_741_824.0;

/// One side of the comparison.
#[derive(Debug)]
pub(crate) struct Subject {
    name: &'static str,
    cluster: Cluster,
    sluice: Option<Sluice>,
}

impl Subject {
    /// No proxy: packets are routed from pod to pod.
    pub(crate) fn direct() -> anyhow::Result<Self> {
        Ok(Self { name: "direct", cluster: cluster()?, sluice: None })
    }

    /// Every connection gated, carried and recorded to a file.
    pub(crate) fn sluice(binary: &Path) -> anyhow::Result<Self> {
        let cluster = cluster()?;
        cluster.write_policy("policy.yaml", POLICY)?;
        let options = SluiceOptions { binary: Some(fs::canonicalize(binary)?), ..SluiceOptions::default() };
        let mut sluice = cluster.node("node1")?.start_sluice(&options)?;
        sluice.wait_ready(Duration::from_secs(10))?;
        Ok(Self { name: "sluice", cluster, sluice: Some(sluice) })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// One stream, client to server.
    pub(crate) fn bulk(&self, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let (client, server) = self.pods()?;
        let before = self.cpu_seconds()?;
        let bytes = load::bulk(client, server, self.address()?, span)?;
        let spent = self.cpu_seconds()? - before;
        let mut figures = vec![Figure::new("bulk, 1 stream", "Gb/s", bytes * 8.0 / 1e9 / span.as_secs_f64())];
        if self.sluice.is_some() {
            figures.push(Figure::new("bulk, proxy CPU", "s/GiB", spent / (bytes / GIB)));
        }
        Ok(figures)
    }

    /// 64 bytes there and back on one connection.
    pub(crate) fn ping_pong(&self, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let (client, server) = self.pods()?;
        let latencies = load::ping_pong(client, server, self.address()?, span)?;
        Ok(vec![
            Figure::new("ping-pong 64 B, p50", "µs", latencies.quantile(0.5)),
            Figure::new("ping-pong 64 B, p99", "µs", latencies.quantile(0.99)),
        ])
    }

    /// Connect, one byte there, one byte back, close; over and over by `clients` threads.
    pub(crate) fn connections(&self, clients: usize, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let (client, server) = self.pods()?;
        let before = self.cpu_seconds()?;
        let latencies = load::connections(client, server, self.address()?, clients, span)?;
        let spent = self.cpu_seconds()? - before;
        let label = |what: &str| format!("{clients} clients, {what}");
        let count = latencies.len() as f64;
        let mut figures = vec![
            Figure::new(&label("connections"), "1/s", count / span.as_secs_f64()),
            Figure::new(&label("connection p50"), "µs", latencies.quantile(0.5)),
            Figure::new(&label("connection p99"), "µs", latencies.quantile(0.99)),
        ];
        if self.sluice.is_some() {
            figures.push(Figure::new(&label("proxy CPU"), "µs/connection", spent / count * 1e6));
        }
        Ok(figures)
    }

    fn pods(&self) -> anyhow::Result<(&lab::Pod, &lab::Pod)> {
        Ok((self.cluster.pod("bench/client")?, self.cluster.pod("bench/server")?))
    }

    fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.cluster.pod("bench/server")?.at(PORT))
    }

    /// CPU time of the proxy so far. Source: proc(5), `/proc/PID/stat`, fields 14 and 15.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let Some(sluice) = &self.sluice else { return Ok(0.0) };
        let stat = fs::read_to_string(format!("/proc/{}/stat", sluice.pid()))?;
        let after_name = stat.rsplit_once(") ").context("no name in /proc/PID/stat")?.1;
        let ticks: Vec<f64> =
            after_name.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        // USER_HZ is 100 on every Linux that Rust runs on: time(7).
        Ok(ticks.iter().sum::<f64>() / 100.0)
    }
}

fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::builder()
        .nodes(1)
        .pod(PodSpec::new("bench/client").on("node1").label("app", "client"))
        .pod(PodSpec::new("bench/server").on("node1").label("app", "server").port("tcp", PORT))
        .build()?;
    Ok(cluster)
}
