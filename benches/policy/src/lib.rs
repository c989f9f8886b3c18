//! Clusters of any size as manifests, the same for the same seed: for the policy bench, and for tests that need
//! more than a handful of objects.

mod cluster;

pub use cluster::{Cluster, Flow, Shape};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use flow::{ClientAddr, Endpoint, Generation, OrigDst, Protocol, Tuple};
    use policy_cache::{Options, compile, parse};

    fn cluster(pods: usize, dual_stack: bool) -> Cluster {
        Cluster::new(Shape { dual_stack, ..Shape::of(pods) }, 3)
    }

    #[test]
    fn the_manifests_are_valid_and_as_many_as_the_shape_says() {
        for dual_stack in [false, true] {
            let cluster = cluster(3_000, dual_stack);
            let texts: Vec<_> = cluster.texts().collect();
            let objects = parse(texts.iter().map(|(path, text)| (path.as_path(), text.as_str()))).unwrap();
            let counts = objects.counts();
            let shape = cluster.shape();
            assert_eq!(
                (counts.pods, counts.namespaces, counts.network_policies, counts.nodes),
                (shape.pods, shape.namespaces, shape.policies, shape.nodes)
            );
            assert_eq!(counts.services, shape.namespaces);
            assert_eq!(cluster.pod_names().count(), shape.pods);
        }
    }

    #[test]
    fn a_seed_says_everything_about_a_cluster() {
        let texts = |seed| -> Vec<_> { Cluster::new(Shape::of(500), seed).texts().collect() };
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
        assert_eq!(cluster(500, false).flows(100, 1), cluster(500, false).flows(100, 1));
    }

    #[test]
    fn flows_have_known_ends_and_reach_every_kind_of_answer() {
        let cluster = cluster(3_000, true);
        let texts: Vec<_> = cluster.texts().collect();
        let objects = parse(texts.iter().map(|(path, text)| (path.as_path(), text.as_str()))).unwrap();
        let snapshot = compile(&objects, &Options::default(), Generation(1));
        let mut answers: HashMap<&str, usize> = HashMap::new();
        let mut flows = cluster.flows(5_000, 4);
        flows.extend(cluster.flows_of_node(1, 5_000, 4));
        for flow in flows {
            let tuple = Tuple {
                protocol: Protocol::Tcp,
                client: ClientAddr((flow.source, 40_000).into()),
                destination: OrigDst(flow.destination),
            };
            let identified = snapshot.identify(&tuple);
            for end in [&identified.source, &identified.destination] {
                assert!(matches!(end, Endpoint::Pod(_) | Endpoint::External), "{flow:?}: {end:?}");
            }
            let decision = snapshot.decide(&identified);
            for side in [decision.egress, decision.ingress] {
                *answers.entry(side.reason.as_str()).or_default() += 1;
            }
        }
        for reason in ["not-applicable", "not-isolated", "rule-matched", "no-rule-matched"] {
            assert!(answers.get(reason).is_some_and(|count| *count > 100), "{reason}: {answers:?}");
        }
    }
}
