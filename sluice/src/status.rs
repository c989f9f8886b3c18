//! What a running agent is doing, as one value: `GET /status` writes it, `sluice status` reads it.
//!
//! One struct for each part of the agent. Field names are stable: fields are added, and none is renamed or given
//! another meaning. A reader takes what it does not find as the default, and passes over what it does not know, so
//! that agent and command may be of different versions. Nothing here changes anything, and a part that has not
//! started yet is simply not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use audit::{DeniedSide, Label, Metrics, PerLabel, Recorder};
use flow::EndCause;
use policy_cache::{ApiStatus, Counts, Interception, Problem, Snapshot, SnapshotStore, SourceStatus};
use redirect::{FailMode, GateBackend, Health, IptablesVariant};
use serde::{Deserialize, Serialize};

use crate::admin::Conditions;

/// The whole answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    /// The name of the node.
    pub(crate) node: String,
    /// As `/readyz` says: every condition holds and every thread runs.
    pub(crate) ready: bool,
    /// Each condition of readiness, by name, and each thread that ended.
    pub(crate) conditions: Vec<Condition>,
    /// How connections are intercepted; absent until that is decided.
    pub(crate) enforcement: Option<Enforcement>,
    /// The policy in force; absent until there is one.
    pub(crate) snapshot: Option<Policy>,
    /// Where the policy comes from; absent until it is opened.
    pub(crate) source: Option<Source>,
    /// How many objects the policy was made of, by kind.
    pub(crate) objects: BTreeMap<String, u64>,
    /// The pods of this node.
    pub(crate) pods: Pods,
    /// What became of connections since the start.
    pub(crate) connections: Connections,
    /// What became of records since the start.
    pub(crate) records: Records,
    /// The process itself.
    pub(crate) process: Process,
    /// What it runs on.
    pub(crate) versions: Versions,
}

/// One thing that must hold for the node to count as enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    /// Its name.
    pub(crate) name: String,
    /// Whether it holds.
    pub(crate) holds: bool,
    /// Why not, one line; absent while it holds.
    pub(crate) reason: Option<String>,
}

/// How connections are intercepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Enforcement {
    /// The part of the kernel that holds first packets: `nft` or `iptables`.
    pub(crate) backend: String,
    /// Whether IPv6 is intercepted too.
    pub(crate) ipv6: bool,
    /// Whose connections, besides those of isolated pods: `all`, `isolated` (nobody else's) or `namespaceSelector`.
    pub(crate) interception: String,
    /// What becomes of new connections without a proxy: `isolation`, `closed` or `open`.
    pub(crate) fail_mode: String,
    /// Whether the rules are in the kernel.
    pub(crate) rules_installed: bool,
    /// How many things were put back after somebody else changed them.
    pub(crate) repairs: u64,
}

/// The policy in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Policy {
    /// Its number; records carry it.
    pub(crate) generation: u64,
    /// Seconds since the source was last known to agree with it.
    pub(crate) age_s: f64,
}

/// Where the policy comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Source {
    /// `manifests`, or what else there will be.
    pub(crate) kind: String,
    /// Files and folders, or the server.
    pub(crate) places: Vec<String>,
    /// Whether anybody still looks at it.
    pub(crate) alive: bool,
    /// Seconds since it cannot be used; absent while it can. The last good policy stays in force meanwhile.
    pub(crate) failing_for_s: Option<f64>,
    /// What a person should know of it although it can be used, one line: which kinds have not been heard of, for how
    /// long and why.
    pub(crate) remark: Option<String>,
    /// Objects that were refused, each problem.
    pub(crate) rejected: Vec<Rejected>,
}

/// One problem of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rejected {
    /// `Kind/namespace/name`; empty where the object could not be told.
    pub(crate) object: String,
    /// What is wrong and where, one line.
    pub(crate) problem: String,
}

/// The pods of this node that have an address of their own and run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pods {
    /// Those to which some policy may deny something.
    pub(crate) isolated: u64,
    /// The others: all they do is recorded.
    pub(crate) observed: u64,
}

/// What became of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Connections {
    /// Established now.
    pub(crate) live: u64,
    /// Held at the gate now.
    pub(crate) pending: u64,
    /// Established since the start.
    pub(crate) opened: u64,
    /// Refused by policy since the start.
    pub(crate) denied: u64,
    /// Allowed and not established since the start.
    pub(crate) failed: u64,
    /// Ended because the policy changed.
    pub(crate) revoked: u64,
}

