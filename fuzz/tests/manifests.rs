//! Thousands of damaged manifests: each is read or refused, and what was read compiles and decides.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::path::Path;
use std::time::{Duration, Instant};

use flow::{ClientAddr, Generation, OrigDst, Protocol, Tuple};
use fuzz::{Random, damaged};
use policy_bench::{Cluster, Shape};
use policy_cache::{Options, compile, parse};

/// A damaged manifest of a few kilobytes that takes longer has found a way to hang us.
const LIMIT: Duration = Duration::from_secs(5);

const CASES: usize = 10_000;

const TIERS: &str = r#"
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}}
  ingress:
  - {name: deny, action: Deny, from: [{namespaces: {matchExpressions: [{key: team, operator: NotIn, values: [a]}]}}]}
  egress:
  - {action: Accept, to: [{networks: [10.0.0.0/8, "fd00::/8"]}], protocols: [{tcp: {destinationPort: {number: 80}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: pass}
spec:
  priority: 3
  subject: {namespaces: {}}
  egress:
  - {action: Pass, to: [{nodes: {matchExpressions: [{key: zone, operator: Exists}]}}], ports: [{portRange: {start: 1, end: 9}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: x}}}}], ports: [{namedPort: http}]}
"#;

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
    let read = parse([(Path::new(name), text)]);
    let usable = read.is_ok();
    match read {
        Ok(objects) => {
            let options = Options {
                node: Some("node-00001".to_owned()),
                own_addresses: vec!["10.0.1.1".parse().unwrap()],
                ..Options::default()
            };
            let snapshot = compile(&objects, &options, Generation(1));
            let again = compile(&objects, &options, Generation(2));
            for pair in
                [["10.0.0.1", "10.0.1.2"], ["10.0.1.3", "203.0.113.7"], ["fd00:10::1", "fd00:10:1::2"]]
            {
                let [source, destination]: [std::net::IpAddr; 2] = pair.map(|ip| ip.parse().unwrap());
                let tuple = Tuple {
                    protocol: Protocol::Tcp,
                    client: ClientAddr((source, 40_000_u16).into()),
                    destination: OrigDst((destination, 8080_u16).into()),
                };
                let decide = |snapshot: &policy_cache::Snapshot| {
                    let decision = snapshot.decide(&snapshot.identify(&tuple));
                    (decision.egress, decision.ingress)
                };
                assert_eq!(decide(&snapshot), decide(&again), "{text}");
            }
        }
        Err(error) => assert!(!error.problems.is_empty(), "refused without a reason: {text}"),
    }
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
