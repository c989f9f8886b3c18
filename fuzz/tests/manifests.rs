//! Thousands of damaged manifests: each is read or refused, and what was read compiles and decides.

use std::time::{Duration, Instant};

use fuzz::{Random, damaged, read_and_decide};
use policy_bench::{Cluster, Shape};

/// A damaged manifest of a few kilobytes that takes longer has found a way to hang us.
const LIMIT: Duration = Duration::from_secs(5);

const CASES: usize = 10_000;

const TIERS: &str = include_str!("../corpus/manifests/tiers.yaml");

/// Valid manifests of every kind, in JSON and in YAML.
fn corpus() -> Vec<String> {
    let shape = Shape { pods: 8, namespaces: 2, policies: 16, tier_policies: 10, nodes: 2, dual_stack: true };
    let mut corpus: Vec<String> = Cluster::new(shape, 5).texts().map(|(_, text)| text).collect();
    let lines: Vec<String> = corpus.iter().flat_map(|text| text.lines().map(str::to_owned)).collect();
    corpus.extend(lines);
    // One document of YAML for each line of JSON, which is YAML.
    let yaml = corpus.iter().map(|text| text.lines().map(|line| format!("---\n{line}\n")).collect());
    let yaml: Vec<String> = yaml.collect();
    corpus.extend(yaml);
    corpus.push(TIERS.to_owned());
    corpus
}

fn try_one(name: &str, text: &str) -> bool {
    let started = Instant::now();
    let usable = read_and_decide(name, text);
    assert!(started.elapsed() < LIMIT, "{:?} for {text}", started.elapsed());
    usable
}

fn storm(name: &str, corpus: &[String], cases: usize, seed: u64) -> usize {
    let mut random = Random(seed);
    (0..cases)
        .filter(|_| {
            let text = &corpus[random.below(corpus.len())];
            let other = &corpus[random.below(corpus.len())];
            try_one(name, &damaged(text, other, &mut random))
        })
        .count()
}

#[test]
fn damaged_yaml_is_read_or_refused() {
    let usable = storm("damaged.yaml", &corpus(), CASES, 11);
    assert!(usable > CASES / 50 && usable < CASES / 2, "{usable} of {CASES} were still good");
}

#[test]
fn damaged_json_is_read_or_refused() {
    let corpus: Vec<String> = corpus().into_iter().filter(|text| text.starts_with('{')).collect();
    let usable = storm("damaged.json", &corpus, CASES, 12);
    assert!(usable > CASES / 50 && usable < CASES / 2, "{usable} of {CASES} were still good");
}

#[test]
fn what_is_damaged_was_good() {
    for text in corpus() {
        let name = if text.starts_with('{') { "good.json" } else { "good.yaml" };
        assert!(try_one(name, &text), "{text}");
    }
}
