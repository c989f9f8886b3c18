//! What is measured: a cluster of one node, a client pod and a server pod, with or without a proxy between.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{Cluster, Netns, PodSpec, Sluice, SluiceOptions};

use crate::anchor::{Anchor, Kind};
use crate::load::{self, Ends};
use crate::report::Figure;
use crate::usage;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: bench}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}, {port: 8081}, {port: 8082}]}]
";
const PORT: u16 = 8080;
/// A second server, for load beside load.
const OTHER_PORT: u16 = 8081;
/// A third.
const THIRD_PORT: u16 = 8082;
const GIB: f64 = 1_073_741_824.0;
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Connections of the run whose system calls are counted.
const COUNTED: usize = 800;

/// One side of the comparison.
#[derive(Debug)]
pub(crate) struct Subject {
    name: String,
    // Before the cluster, so that it ends before its namespace goes.
    proxy: Proxy,
    cluster: Cluster,
}

#[derive(Debug)]
enum Proxy {
    None,
    Sluice { running: Box<Sluice> },
    Anchor { _running: Anchor },
}

impl Subject {
    /// No proxy: packets are routed from pod to pod.
    pub(crate) fn direct() -> anyhow::Result<Self> {
        Ok(Self { name: "direct".into(), cluster: cluster()?, proxy: Proxy::None })
    }

    /// Every connection gated, carried and recorded to a file.
    pub(crate) fn sluice(name: &str, binary: &Path) -> anyhow::Result<Self> {
        let cluster = cluster()?;
        cluster.write_policy("policy.yaml", POLICY)?;
        let binary = fs::canonicalize(binary).with_context(|| format!("no binary {}", binary.display()))?;
        let options = SluiceOptions { binary: Some(binary), ..SluiceOptions::default() };
        let mut sluice = cluster.node("node1")?.start_sluice(&options)?;
        sluice.wait_ready(READY_LIMIT)?;
        Ok(Self { name: name.into(), cluster, proxy: Proxy::Sluice { running: Box::new(sluice) } })
    }

