//! Random events: a cluster that followed each of them against one compiled from what is there at last.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use flow::{ClientAddr, Generation, OrigDst, Protocol, Tuple};
use policy_cache::{
    Affected, Cluster, Event, Object, Objects, Options, OwnNodeEgress, Snapshot, compile, parse,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::clusters::{self, Flow};

/// What happens, in numbers that name parts of the objects there are to choose from.
#[derive(Clone, Debug)]
enum Step {
    Put {
        object: usize,
        variant: u8,
    },
    Delete {
        object: usize,
    },
    /// The same again.
    Repeat,
    Options(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any::<usize>(), any::<u8>()).prop_map(|(object, variant)| Step::Put { object, variant }),
        5 => any::<usize>().prop_map(|object| Step::Delete { object }),
        1 => Just(Step::Repeat),
        1 => any::<u8>().prop_map(Step::Options),
    ]
}

/// Everything that can be put: the objects of some clusters, whose names are often equal, and Services.
fn pool(clusters: &[clusters::Cluster]) -> Vec<Value> {
    let mut pool: Vec<Value> = clusters.iter().flat_map(clusters::Cluster::objects).collect();
    for (name, ip, port, node_port) in
        [("s", "10.96.0.1", 80, 30080), ("s", "10.96.0.2", 81, 30080), ("t", "10.96.0.1", 80, 30081)]
    {
        let ports = json!([{"port": port, "nodePort": node_port}]);
        let spec = json!({"clusterIP": ip, "type": "NodePort", "ports": ports});
        let metadata = json!({"name": name, "namespace": "a"});
        pool.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
    }
    let slice = json!({"name": "s-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "s"}});
    pool.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
        "addressType": "IPv4", "endpoints": [], "ports": []}));
    pool
}

/// The object, in one of the ways in which it may have come about.
fn object(pool: &[Value], number: usize, variant: u8) -> Object {
    let mut value = pool[number % pool.len()].clone();
    if value["kind"] == "Pod" {
        // Without a node, only the host's address says where it runs.
        if variant & 1 == 1 {
            value["status"]["hostIP"] = json!(if variant & 2 == 2 { "192.168.0.1" } else { "192.168.0.2" });
        }
        if variant & 4 == 4 {
            let day = 1 + (variant >> 3 & 3);
            value["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{day}T00:00:00Z"));
        }
        if variant & 32 == 32 {
            value["metadata"]["uid"] = json!(format!("uid-{}", variant >> 6));
        }
    }
    let text = value.to_string();
    let objects = parse([(Path::new("object.json"), text.as_str())]);
    let objects = objects.unwrap_or_else(|error| panic!("an invalid object: {error}\n{text}"));
    objects.into_objects().next().unwrap()
}

fn options(bits: u8) -> Options {
    let own = [(4, "10.1.0.9"), (8, "10.1.0.1"), (16, "fd00:f::1")];
    Options {
        node: [None, Some("n1"), Some("n2"), Some("n1")][usize::from(bits & 3)].map(str::to_owned),
        own_addresses: own
            .iter()
            .filter(|(bit, _)| bits & bit != 0)
            .map(|(_, ip)| ip.parse().unwrap())
            .collect(),
        own_node_egress: if bits & 32 == 0 { OwnNodeEgress::Allow } else { OwnNodeEgress::Policy },
    }
}

fn tuple(flow: &Flow) -> Tuple {
    let (source, destination): (IpAddr, IpAddr) =
        (flow.source.parse().unwrap(), flow.destination.parse().unwrap());
    Tuple {
        protocol: flow.protocol.parse().unwrap(),
        client: ClientAddr(SocketAddr::new(source, 40_000)),
        destination: OrigDst(SocketAddr::new(destination, flow.port)),
    }
}

fn check_equal(one: &Snapshot, other: &Snapshot, flows: &[Flow]) -> Result<(), TestCaseError> {
    for flow in flows {
        let tuple = tuple(flow);
        let (a, b) = (one.identify(&tuple), other.identify(&tuple));
        prop_assert_eq!((&a.source, &a.destination), (&b.source, &b.destination), "{:?}", flow);
        let (a, b) = (one.decide(&a), other.decide(&b));
        prop_assert_eq!(a.egress, b.egress, "egress of {:?}", flow);
        prop_assert_eq!(a.ingress, b.ingress, "ingress of {:?}", flow);
    }
    prop_assert_eq!(one.local_pods(), other.local_pods());
    prop_assert_eq!(one.counts(), other.counts());
    prop_assert_eq!(one.own_pod_ranges(), other.own_pod_ranges());
    for (ip, port) in [
        ("10.96.0.1", 80),
        ("10.96.0.1", 81),
        ("10.96.0.2", 81),
        ("192.168.0.1", 30080),
        ("10.1.0.9", 30081),
        ("192.168.0.2", 30081),
    ] {
        let dialed = SocketAddr::new(ip.parse().unwrap(), port);
        prop_assert_eq!(one.service_at(dialed, Protocol::Tcp), other.service_at(dialed, Protocol::Tcp));
        prop_assert_eq!(one.in_cluster(dialed.ip()), other.in_cluster(dialed.ip()));
    }
    Ok(())
}

