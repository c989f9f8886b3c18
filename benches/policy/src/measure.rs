//! One cluster → its figures.

use std::fmt;
use std::fmt::Write as _;
use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use flow::{ClientAddr, Generation, OrigDst, Protocol, Tuple};
use policy_bench::Cluster;
use policy_cache::{Event, Objects, Options, Prober, Snapshot, answer_stream, compile, parse};

use crate::clock::Times;
use crate::{events, memory};

const FLOWS: usize = 400_000;
const PROBES: usize = 1_000_000;

/// A figure's name, unit and target.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) target: Option<Target>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

const DECIDE_P50: &str = "decide, a node's flows, p50";
const DECIDE_P99: &str = "decide, a node's flows, p99";
const BOTH_P50: &str = "identify and decide, a node's flows, p50";
const BOTH_P99: &str = "identify and decide, a node's flows, p99";
const ANY_DECIDE_P50: &str = "decide, any two pods, p50";
const ANY_DECIDE_P99: &str = "decide, any two pods, p99";
const ANY_BOTH_P50: &str = "identify and decide, any two pods, p50";
const ANY_BOTH_P99: &str = "identify and decide, any two pods, p99";
const READ: &str = "manifests read";
const BUILD: &str = "full build";
const OBJECTS: &str = "objects, resident";
const CACHE: &str = "cache, resident";
const EVENT_P50: &str = "event to visible, p50 of the slowest kind";
const EVENT_P99: &str = "event to visible, p99 of the slowest kind";
const AFFECTED_P99: &str = "who is affected, p99 of the slowest kind";
const LOCAL: &str = "a node's own pods, p50";
const PROBE_RATE: &str = "verdict";
const PROBE_RATE_ALONE: &str = "verdict, one thread";

/// What is printed, in order.
pub(crate) const ROWS: &[Row] = &[
    row(DECIDE_P50, "ns", Some(Target::AtMost(150.0))),
    row(DECIDE_P99, "ns", None),
    row(BOTH_P50, "ns", None),
    row(BOTH_P99, "ns", None),
    row(ANY_DECIDE_P50, "ns", None),
    row(ANY_DECIDE_P99, "ns", None),
    row(ANY_BOTH_P50, "ns", None),
    row(ANY_BOTH_P99, "ns", None),
    row(BUILD, "s", Some(Target::AtMost(3.0))),
    row(CACHE, "MiB", Some(Target::AtMost(64.0))),
    row(EVENT_P50, "ms", None),
    row(EVENT_P99, "ms", Some(Target::AtMost(5.0))),
    row(AFFECTED_P99, "ms", None),
    row(LOCAL, "µs", None),
    row(PROBE_RATE, "probes/s", Some(Target::AtLeast(500_000.0))),
    row(PROBE_RATE_ALONE, "probes/s", None),
    row(READ, "s", None),
    row(OBJECTS, "MiB", None),
];

const fn row(name: &'static str, unit: &'static str, target: Option<Target>) -> Row {
    Row { name, unit, target }
}

/// One measured value.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
}

/// Measures everything in one cluster.
pub(crate) fn all(cluster: &Cluster) -> anyhow::Result<Vec<Figure>> {
    let options = Options { node: Some("node-00000".to_owned()), ..Options::default() };
    let mut figures = Vec::new();
    let mut note = |name, value| figures.push(Figure { name, value });

    let mut followed = follow(cluster, &options, &mut note)?;
    let texts: Vec<(PathBuf, String)> = cluster.texts().collect();
    let before = memory::resident_mib()?;
    let started = Instant::now();
    let objects = parse(texts.iter().map(|(path, text)| (path.as_path(), text.as_str())))?;
    note(READ, started.elapsed().as_secs_f64());
    note(OBJECTS, memory::resident_mib()? - before);
    let mut build = Times::new();
    let snapshot = build.measure_running(|| compile(&objects, &options, Generation(1)));
    note(BUILD, build.quantile(0.5) / 1e9);
    drop(texts);

    decisions(cluster, &snapshot, &mut note);
    events(cluster, &mut followed, &mut note)?;
    verdicts(cluster, &objects, Arc::new(snapshot), &mut note)?;
    Ok(figures)
}