    /// Another proxy behind TPROXY, with a log line per connection.
    pub(crate) fn anchor(name: &str, kind: Kind) -> anyhow::Result<Self> {
        let cluster = cluster()?;
        let running = Anchor::start(kind, &cluster)?;
        Ok(Self { name: name.into(), proxy: Proxy::Anchor { _running: running }, cluster })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True for the subjects that decide.
    pub(crate) fn enforces(&self) -> bool {
        matches!(self.proxy, Proxy::Sluice { .. })
    }

    /// True for other proxies.
    pub(crate) fn is_anchor(&self) -> bool {
        matches!(self.proxy, Proxy::Anchor { .. })
    }

    /// Streams from client to server.
    pub(crate) fn bulk(&self, streams: usize, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let plural = if streams == 1 { "" } else { "s" };
        let name = format!("bulk, {streams} stream{plural}");
        let (moved, spent) = self.with_cpu(|| Ok(load::bulk(self.ends(PORT)?, streams, span)?))?;
        let mut figures = vec![Figure::more(&*name, "Gb/s", moved.rate * 8.0 / 1e9)];
        if let Some(spent) = spent {
            figures.push(Figure::less(format!("{name}, proxy CPU"), "s/GiB", spent / (moved.bytes / GIB)));
        }
        Ok(figures)
    }

    /// So many bytes there and back.
    pub(crate) fn exchange(
        &self,
        bytes: usize,
        connections: usize,
        span: Duration,
    ) -> anyhow::Result<Vec<Figure>> {
        let latencies = load::exchange(self.ends(PORT)?, bytes, connections, span)?;
        let plural = if connections == 1 { "" } else { "s" };
        let name = format!("exchange {}, {connections} connection{plural}", size(bytes));
        Ok(vec![
            Figure::less(format!("{name}, p50"), "µs", latencies.quantile(0.5)),
            Figure::less(format!("{name}, p99"), "µs", latencies.quantile(0.99)),
        ])
    }

    /// Connect, one byte there, one byte back, close; over and over by `clients` threads.
    pub(crate) fn connections(&self, clients: usize, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let ((latencies, rate), spent) =
            self.with_cpu(|| Ok(load::connections(self.ends(PORT)?, clients, span)?))?;
        let plural = if clients == 1 { "" } else { "s" };
        let name = format!("connections, {clients} client{plural}");
        let count = latencies.len() as f64;
        let mut figures = vec![
            Figure::more(&*name, "1/s", rate),
            Figure::less(format!("{name}, p50"), "µs", latencies.quantile(0.5)),
            Figure::less(format!("{name}, p99"), "µs", latencies.quantile(0.99)),
            Figure::less(format!("{name}, max"), "µs", latencies.quantile(1.0)),
        ];
        if let Some(spent) = spent {
            figures.push(Figure::less(format!("{name}, proxy CPU"), "ms per 1000", spent / count * 1e6));
        }
        Ok(figures)
    }

    /// Round trips of 64 bytes while one stream takes what it can get.
    pub(crate) fn beside_bulk(&self, span: Duration) -> anyhow::Result<Vec<Figure>> {
        let (bulk, small) = (self.ends(OTHER_PORT)?, self.ends(PORT)?);
        let (latencies, moved) = std::thread::scope(|scope| {
            let moved = scope.spawn(move || load::bulk(bulk, 1, span));
            let latencies = load::exchange(small, 64, 1, span);
            (latencies, moved.join())
        });
        let latencies = latencies?;
        moved.map_err(|_| anyhow::anyhow!("the stream's thread panicked"))??;
        Ok(vec![
            Figure::less("64 B beside a bulk stream, p50", "µs", latencies.quantile(0.5)),
            Figure::less("64 B beside a bulk stream, p99", "µs", latencies.quantile(0.99)),
        ])
    }

    /// Memory of the proxy without connections, and what each of `count` idle ones adds.
    pub(crate) fn idle(&self, count: usize) -> anyhow::Result<Vec<Figure>> {
        let Some(pids) = self.pids()? else { return Ok(Vec::new()) };
        // What the first connections allocate is not theirs alone.
        load::connections_counted(self.ends(PORT)?, 16, 480)?;
        let before = usage::memory(&pids)?;
        let with = load::idle(self.ends(PORT)?, count, || usage::memory(&pids))??;
        Ok(vec![
            Figure::less("memory, no connection", "MiB", before.resident / f64::from(1 << 20)),
            Figure::less(
                "memory per idle connection",
                "KiB",
                (with.anonymous - before.anonymous) / 1024.0 / count as f64,
            ),
        ])
    }

    /// System calls of the proxy per short connection, with 16 clients. Traced processes are slow: more waits
    /// for them, and one wake-up finds more to do.
    pub(crate) fn system_calls(&self) -> anyhow::Result<(Vec<Figure>, BTreeMap<String, f64>)> {
        let Some(pids) = self.pids()? else { return Ok(Default::default()) };
        let ends = self.ends(PORT)?;
        let mut calls = usage::system_calls(&pids, self.cluster.folder(), || {
            Ok(load::connections_counted(ends, 16, COUNTED)?)
        })?;
        calls.values_mut().for_each(|calls| *calls /= COUNTED as f64);
        let total = calls.values().sum();
        Ok((vec![Figure::less("system calls", "1/connection", total)], calls))
    }

    /// What refusing costs, and what it does to those that are let in.
    pub(crate) fn denied(&self, rate: f64, span: Duration) -> anyhow::Result<Vec<Figure>> {
        if !self.enforces() {
            return Ok(Vec::new());
        }
        let (stranger, to) = (self.cluster.pod("bench/stranger")?, self.at(PORT)?);
        let (alone, _) = load::connections(self.ends(OTHER_PORT)?, 1, span)?;
        let (refused, spent) = self.with_cpu(|| Ok(load::refused(stranger, to, rate, span)?))?;
        let allowed_ends = self.ends(OTHER_PORT)?;
        let (allowed, beside) = std::thread::scope(|scope| {
            let beside = scope.spawn(move || load::refused(stranger, to, rate, span));
            (load::connections(allowed_ends, 1, span), beside.join())
        });
        beside.map_err(|_| anyhow::anyhow!("the refused clients' thread panicked"))??;
        let done = refused.len() as f64 / span.as_secs_f64();
        // The clients may not reach the rate on a busy machine: the cost is scaled to it.
        let cores = spent.unwrap_or_default() / span.as_secs_f64() * rate / done;
        Ok(vec![
            Figure::less("10,000 denied SYN/s, proxy CPU", "cores", cores),
            Figure::less("denied connection, p50", "µs", refused.quantile(0.5)),
            Figure::less("allowed connection, p99", "µs", alone.quantile(0.99)),
            Figure::less("allowed connection beside the denied, p99", "µs", allowed?.0.quantile(0.99)),
        ])
    }

    fn with_cpu<T>(&self, load: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Option<f64>)> {
        let Some(pids) = self.pids()? else { return Ok((load()?, None)) };
        let before = usage::cpu_seconds(&pids)?;
        let outcome = load()?;
        Ok((outcome, Some(usage::cpu_seconds(&pids)? - before)))
    }

    /// Where servers may listen.
    pub(crate) fn ports(&self) -> (u16, u16, u16) {
        (PORT, OTHER_PORT, THIRD_PORT)
    }

    /// The node, where the proxy is.
    pub(crate) fn node(&self) -> anyhow::Result<&Netns> {
        Ok(self.cluster.node("node1")?)
    }

    /// A pod that may not reach the server.
    pub(crate) fn stranger(&self) -> anyhow::Result<&Netns> {
        Ok(self.cluster.pod("bench/stranger")?)
    }

    /// A figure of Sluice's own.
    pub(crate) fn metric(&self, series: &str) -> anyhow::Result<f64> {
        match &self.proxy {
            Proxy::Sluice { running } => Ok(running.metric(series)?),
            _ => bail!("{} has no metrics", self.name),
        }
    }

    /// A client pod, a server pod, and an address of the server.
    pub(crate) fn ends(&self, port: u16) -> anyhow::Result<Ends<'_>> {
        let (client, server) = (self.cluster.pod("bench/client")?, self.cluster.pod("bench/server")?);
        Ok(Ends { client, server, to: server.at(port) })
    }

    fn at(&self, port: u16) -> anyhow::Result<SocketAddr> {
        Ok(self.cluster.pod("bench/server")?.at(port))
    }

    /// The proxy's processes: nothing else lives in the node's namespace.
    pub(crate) fn pids(&self) -> anyhow::Result<Option<Vec<i32>>> {
        match self.proxy {
            Proxy::None => Ok(None),
            _ => Ok(Some(self.cluster.node("node1")?.pids())),
        }
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::builder()
        .nodes(1)
        .pod(PodSpec::new("bench/client").on("node1").label("app", "client"))
        .pod(PodSpec::new("bench/stranger").on("node1").label("app", "stranger"))
        .pod(PodSpec::new("bench/server").on("node1").label("app", "server").port("tcp", PORT))
        .build()?;
    Ok(cluster)
}
