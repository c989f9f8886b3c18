//! Hostile manifests → nothing but an answer. A panic is the report of a fault.

use std::net::IpAddr;
use std::path::Path;

use flow::{ClientAddr, Generation, OrigDst, PolicyKind, Protocol, Tuple};
use policy_cache::{
    Cluster, Event, Kind, Objects, Options, Snapshot, compile, lint_texts, parse, read_object,
};

/// Addresses that the corpus's pods, nodes and Services have, and some that nobody has.
const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.1.1",
    "10.0.1.2",
    "192.168.0.1",
    "203.0.113.7",
    "fd00::1",
    "fd00:10::1",
    "fd00:10:1::2",
];

/// Reads a text as manifests; `.json` in the name means JSON. What can be read compiles, decides the same each
/// time it is compiled, and is linted. False when it was refused, with a reason.
///
/// # Panics
///
/// When any of that does not hold.
pub fn read_and_decide(name: &str, text: &str) -> bool {
    match parse([(Path::new(name), text)]) {
        Ok(objects) => {
            decide(&objects, text);
            assert!(lint_texts([(Path::new(name), text)]).is_ok(), "read, and refused by lint: {text}");
            true
        }
        Err(error) => {
            assert!(!error.problems.is_empty(), "refused without a reason: {text}");
            assert!(!error.to_string().is_empty(), "refused without a word: {text}");
            false
        }
    }
}

/// The kinds that an object is read as, by the digit before it; with any other byte it must say so itself.
const KINDS: [Kind; 9] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Policy(PolicyKind::NetworkPolicy),
    Kind::Policy(PolicyKind::ClusterNetworkPolicy),
    Kind::Policy(PolicyKind::AdminNetworkPolicy),
    Kind::Policy(PolicyKind::BaselineAdminNetworkPolicy),
];

const CLUSTER: &str = include_str!("../corpus/manifests/cluster.yaml");

/// Reads JSON as the API's watch reads one object of the kind that a digit names. It is an object or it has
/// problems; of a broken one, only a policy comes out. A cluster that is told of it, and then of its end, decides as one
/// that is compiled with it does, and takes the same again for no change. False when nothing came out.
///
/// # Panics
///
/// When any of that does not hold.
pub fn read_and_follow(digit: u8, json: &[u8]) -> bool {
    let kind = KINDS.get(usize::from(digit.wrapping_sub(b'0'))).copied();
    let text = String::from_utf8_lossy(json);
    let reading = read_object(json, kind);
    assert!(kind.is_none() || reading.object.is_some() || !reading.problems.is_empty(), "nothing: {text}");
    let Some(object) = reading.object else { return false };
    let key = object.key();
    assert_eq!(Some(&key), reading.key.as_ref(), "{text}");
    assert!(kind.is_none_or(|kind| kind == key.kind), "{text}");
    assert!(reading.problems.is_empty() || matches!(key.kind, Kind::Policy(_)), "broken, and used: {text}");
    let Ok(mut objects) = parse([(Path::new("cluster.yaml"), CLUSTER)]) else {
        panic!("the corpus is not valid")
    };
    let mut cluster = Cluster::new(options());
    for object in objects.objects().collect::<Vec<_>>() {
        cluster.apply(Event::Put(object));
    }
    for event in [Event::Put(object.clone()), Event::Delete(key)] {
        objects.apply(event.clone());
        cluster.apply(event.clone());
        assert!(!cluster.apply(event), "the same again is a change: {text}");
        same_decisions(&cluster.snapshot(), &compile(&objects, &options(), Generation(1)), &text);
    }
    true
}

fn options() -> Options {
    Options {
        node: Some("node-00001".to_owned()),
        own_addresses: ADDRESSES.iter().skip(1).take(1).filter_map(|ip| ip.parse().ok()).collect(),
        ..Options::default()
    }
}

fn decide(objects: &Objects, text: &str) {
    let snapshot = compile(objects, &options(), Generation(1));
    same_decisions(&snapshot, &compile(objects, &options(), Generation(2)), text);
}

fn same_decisions(snapshot: &Snapshot, again: &Snapshot, text: &str) {
    let addresses: Vec<IpAddr> = ADDRESSES.iter().filter_map(|ip| ip.parse().ok()).collect();
    for source in &addresses {
        for destination in &addresses {
            let tuple = Tuple {
                protocol: Protocol::Tcp,
                client: ClientAddr((*source, 40_000).into()),
                destination: OrigDst((*destination, 8080).into()),
            };
            let sides = |snapshot: &Snapshot| {
                let decision = snapshot.decide(&snapshot.identify(&tuple));
                (decision.egress, decision.ingress)
            };
            assert_eq!(sides(snapshot), sides(again), "{text}");
        }
    }
}
