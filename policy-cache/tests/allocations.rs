//! Looking up and deciding a flow takes no memory. In a process of its own: its allocator counts.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use flow::{ClientAddr, Generation, OrigDst, Protocol, Tuple};
use policy_cache::{Options, Snapshot, compile, parse};

/// Pods with policies of every tier, with every form of peers and ports.
fn snapshot() -> Snapshot {
    let mut text = String::from(
        r#"{apiVersion: v1, kind: Node, metadata: {name: n, labels: {zone: a}}, spec: {podCIDRs: [10.0.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x}, spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: a1}}}], ports: [{port: web}]}, {from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: a2}}}]}], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/25]}}], ports: [{port: 80}, {port: 1000, endPort: 2000}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {none: such}}}]}], egress: [{action: Deny, to: [{nodes: {matchLabels: {zone: a}}}]}, {action: Accept, to: [{domainNames: ["*.example.com"]}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: b}, spec: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}}
"#,
    );
    for number in 1..200 {
        let namespace = if number % 3 == 0 { "y" } else { "x" };
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: {namespace}, labels: {{app: a{}}}}}, \
             spec: {{nodeName: n, containers: [{{ports: [{{name: web, containerPort: 80}}]}}]}}, \
             status: {{phase: Running, podIP: 10.0.0.{number}}}}}",
            number % 7
        );
    }
    let mut objects = parse([(Path::new("cluster.yaml"), text.as_str())]).unwrap();
    objects.resolve("www.example.com", ["8.8.8.8".parse().unwrap()]);
    compile(&objects, &Options::default(), Generation(1))
}

fn tuples() -> Vec<Tuple> {
    let others = ["192.168.0.1", "8.8.8.8", "10.0.0.250", "2001:db8::1"].map(|ip| ip.parse().unwrap());
    let pods = (1..200).map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
    let all: Vec<IpAddr> = pods.chain(others).collect();
    let mut tuples = Vec::new();
    for (place, source) in all.iter().enumerate() {
        for destination in all.iter().skip(place % 5).step_by(5) {
            for port in [80, 81, 1500] {
                tuples.push(Tuple {
                    protocol: Protocol::Tcp,
                    client: ClientAddr(SocketAddr::new(*source, 40_000)),
                    destination: OrigDst(SocketAddr::new(*destination, port)),
                });
            }
        }
    }
    tuples
}

#[test]
fn looking_up_and_deciding_take_no_memory() {
    let (snapshot, tuples) = (snapshot(), tuples());
    let mut reasons = std::collections::BTreeSet::new();
    for tuple in &tuples {
        let decision = snapshot.decide(&snapshot.identify(tuple));
        reasons.extend([&decision.egress, &decision.ingress].map(|side| (side.reason.as_str(), side.tier)));
    }
    // The flows are of many kinds.
    assert!(reasons.len() >= 8, "{reasons:?}");
    let taken = allocation_counter::measure(|| {
        for tuple in &tuples {
            black_box(snapshot.decide(&snapshot.identify(tuple)));
        }
    });
    assert_eq!((taken.count_total, taken.bytes_total), (0, 0), "in {} flows", tuples.len());
    let counted = allocation_counter::measure(|| drop(black_box(Box::new(7))));
    assert_eq!(counted.count_total, 1, "the allocator counts nothing");
}