/// What became of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Records {
    /// Written since the start.
    pub(crate) written: u64,
    /// Lost since the start.
    pub(crate) lost: u64,
    /// Waiting to be written.
    pub(crate) queued: u64,
    /// How many may wait.
    pub(crate) queue_limit: u64,
}

/// The process itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    /// Its id on the node.
    pub(crate) pid: u32,
    /// Seconds since it started.
    pub(crate) uptime_s: f64,
    /// File descriptors it has open.
    pub(crate) descriptors_open: u64,
    /// File descriptors it may open.
    pub(crate) descriptors_limit: u64,
}

/// What the process is and runs on; empty where it cannot be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Versions {
    /// Of this program.
    pub(crate) sluice: String,
    /// Of the kernel.
    pub(crate) kernel: String,
    /// Of nft.
    pub(crate) nft: String,
}

/// Where the parts of an agent leave what the status is made of. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    node: Arc<str>,
    started: Instant,
    started_at: SystemTime,
    conditions: Conditions,
    metrics: Metrics,
    parts: Arc<Mutex<Parts>>,
}

#[derive(Debug, Default)]
struct Parts {
    enforcement: Option<Enforcement>,
    policy: Option<SnapshotStore>,
    source: Option<Source>,
    recorder: Option<Recorder>,
    nft: String,
}

