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
            assert_eq!(counts.endpoint_slices, shape.namespaces * if dual_stack { 2 } else { 1 });
            let tiers = counts.cluster_network_policies
                + counts.admin_network_policies
                + counts.baseline_admin_network_policies;
            assert_eq!(tiers, shape.tier_policies);
        }
    }

    #[test]
    fn a_large_cluster_has_every_kind_of_policy_and_of_pod_in_proportion() {
        let cluster = cluster(40_000, true);
        let mut pods: HashMap<&str, usize> = HashMap::new();
        for (_, text) in cluster.texts() {
            for line in text.lines().filter(|line| line.contains(r#""kind":"Pod","metadata""#)) {
                let kind = match line {
                    line if line.contains(r#""hostNetwork":true"#) => "agent",
                    line if line.contains(r#""phase":"Succeeded""#) => "finished",
                    _ => "own",
                };
                *pods.entry(kind).or_default() += 1;
            }
        }
        assert_eq!(pods.values().sum::<usize>(), 40_000);
        assert_eq!(pods["own"], cluster.pod_names().count());
        assert!((200..2_000).contains(&pods["finished"]) && pods["agent"] > 5, "{pods:?}");
        let tiers = cluster.tiers_text();
        for kind in ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"] {
            assert!(tiers.contains(&format!(r#""kind":"{kind}""#)), "{kind}");
        }
        assert!(tiers.contains(r#""tier":"Admin""#) && tiers.contains(r#""tier":"Baseline""#));
    }

    #[test]
    fn a_larger_cluster_has_the_smaller_ones_policies_of_the_tiers() {
        let (small, large) = (cluster(3_000, false).tiers_text(), cluster(150_000, false).tiers_text());
        assert!(large.starts_with(&small) && large.lines().count() == 40);
    }

    #[test]
    fn an_address_that_a_finished_pod_still_names_is_the_running_ones() {
        let cluster = cluster(40_000, false);
        let texts: Vec<_> = cluster.texts().collect();
        let objects = parse(texts.iter().map(|(path, text)| (path.as_path(), text.as_str()))).unwrap();
        let snapshot = compile(&objects, &Options::default(), Generation(1));
        let mut shared = 0;
        for (_, text) in &texts {
            for line in text.lines().filter(|line| line.contains(r#""phase":"Succeeded""#)) {
                let pod: serde_json::Value = serde_json::from_str(line).unwrap();
                let ip = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
                if let Endpoint::Pod(holder) = snapshot.endpoint(ip) {
                    assert_ne!(*holder.name, *pod["metadata"]["name"].as_str().unwrap());
                    shared += 1;
                }
            }
        }
        assert!(shared > 100, "{shared} addresses are shared");
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
