//! Micro benches of the stages of a connection's way: parse at the gate, identify, decide, pair, encode.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use audit::{Action, ConnectionId, Record, Timing, Traffic};
use divan::Bencher;
use flow::{
    ClientAddr, Decision, EndCause, Endpoint, Generation, OrigDst, Owner, Pod, Policies, PolicyKind,
    PolicyRef, Protocol, Reason, SideVerdict, Tier, Tuple, Verdict, Workload,
};
use policy_bench::{Cluster, Shape};
use policy_cache::{Options, Snapshot, compile, parse};

fn main() {
    divan::main();
}

/// 10.244.1.2:40000 to 10.244.2.3:8080, with the options of a Linux SYN.
fn syn() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3];
    packet.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 9, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
    packet.extend([2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
    packet
}

#[divan::bench]
fn gate_parse(bencher: Bencher<'_, '_>) {
    let message = proxy::stages::message_with(&syn());
    assert!(proxy::stages::read_held(&message).is_some());
    bencher.bench(|| proxy::stages::read_held(black_box(&message)));
}

/// A cluster of 1,000 pods and flows of its first node.
fn cluster() -> (Snapshot, Vec<Tuple>) {
    let cluster = Cluster::new(Shape::of(1_000), 1);
    let texts: Vec<_> = cluster.texts().collect();
    let objects = parse(texts.iter().map(|(path, text)| (path.as_path(), text.as_str())))
        .unwrap_or_else(|problems| panic!("the generated manifests are broken: {problems:?}"));
    let snapshot = compile(&objects, &Options::default(), Generation(1));
    let tuple = |flow: policy_bench::Flow| Tuple {
        protocol: Protocol::Tcp,
        client: ClientAddr(SocketAddr::new(flow.source, 40_000)),
        destination: OrigDst(flow.destination),
    };
    (snapshot, cluster.flows_of_node(0, 256, 1).into_iter().map(tuple).collect())
}

#[divan::bench]
fn identify(bencher: Bencher<'_, '_>) {
    let (snapshot, tuples) = cluster();
    let mut turn = tuples.iter().cycle();
    bencher.bench_local(|| turn.next().map(|tuple| snapshot.identify(black_box(tuple))));
}

#[divan::bench]
fn decide(bencher: Bencher<'_, '_>) {
    let (snapshot, tuples) = cluster();
    let flows: Vec<_> = tuples.iter().map(|tuple| snapshot.identify(tuple)).collect();
    let mut turn = flows.iter().cycle();
    bencher.bench_local(|| turn.next().map(|flow| snapshot.decide(black_box(flow))));
}

#[divan::bench]
fn pair(bencher: Bencher<'_, '_>) {
    let pairs = proxy::stages::Pairs::default();
    let tuple = proxy::stages::read_held(&proxy::stages::message_with(&syn()))
        .unwrap_or_else(|| panic!("the packet is no SYN"));
    bencher.bench(|| assert!(pairs.pair(black_box(tuple))));
}

#[divan::bench]
fn record_encode(bencher: Bencher<'_, '_>) {
    let record = record();
    let mut lines = Vec::with_capacity(1 << 16);
    let mut writer = audit::stages::Lines::of("node-a");
    bencher.bench_local(|| {
        lines.clear();
        writer.encode(&mut lines, 7, black_box(&record));
    });
}

/// A connection between two pods with four labels each, allowed by one policy.
fn record() -> Record {
    let labels = ["app", "app.kubernetes.io/part-of", "pod-template-hash", "tier"];
    let workload = Arc::new(Workload {
        namespace: "shop".into(),
        labels: labels.into_iter().map(|key| (key, "some-value")).collect(),
        owner: Some(Owner { kind: "Deployment".into(), name: "web".into() }),
    });
    let pod = |name: &str, local| {
        Endpoint::Pod(Arc::new(Pod {
            workload: Arc::clone(&workload),
            name: name.into(),
            uid: "0f0e6a2c-6c0e-4b69-8d2d-0d3f0d9c7b11".into(),
            node: Some("node-a".into()),
            local,
        }))
    };
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: "web".into(),
        rule: Some(0),
    };
    let allow =
        |reason, tier, policies| SideVerdict { verdict: Verdict::Allow, tier: Some(tier), policies, reason };
    Record {
        action: Action::Ended,
        id: ConnectionId::next(),
        tuple: Tuple::tcp(
            SocketAddr::from(([10, 244, 1, 2], 40_000)),
            SocketAddr::from(([10, 244, 2, 3], 8080)),
        ),
        source: pod("client-5d9c7b6f4-x2x7k", true),
        destination: pod("web-7b9f6c6d5-9kq2m", false),
        service: None,
        decision: Decision {
            generation: Generation(7),
            egress: allow(Reason::NotIsolated, Tier::Default, None),
            ingress: allow(
                Reason::RuleMatched,
                Tier::NetworkPolicy,
                Some(Policies::from(Arc::from([policy]))),
            ),
        },
        cause: Some(EndCause::ClientClosed),
        revoked_by: None,
        start: SystemTime::now(),
        end: Some(SystemTime::now()),
        duration: Some(Duration::from_micros(812)),
        traffic: Traffic { client_bytes: 78, server_bytes: 4096, ..Traffic::default() },
        upstream_source: None,
        hairpin: false,
        timing: Timing { decide: Some(Duration::from_micros(40)), connect: Some(Duration::from_micros(300)) },
        legs: audit::Legs::default(),
        tls: None,
        detail: None,
    }
}