impl Board {
    /// A board of the agent on `node` to which no part has reported yet.
    pub(crate) fn new(node: &str, conditions: Conditions, metrics: Metrics) -> Self {
        Self {
            node: node.into(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            conditions,
            metrics,
            parts: Arc::default(),
        }
    }

    /// When the agent started, in seconds since 1970.
    pub(crate) fn started_at(&self) -> f64 {
        self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// Tells what decides.
    pub(crate) fn set_policy(&self, policy: SnapshotStore) {
        self.lock().policy = Some(policy);
    }

    /// Tells where the policy comes from.
    pub(crate) fn set_source(&self, source: Source) {
        self.lock().source = Some(source);
    }

    /// Tells how connections are intercepted, and the version of nft.
    pub(crate) fn set_enforcement(&self, enforcement: Enforcement, nft: Option<&str>) {
        let mut parts = self.lock();
        parts.enforcement = Some(enforcement);
        parts.nft = nft.unwrap_or_default().to_owned();
    }

    /// Tells what the guard of the rules saw.
    pub(crate) fn set_rules(&self, health: &Health) {
        if let Some(enforcement) = &mut self.lock().enforcement {
            enforcement.rules_installed = health.installed;
            enforcement.repairs = health.repairs;
        }
    }

    /// Tells where records go.
    pub(crate) fn set_recorder(&self, recorder: Recorder) {
        self.lock().recorder = Some(recorder);
    }

    /// Where records go; `None` before the start.
    pub(crate) fn recorder(&self) -> Option<Recorder> {
        self.lock().recorder.clone()
    }

    /// The status now.
    pub(crate) fn status(&self) -> Status {
        let parts = self.lock();
        let snapshot = parts.policy.as_ref().and_then(SnapshotStore::current);
        let conditions = self.conditions.list();
        Status {
            node: self.node.to_string(),
            ready: conditions.iter().all(|condition| condition.holds),
            conditions,
            enforcement: parts.enforcement.clone(),
            snapshot: snapshot.as_ref().map(|snapshot| Policy {
                generation: snapshot.generation().0,
                age_s: self.metrics.snapshot_age.seconds(),
            }),
            source: parts.source.clone(),
            objects: snapshot.as_ref().map(|snapshot| objects(snapshot.counts())).unwrap_or_default(),
            pods: snapshot.as_ref().map(|snapshot| pods(snapshot)).unwrap_or_default(),
            connections: connections(&self.metrics),
            records: self.records(parts.recorder.as_ref()),
            process: self.process(),
            versions: Versions {
                sluice: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: kernel(),
                nft: parts.nft.clone(),
            },
        }
    }

    fn records(&self, recorder: Option<&Recorder>) -> Records {
        let (queued, queue_limit) =
            recorder.map_or((0, 0), |recorder| (recorder.waiting(), recorder.limit()));
        Records {
            written: self.metrics.records_written.get(),
            lost: self.metrics.records_lost.get(),
            queued: queued as u64,
            queue_limit: queue_limit as u64,
        }
    }

    fn process(&self) -> Process {
        Process {
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            descriptors_open: count(self.metrics.descriptors_open.get()),
            descriptors_limit: count(self.metrics.descriptors_limit.get()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// Manifests under `places`, and how their watch goes.
    pub(crate) fn manifests(places: Vec<String>, status: &SourceStatus) -> Self {
        let failing_for = status.failing_since.map(|since| {
            // A clock that was set back makes it a failure of this moment.
            SystemTime::now().duration_since(since).unwrap_or_default().as_secs_f64()
        });
        Self {
            kind: "manifests".to_owned(),
            places,
            alive: status.alive,
            failing_for_s: failing_for,
            remark: None,
            rejected: status.problems.iter().map(Rejected::from).collect(),
        }
    }
}

impl Source {
    /// The API server that `place` leads to, and how it is followed.
    pub(crate) fn api(place: String, status: &ApiStatus, remark: Option<String>) -> Self {
        let failing = status.kinds.iter().filter(|kind| kind.error.is_some());
        let failing_for = failing.filter_map(|kind| kind.age).max();
        let rejected = status.rejected.iter().flat_map(|(key, problems)| {
            problems.iter().map(move |problem| Rejected { object: key.to_string(), problem: problem.clone() })
        });
        Self {
            kind: "api".to_owned(),
            places: vec![place],
            alive: status.alive,
            failing_for_s: failing_for.map(|age| age.as_secs_f64()),
            remark,
            rejected: rejected.collect(),
        }
    }
}

impl From<&Problem> for Rejected {
    fn from(problem: &Problem) -> Self {
        Self { object: problem.object.clone(), problem: problem.to_string() }
    }
}

impl Enforcement {
    /// As chosen at the start, with the rules in place.
    pub(crate) fn chosen(
        backend: GateBackend,
        ipv6: bool,
        fail_mode: FailMode,
        interception: &Interception,
    ) -> Self {
        let interception = match interception {
            Interception::All => "all",
            Interception::Isolated => "isolated",
            Interception::NamespaceSelector(_) => "namespaceSelector",
        };
        let backend = match backend {
            GateBackend::NftQueue => "nft",
            GateBackend::IptablesNfqueue => "nft-nfqueue",
            GateBackend::Iptables(IptablesVariant::Nft) => "iptables-nft",
            GateBackend::Iptables(IptablesVariant::Legacy) => "iptables-legacy",
        };
        let fail_mode = match fail_mode {
            FailMode::Isolation => "isolation",
            FailMode::Closed => "closed",
            FailMode::Open => "open",
        };
        Self {
            backend: backend.to_owned(),
            ipv6,
            interception: interception.to_owned(),
            fail_mode: fail_mode.to_owned(),
            rules_installed: false,
            repairs: 0,
        }
    }
}

/// By Kubernetes' own names of the kinds. Objects that were passed over decide nothing and are left out.
fn objects(counts: &Counts) -> BTreeMap<String, u64> {
    [
        ("Pod", counts.pods),
        ("Namespace", counts.namespaces),
        ("Node", counts.nodes),
        ("Service", counts.services),
        ("EndpointSlice", counts.endpoint_slices),
        ("NetworkPolicy", counts.network_policies),
        ("ClusterNetworkPolicy", counts.cluster_network_policies),
        ("AdminNetworkPolicy", counts.admin_network_policies),
        ("BaselineAdminNetworkPolicy", counts.baseline_admin_network_policies),
    ]
    .into_iter()
    .map(|(kind, count)| (kind.to_owned(), count as u64))
    .collect()
}

/// Pods, not addresses: a dual-stack pod has several.
fn pods(snapshot: &Snapshot) -> Pods {
    let local = snapshot.local_pods();
    let distinct = |addresses: BTreeSet<std::net::IpAddr>| {
        let names: BTreeSet<_> = addresses
            .into_iter()
            .filter_map(|address| {
                snapshot.endpoint(address).pod().map(|pod| (pod.namespace.clone(), pod.name.clone()))
            })
            .collect();
        names.len() as u64
    };
    Pods { isolated: distinct(local.isolated), observed: distinct(local.observed) }
}

fn connections(metrics: &Metrics) -> Connections {
    Connections {
        live: count(metrics.connections_live.get()),
        pending: count(metrics.gate_pending.get()),
        opened: metrics.connections_opened.get(),
        denied: total::<DeniedSide>(&metrics.connections_denied),
        failed: total::<EndCause>(&metrics.connections_failed),
        revoked: metrics.policy_revocations.get(),
    }
}

fn total<L: Label>(counters: &PerLabel<L>) -> u64 {
    L::ALL.iter().map(|value| counters.of(*value).get()).sum()
}

/// A gauge that is caught between two changes may be below 0.
fn count(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or_default()
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
