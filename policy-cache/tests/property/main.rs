//! Random small clusters: the engine against a naive evaluator, and one snapshot against the next.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

mod clusters;
mod events;
mod naive;
mod naive_tiers;
mod tiers;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use flow::{ClientAddr, Decision, Generation, OrigDst, SideVerdict, Tuple};
use policy_cache::{Affected, Options, OwnNodeEgress, Snapshot, compile, parse};
use proptest::prelude::*;
use serde_json::Value;

use clusters::{Cluster, Flow, Surroundings};

fn snapshot(cluster: &Cluster, surroundings: &Surroundings, generation: u64) -> Snapshot {
    let text = serde_json::to_string(&cluster.list()).unwrap();
    let mut objects = parse([(Path::new("cluster.json"), text.as_str())])
        .unwrap_or_else(|error| panic!("the generator made an invalid cluster: {error}\n{text}"));
    for (name, addresses) in tiers::NAMES {
        objects.resolve(name, addresses.iter().map(|ip| ip.parse().unwrap()));
    }
    let options = Options {
        node: surroundings.node.clone(),
        own_addresses: surroundings.own_addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        own_node_egress: if surroundings.policy_for_own_node {
            OwnNodeEgress::Policy
        } else {
            OwnNodeEgress::Allow
        },
    };
    compile(&objects, &options, Generation(generation))
}

/// A cluster with policies of every tier.
fn cluster() -> impl Strategy<Value = Cluster> {
    (clusters::cluster(), tiers::policies()).prop_map(|(cluster, tiers)| Cluster { tiers, ..cluster })
}

fn decide(snapshot: &Snapshot, flow: &Flow) -> Decision {
    let source: IpAddr = flow.source.parse().unwrap();
    let destination: IpAddr = flow.destination.parse().unwrap();
    let tuple = Tuple {
        protocol: flow.protocol.parse().unwrap(),
        client: ClientAddr(SocketAddr::new(source, 40_000)),
        destination: OrigDst(SocketAddr::new(destination, flow.port)),
    };
    snapshot.decide(&snapshot.identify(&tuple))
}

fn printed(side: &SideVerdict) -> naive::Side {
    naive::Side {
        allow: side.verdict.is_allow(),
        tier: side.tier.map(|tier| tier.as_str().to_owned()).unwrap_or_default(),
        reason: side.reason.as_str().to_owned(),
        policies: side.policies().iter().map(ToString::to_string).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2500, max_shrink_time: 15_000, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_decides_as_a_naive_evaluator_does(
        cluster in cluster(),
        surroundings in clusters::surroundings(),
        flows in clusters::flows(),
    ) {
        let snapshot = snapshot(&cluster, &surroundings, 1);
        for flow in &flows {
            let decision = decide(&snapshot, flow);
            let (egress, ingress) = naive::decide(&cluster.objects(), &surroundings, flow);
            prop_assert_eq!(printed(&decision.egress), egress, "egress of {:?}", flow);
            prop_assert_eq!(printed(&decision.ingress), ingress, "ingress of {:?}", flow);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_time: 15_000, ..ProptestConfig::default() })]

    #[test]
    fn a_flow_that_two_snapshots_decide_differently_has_an_affected_end(
        cluster in cluster(),
        change in cluster(),
        picks in prop::collection::vec((0_usize..8, 0_usize..4), 1..3),
        surroundings in clusters::surroundings(),
    ) {
        let changed = cluster.changed_by(&change, &picks);
        let (old, new) = (snapshot(&cluster, &surroundings, 1), snapshot(&changed, &surroundings, 2));
        let affected = new.affected_since(&old);
        for flow in &clusters::every_flow() {
            let (before, after) = (decide(&old, flow), decide(&new, flow));
            if before.egress != after.egress || before.ingress != after.ingress {
                let ends = [&flow.source, &flow.destination];
                prop_assert!(
                    ends.iter().any(|ip| affected.contains(ip.parse().unwrap())),
                    "{flow:?} went from {before:?} to {after:?}, affected {affected:?}"
                );
            }
        }
    }

    #[test]
    fn an_unchanged_cluster_affects_nobody(
        cluster in cluster(),
        surroundings in clusters::surroundings(),
    ) {
        let (old, new) = (snapshot(&cluster, &surroundings, 1), snapshot(&cluster, &surroundings, 2));
        prop_assert!(matches!(new.affected_since(&old), Affected::Addresses(none) if none.is_empty()));
    }
}