/// Asking about one address says the same as the whole list does.
fn check_spelled_out(affected: &Affected, flows: &[Flow]) -> Result<(), TestCaseError> {
    let Some(addresses) = affected.addresses() else { return Ok(()) };
    for address in flows.iter().flat_map(|flow| [&flow.source, &flow.destination]) {
        let address: IpAddr = address.parse().unwrap();
        prop_assert_eq!(affected.contains(address), addresses.contains(&flow::canonical_ip(address)));
    }
    Ok(())
}

/// Whoever a change decides about is affected by it.
fn check_affected(new: &Snapshot, old: &Snapshot, flows: &[Flow]) -> Result<(), TestCaseError> {
    let affected = new.affected_since(old);
    for flow in flows {
        let tuple = tuple(flow);
        let (before, after) = (old.decide(&old.identify(&tuple)), new.decide(&new.identify(&tuple)));
        if before.egress != after.egress || before.ingress != after.ingress {
            let ends = [tuple.client.0.ip(), tuple.destination.0.ip()];
            prop_assert!(
                ends.iter().any(|ip| affected.contains(*ip)),
                "{flow:?} went from {before:?} to {after:?}, affected {affected:?}"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_time: 30_000, ..ProptestConfig::default() })]

    #[test]
    fn a_cluster_that_follows_events_decides_as_one_compiled_at_the_end_does(
        clusters in prop::collection::vec(super::cluster(), 3),
        steps in prop::collection::vec(step(), 40),
        flows in clusters::flows(),
        from_nothing in prop::bool::weighted(0.2),
    ) {
        let pool = pool(&clusters);
        let every_flow = clusters::every_flow();
        let mut objects = Objects::default();
        let mut now = options(0);
        let mut cluster = Cluster::new(now.clone());
        let first = if from_nothing { 0 } else { clusters[0].objects().len() };
        for number in 0..first {
            let event = Event::Put(object(&pool, number, 0));
            objects.apply(event.clone());
            cluster.apply(event);
        }
        let begin = objects.clone();
        let mut snapshots = vec![cluster.snapshot()];
        let mut scratch = compile(&objects, &now, Generation(1));
        let mut last = None;
        for (number, step) in steps.iter().enumerate() {
            let event = match step {
                Step::Put { object: place, variant } => Some(Event::Put(object(&pool, *place, *variant))),
                Step::Delete { object: place } => Some(Event::Delete(object(&pool, *place, 0).key())),
                Step::Repeat => last.clone(),
                Step::Options(bits) => {
                    now = options(*bits);
                    cluster.set_options(now.clone());
                    None
                }
            };
            if let Some(event) = &event {
                let changed = objects.apply(event.clone());
                let followed = cluster.apply(event.clone());
                prop_assert!(changed || !followed, "a change out of nothing: {:?}", event);
                if let Step::Repeat = step {
                    prop_assert!(!followed, "the same again changed something: {:?}", event);
                }
            }
            last = event;
            let new = cluster.snapshot();
            let fresh = compile(&objects, &now, new.generation());
            let thorough = number % 4 == 3;
            let flows = if thorough { &every_flow } else { &flows };
            check_equal(&new, &fresh, flows)?;
            let before = &snapshots[snapshots.len() - 1];
            prop_assert_eq!(new.generation().0, before.generation().0 + 1);
            // What is shared in memory must not make a difference.
            let affected = [new.affected_since(before), fresh.affected_since(&scratch)];
            prop_assert_eq!(affected[0].addresses(), affected[1].addresses());
            check_spelled_out(&affected[0], flows)?;
            check_affected(&new, before, flows)?;
            check_affected(&new, &snapshots[number / 2], flows)?;
            snapshots.push(new);
            scratch = fresh;
        }
        // Nothing of it is left behind when everything goes.
        let keys: BTreeSet<_> = objects.clone().into_objects().map(|object| object.key()).collect();
        for key in keys {
            objects.apply(Event::Delete(key.clone()));
            prop_assert!(cluster.apply(Event::Delete(key)));
        }
        check_equal(&cluster.snapshot(), &compile(&objects, &now, Generation(1)), &every_flow)?;
        // Older snapshots stay as they were.
        let again = compile(&begin, &options(0), Generation(1));
        check_equal(&snapshots[0], &again, &every_flow)?;
    }
}
