//! Thousands of damaged objects as the API's watch reads them: each is read or has problems, and what comes out is
//! followed as it is compiled.

use fuzz::{Random, damaged, read_and_follow};
use policy_bench::{Cluster, Shape};

const CASES: usize = 5_000;

const SEEDS: &str = include_str!("../corpus/object/objects");

/// Objects of every kind, each behind the digit of its kind.
fn corpus() -> Vec<String> {
    let shape = Shape { pods: 8, namespaces: 2, policies: 16, tier_policies: 10, nodes: 2, dual_stack: true };
    let cluster = Cluster::new(shape, 5);
    let numbered =
        |text: String| -> Vec<String> { text.lines().map(|line| format!("{}{line}", digit(line))).collect() };
    let lines = cluster.texts().flat_map(|(_, text)| numbered(text));
    lines.chain(SEEDS.lines().map(str::to_owned)).collect()
}

fn digit(line: &str) -> usize {
    let kinds =
        ["Namespace", "Pod", "Node", "Service", "EndpointSlice", "NetworkPolicy", "ClusterNetworkPolicy"];
    let kinds = kinds.into_iter().chain(["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"]);
    let mut named = kinds.map(|kind| line.contains(&format!("\"kind\":\"{kind}\",\"metadata\"")));
    named.position(|is_it| is_it).unwrap_or(9)
}

fn follow(text: &str) -> bool {
    text.as_bytes().split_first().is_some_and(|(digit, json)| read_and_follow(*digit, json))
}

#[test]
fn what_is_damaged_was_good() {
    let corpus = corpus();
    for text in &corpus {
        assert!(follow(text), "{text}");
    }
    for digit in b'0'..=b'9' {
        assert!(corpus.iter().any(|text| text.as_bytes()[0] == digit), "none of kind {}", char::from(digit));
    }
}

#[test]
fn damaged_objects_are_read_or_refused_and_followed_as_they_are_compiled() {
    let (corpus, mut random) = (corpus(), Random(13));
    let damaged = (0..CASES).map(|_| {
        let text = &corpus[random.below(corpus.len())];
        let other = &corpus[random.below(corpus.len())];
        // The digit stays.
        text[..1].to_owned() + &damaged(&text[1..], other, &mut random)
    });
    let usable = damaged.filter(|text| follow(text)).count();
    assert!(usable > CASES / 50 && usable < CASES, "something came out of {usable} of {CASES}");
}