/// A change of one pod, policy or namespace affects those it touches and nobody else.
#[test]
fn a_change_affects_exactly_those_it_touches() {
    let pod = |name: &str, namespace: &str, ip: &str, labels: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"{namespace}","labels":{labels}}},
               "spec":{{"nodeName":"n"}},"status":{{"phase":"Running","podIP":"{ip}"}}}}"#
        )
    };
    let policy = |port: u16| {
        format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"p","namespace":"a"}},
               "spec":{{"podSelector":{{"matchLabels":{{"app":"x"}}}},"ingress":[{{"ports":[{{"port":{port}}}]}}]}}}}"#
        )
    };
    let namespace = |team: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"b","labels":{{"team":"{team}"}}}}}}"#
        )
    };
    let base = || {
        vec![
            pod("one", "a", "10.0.0.1", r#"{"app":"x"}"#),
            pod("two", "a", "10.0.0.2", r#"{"app":"y"}"#),
            pod("three", "b", "10.0.0.3", r#"{"app":"x"}"#),
            policy(80),
            namespace("t"),
        ]
    };
    let compiled = |objects: Vec<String>| {
        let text = objects.join("\n");
        compile(&parse([(Path::new("c.json"), text.as_str())]).unwrap(), &Options::default(), Generation(1))
    };
    let old = compiled(base());
    let replaced = |index: usize, with: Option<String>| {
        let mut objects = base();
        objects.splice(index..=index, with);
        let affected = compiled(objects).affected_since(&old);
        let mut list: Vec<String> =
            affected.addresses().expect("everybody").iter().map(ToString::to_string).collect();
        list.sort();
        list
    };
    assert_eq!(replaced(1, Some(pod("two", "a", "10.0.0.2", r#"{"app":"z"}"#))), ["10.0.0.2"]);
    assert_eq!(replaced(1, Some(pod("two", "a", "10.0.0.9", r#"{"app":"y"}"#))), ["10.0.0.2", "10.0.0.9"]);
    assert_eq!(replaced(1, None), ["10.0.0.2"]);
    let one = || pod("one", "a", "10.0.0.1", r#"{"app":"x"}"#);
    let port = r#"{"containers":[{"ports":[{"name":"http","containerPort":80}]}],"nodeName":"n"}"#;
    assert_eq!(replaced(0, Some(one().replace(r#"{"nodeName":"n"}"#, port))), ["10.0.0.1"]);
    assert_eq!(replaced(0, Some(one().replace(r#""nodeName":"n""#, r#""nodeName":"m""#))), ["10.0.0.1"]);
    assert_eq!(
        replaced(0, Some(one().replace(r#""name":"one""#, r#""name":"one","uid":"u""#))),
        ["10.0.0.1"]
    );
    assert_eq!(replaced(3, Some(policy(81))), ["10.0.0.1"]);
    assert_eq!(replaced(3, None), ["10.0.0.1"]);
    assert_eq!(replaced(4, Some(namespace("u"))), ["10.0.0.3"]);
    let all = Options { own_addresses: vec!["10.9.9.9".parse().unwrap()], ..Options::default() };
    let text = base().join("\n");
    let objects = parse([(Path::new("c.json"), text.as_str())]).unwrap();
    assert!(matches!(compile(&objects, &all, Generation(2)).affected_since(&old), Affected::All));
}

/// The clusters are not so random that one answer is never given.
#[test]
fn the_random_clusters_reach_every_reason() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    let mut tiers = std::collections::BTreeMap::<(String, bool), usize>::new();
    for _ in 0..600 {
        let strategy = (cluster(), clusters::surroundings(), clusters::flows());
        let (cluster, surroundings, flows) = strategy.new_tree(&mut runner).unwrap().current();
        let objects: Vec<Value> = cluster.objects();
        for flow in &flows {
            let (egress, ingress) = naive::decide(&objects, &surroundings, flow);
            for side in [egress, ingress] {
                *tiers.entry((side.tier, side.allow)).or_default() += 1;
                *reasons.entry(side.reason).or_default() += 1;
            }
        }
    }
    for reason in [
        "not-applicable",
        "not-isolated",
        "rule-matched",
        "no-rule-matched",
        "own-node",
        "own-address",
        "unknown-local-pod",
    ] {
        assert!(reasons.get(reason).is_some_and(|count| *count > 20), "{reason}: {reasons:?}");
    }
    for tier in ["Admin", "NetworkPolicy", "Baseline"] {
        for allow in [true, false] {
            let count = tiers.get(&(tier.to_owned(), allow));
            assert!(count.is_some_and(|count| *count > 20), "{tier} {allow}: {tiers:?}");
        }
    }
}
