//! Hostile manifests → nothing but an answer. A panic is the report of a fault.

use std::net::IpAddr;
use std::path::Path;

use flow::{ClientAddr, Generation, OrigDst, Protocol, Tuple};
use policy_cache::{Objects, Options, Snapshot, compile, lint_texts, parse};

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

fn decide(objects: &Objects, text: &str) {
    let addresses: Vec<IpAddr> = ADDRESSES.iter().filter_map(|ip| ip.parse().ok()).collect();
    let options = Options {
        node: Some("node-00001".to_owned()),
        own_addresses: addresses.iter().copied().skip(1).take(1).collect(),
        ..Options::default()
    };
    let snapshot = compile(objects, &options, Generation(1));
    let again = compile(objects, &options, Generation(2));
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
            assert_eq!(sides(&snapshot), sides(&again), "{text}");
        }
    }
}
