//! `explain`: what it says against what `decide` decides, and what it proposes against what that does.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

#[allow(dead_code, reason = "the generator also serves tests of changes")]
#[path = "../property/clusters.rs"]
mod clusters;
mod patch;
mod questions;
#[path = "../property/tiers.rs"]
mod tiers;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use flow::{ClientAddr, Decision, Generation, OrigDst, SideVerdict, Tuple};
use policy_cache::{Objects, Options, OwnNodeEgress, Question, Snapshot, compile, explain, parse};
use proptest::prelude::*;
use serde_json::{Value, json};

use clusters::{Flow, Surroundings};

fn objects(list: &[Value]) -> Objects {
    let text = json!({"apiVersion": "v1", "kind": "List", "items": list}).to_string();
    let mut objects =
        parse([(Path::new("cluster.json"), text.as_str())]).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for (name, addresses) in tiers::NAMES {
        objects.resolve(name, addresses.iter().map(|ip| ip.parse().unwrap()));
    }
    objects
}

fn options(surroundings: &Surroundings) -> Options {
    Options {
        node: surroundings.node.clone(),
        own_addresses: surroundings.own_addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        own_node_egress: if surroundings.policy_for_own_node {
            OwnNodeEgress::Policy
        } else {
            OwnNodeEgress::Allow
        },
    }
}

fn decide(snapshot: &Snapshot, flow: &Flow) -> Decision {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let tuple = Tuple {
        protocol: flow.protocol.parse().unwrap(),
        client: ClientAddr(SocketAddr::new(ip(&flow.source), 40_000)),
        destination: OrigDst(SocketAddr::new(ip(&flow.destination), flow.port)),
    };
    snapshot.decide(&snapshot.identify(&tuple))
}

fn shown(side: &SideVerdict) -> (Value, Value, Value) {
    let policies: Vec<String> = side.policies().iter().map(ToString::to_string).collect();
    (json!(side.verdict.as_str()), json!(policies), json!(side.reason.as_str()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1200, max_shrink_time: 15_000, ..ProptestConfig::default() })]

    #[test]
    fn an_explanation_agrees_with_the_decision_and_its_change_flips_it(
        cluster in (clusters::cluster(), tiers::policies())
            .prop_map(|(cluster, tiers)| clusters::Cluster { tiers, ..cluster }),
        surroundings in clusters::surroundings(),
        flows in clusters::flows(),
    ) {
        let options = options(&surroundings);
        let list = cluster.objects();
        let parsed = objects(&list);
        let snapshot = compile(&parsed, &options, Generation(1));
        for flow in &flows {
            let decision = decide(&snapshot, flow);
            let port = format!("{}/{}", flow.port, flow.protocol);
            let question = Question::parse(&flow.source, &flow.destination, &port).unwrap();
            let explanation = explain(&parsed, &snapshot, &question);
            prop_assert!(explanation.is_ok(), "{flow:?}: {explanation:?}");
            let explanation = explanation.unwrap();
            let shown_json = serde_json::to_value(&explanation).unwrap();
            let connection = &shown_json["connections"][0];
            prop_assert_eq!(explanation.is_allowed(), decision.verdict().is_allow(), "{:?}", flow);
            for (name, side) in [("egress", &decision.egress), ("ingress", &decision.ingress)] {
                let told = &connection[name];
                let told = (told["verdict"].clone(), told["policies"].clone(), told["reason"].clone());
                prop_assert_eq!(told, shown(side), "{} of {:?}", name, flow);
            }
            match explanation.changes().next() {
                Some(change) => {
                    let mut changed = list.clone();
                    patch::apply(&mut changed, change.operations());
                    let snapshot = compile(&objects(&changed), &options, Generation(2));
                    let after = decide(&snapshot, flow);
                    prop_assert_ne!(
                        after.verdict(), decision.verdict(),
                        "{:?}: {:?} changes nothing in {}", flow, change, json!(list)
                    );
                }
                None => {
                    let exempt = ["not-applicable", "own-node", "own-address", "unknown-local-pod"];
                    for side in [&decision.egress, &decision.ingress] {
                        prop_assert!(exempt.contains(&side.reason.as_str()), "{flow:?} has no change: {decision:?}");
                    }
                }
            }
        }
    }
}
