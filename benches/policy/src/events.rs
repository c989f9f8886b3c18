//! Events of every kind, one at a time, in a cluster that stays as large as it is.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use policy_bench::Cluster as Generated;
use policy_cache::{Affected, Cluster, Event, Object, SnapshotStore, parse};
use serde_json::{Value, json};

use crate::clock::Times;

/// Events of each kind.
const EVENTS: usize = 1_000;

/// Live connections of a node.
const CONNECTIONS: usize = 4_000;

/// What one kind of event costs.
#[derive(Debug)]
pub(crate) struct Cost {
    pub(crate) kind: &'static str,
    /// From the event to the publication of a snapshot that knows of it.
    pub(crate) visible: Times,
    /// Which ends of a node's live connections that concerns.
    pub(crate) affected: Times,
}

/// The objects of one namespace, or of the cluster.
struct Parts {
    pods: Vec<Value>,
    namespaces: Vec<Value>,
    policies: Vec<Value>,
}

impl Parts {
    fn of(text: &str) -> anyhow::Result<Self> {
        let mut parts = Self { pods: Vec::new(), namespaces: Vec::new(), policies: Vec::new() };
        for line in text.lines() {
            let object: Value = serde_json::from_str(line)?;
            match object["kind"].as_str() {
                Some("Pod") if object["status"]["phase"] == "Running" => parts.pods.push(object),
                Some("Namespace") => parts.namespaces.push(object),
                Some(kind) if kind.ends_with("NetworkPolicy") => parts.policies.push(object),
                _ => {}
            }
        }
        parts.pods.retain(|pod| pod["spec"]["hostNetwork"] != true);
        Ok(parts)
    }
}

/// Applies a change and then its opposite, both measured when they have a name.
struct Measure<'c> {
    cluster: &'c mut Cluster,
    store: SnapshotStore,
    costs: Vec<Cost>,
    /// The addresses at the ends of one node's connections.
    live: HashSet<IpAddr>,
}

impl Measure<'_> {
    fn event(&mut self, kind: &'static str, event: Event) -> anyhow::Result<()> {
        let place = match self.costs.iter().position(|cost| cost.kind == kind) {
            Some(place) => place,
            None => {
                self.costs.push(Cost { kind, visible: Times::new(), affected: Times::new() });
                self.costs.len() - 1
            }
        };
        let before = self.store.current().context("no snapshot")?;
        let (cluster, store) = (&mut *self.cluster, &self.store);
        let changed = self.costs[place].visible.measure_running(|| {
            let changed = cluster.apply(event);
            store.publish(cluster.snapshot());
            changed
        });
        anyhow::ensure!(changed, "{kind}: an event changed nothing");
        let now = self.store.current().context("no snapshot")?;
        let live = &self.live;
        self.costs[place].affected.measure_running(|| match now.affected_since(&before) {
            Affected::All => live.len(),
            Affected::Addresses(addresses) => addresses.iter().filter(|ip| live.contains(*ip)).count(),
            Affected::Where(difference) => live.iter().filter(|ip| difference.contains(**ip)).count(),
        });
        Ok(())
    }
}

/// Measures every kind of event.
pub(crate) fn all(generated: &Generated, cluster: &mut Cluster) -> anyhow::Result<Vec<Cost>> {
    let store = SnapshotStore::new();
    store.publish(cluster.snapshot());
    let flows = generated.flows_of_node(0, CONNECTIONS, 9);
    let live = flows.iter().flat_map(|flow| [flow.source, flow.destination.ip()]).collect();
    let mut measure = Measure { cluster, store, costs: Vec::new(), live };
    let tiers = Parts::of(&generated.tiers_text())?;
    for round in 0..EVENTS {
        let parts = Parts::of(&generated.namespace_text(round * 7919 % generated.namespaces()))?;
        pods(&mut measure, &parts, round)?;
        objects(&mut measure, &parts, &tiers, round)?;
    }
    Ok(measure.costs)
}

fn pods(measure: &mut Measure<'_>, parts: &Parts, round: usize) -> anyhow::Result<()> {
    let (Some(pod), Some(other)) = (parts.pods.get(round % parts.pods.len().max(1)), parts.pods.first())
    else {
        return Ok(());
    };
    let labelled = |labels: &Value| {
        let mut pod = pod.clone();
        pod["metadata"]["labels"].clone_from(labels);
        pod
    };
    if other["metadata"]["labels"] != pod["metadata"]["labels"] {
        measure.event("pod relabelled", put(&labelled(&other["metadata"]["labels"]))?)?;
        measure.event("pod relabelled", put(pod)?)?;
    }
    let mut labels = pod["metadata"]["labels"].clone();
    labels["build"] = json!(format!("b-{round}"));
    measure.event("pod with a new identity", put(&labelled(&labels))?)?;
    measure.event("pod relabelled", put(pod)?)?;
    measure.event("pod deleted", delete(pod)?)?;
    measure.event("pod added", put(pod)?)
}

fn objects(measure: &mut Measure<'_>, parts: &Parts, tiers: &Parts, round: usize) -> anyhow::Result<()> {
    if let Some(namespace) = parts.namespaces.first() {
        let mut other = namespace.clone();
        other["metadata"]["labels"]["team"] = json!(format!("team-{}", round % 50 + 1));
        other["metadata"]["labels"]["round"] = json!(round.to_string());
        measure.event("namespace relabelled", put(&other)?)?;
        measure.event("namespace relabelled", put(namespace)?)?;
    }
    if let Some(policy) = parts.policies.first() {
        let mut other = policy.clone();
        other["spec"]["policyTypes"] = json!(["Ingress"]);
        other["spec"]["ingress"] = json!([{"ports": [{"port": 1 + round}], "from": [{"podSelector": {}}]}]);
        measure.event("policy changed", put(&other)?)?;
        measure.event("policy changed", put(policy)?)?;
        measure.event("policy removed", delete(policy)?)?;
        measure.event("policy added", put(policy)?)?;
    }
    if let Some(policy) = tiers.policies.get(round % tiers.policies.len().max(1)) {
        let mut other = policy.clone();
        let rule = ["ingress", "egress"].into_iter().find(|way| other["spec"][way].is_array());
        other["spec"][rule.unwrap_or("ingress")][0]["name"] = json!(format!("round-{round}"));
        measure.event("tier policy changed", put(&other)?)?;
        measure.event("tier policy changed", put(policy)?)?;
        measure.event("tier policy removed", delete(policy)?)?;
        measure.event("tier policy added", put(policy)?)?;
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "another", "labels": {"a": "b"}},
        "spec": {"podCIDRs": ["10.255.255.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.31.255.254"}]}});
    measure.event("node added", put(&node)?)?;
    measure.event("node removed", delete(&node)?)
}

/// The object of a manifest.
fn object(manifest: &Value) -> anyhow::Result<Object> {
    let text = manifest.to_string();
    let objects = parse([(Path::new("event.json"), text.as_str())])?;
    objects.into_objects().next().context("no object")
}

fn put(manifest: &Value) -> anyhow::Result<Event> {
    Ok(Event::Put(object(manifest)?))
}

fn delete(manifest: &Value) -> anyhow::Result<Event> {
    Ok(Event::Delete(object(manifest)?.key()))
}