/// Flows as one node sees them, and flows between any two pods, which a process that decides for the whole
/// cluster would see: there hardly anything that is read has been read lately.
fn decisions(cluster: &Cluster, snapshot: &Snapshot, note: &mut impl FnMut(&'static str, f64)) {
    let [decide, both] = timed(snapshot, &cluster.flows_of_node(0, FLOWS, 7));
    note(DECIDE_P50, decide.quantile(0.5));
    note(DECIDE_P99, decide.quantile(0.99));
    note(BOTH_P50, both.quantile(0.5));
    note(BOTH_P99, both.quantile(0.99));
    let [decide, both] = timed(snapshot, &cluster.flows(FLOWS, 7));
    note(ANY_DECIDE_P50, decide.quantile(0.5));
    note(ANY_DECIDE_P99, decide.quantile(0.99));
    note(ANY_BOTH_P50, both.quantile(0.5));
    note(ANY_BOTH_P99, both.quantile(0.99));
}

/// The times of `decide` alone and of both steps. Half of the flows each, so that neither finds in the
/// processor's caches what the other has just read.
fn timed(snapshot: &Snapshot, flows: &[policy_bench::Flow]) -> [Times; 2] {
    let (alone, together) = flows.split_at(flows.len() / 2);
    let (mut decide, mut both) = (Times::new(), Times::new());
    for tuple in alone.iter().map(tuple) {
        let flow = snapshot.identify(&tuple);
        decide.measure(|| snapshot.decide(&flow));
    }
    for tuple in together.iter().map(tuple) {
        both.measure(|| snapshot.decide(&snapshot.identify(&tuple)));
    }
    [decide, both]
}

/// A cluster that was told of its objects one after the other, as an agent is, and what it holds in memory: what
/// it goes on with and a snapshot.
fn follow(
    cluster: &Cluster,
    options: &Options,
    note: &mut impl FnMut(&'static str, f64),
) -> anyhow::Result<policy_cache::Cluster> {
    let before = memory::resident_mib()?;
    let mut followed = policy_cache::Cluster::new(options.clone());
    for (path, text) in cluster.texts() {
        for object in parse([(path.as_path(), text.as_str())])?.into_objects() {
            followed.apply(Event::Put(object));
        }
    }
    let snapshot = followed.snapshot();
    note(CACHE, memory::resident_mib()? - before);
    let mut times = Times::new();
    for _ in 0..1_000 {
        times.measure(|| snapshot.local_pods());
    }
    note(LOCAL, times.quantile(0.5) / 1e3);
    Ok(followed)
}

/// From an event to decisions that know of it, and to who is affected, for the kind that takes longest. Each
/// kind's figures go to standard error.
fn events(
    cluster: &Cluster,
    followed: &mut policy_cache::Cluster,
    note: &mut impl FnMut(&'static str, f64),
) -> anyhow::Result<()> {
    let costs = events::all(cluster, followed)?;
    let micros = |times: &Times, share| times.quantile(share) / 1e3;
    for events::Cost { kind, visible, affected } in &costs {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| micros(visible, share));
        let (who, who99) = (micros(affected, 0.5), micros(affected, 0.99));
        eprintln!("| {kind} | {p50:.0} | {p99:.0} | {max:.0} | {who:.0} | {who99:.0} |");
    }
    let slowest = |times: &dyn Fn(&events::Cost) -> f64| costs.iter().map(times).fold(0.0, f64::max) / 1e6;
    note(EVENT_P50, slowest(&|cost| cost.visible.quantile(0.5)));
    note(EVENT_P99, slowest(&|cost| cost.visible.quantile(0.99)));
    note(AFFECTED_P99, slowest(&|cost| cost.affected.quantile(0.99)));
    Ok(())
}

/// What `sluice verdict` does with its input, on as many threads as it uses, and on one.
fn verdicts(
    cluster: &Cluster,
    objects: &Objects,
    snapshot: Arc<Snapshot>,
    note: &mut impl FnMut(&'static str, f64),
) -> anyhow::Result<()> {
    let input = probes(cluster).into_bytes();
    let prober = Arc::new(Prober::new(objects, snapshot));
    let threads = std::thread::available_parallelism()?;
    for (name, threads) in [(PROBE_RATE, threads), (PROBE_RATE_ALONE, NonZeroUsize::MIN)] {
        let input = Cursor::new(input.clone());
        let started = Instant::now();
        let tally = answer_stream(&prober, input, std::io::sink(), threads)?;
        anyhow::ensure!(tally.failed == 0, "a probe of the cluster could not be decided");
        note(name, PROBES as f64 / started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Probes by name and by address, a line each.
pub(crate) fn probes(cluster: &Cluster) -> String {
    let names: Vec<String> = cluster.pod_names().collect();
    let mut input = String::new();
    for (number, flow) in cluster.flows(PROBES, 8).iter().enumerate() {
        let port = flow.destination.port();
        let name = &names[number * 7919 % names.len()];
        let (source, destination) = (flow.source, flow.destination.ip());
        let _ = match number % 2 {
            0 => writeln!(
                input,
                r#"{{"id":{number},"src":{{"pod":"{name}"}},"dst":{{"ip":"{destination}"}},"port":{port},"protocol":"TCP"}}"#
            ),
            _ => writeln!(
                input,
                r#"{{"id":"p-{number}","src":{{"ip":"{source}"}},"dst":{{"pod":"{name}"}},"port":{port}}}"#
            ),
        };
    }
    input
}

fn tuple(flow: &policy_bench::Flow) -> Tuple {
    Tuple {
        protocol: Protocol::Tcp,
        client: ClientAddr((flow.source, 40_000).into()),
        destination: OrigDst(flow.destination),
    }
}
