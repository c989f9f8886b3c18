//! The NetworkPolicies of a namespace: the forms that clusters are full of, one after the other.

use super::random::Random;
use super::workloads::Workload;
use super::{ENVIRONMENTS, TEAMS, namespace_name};

/// One policy, on a line. `index` is its number in the whole cluster.
pub(crate) fn policy(namespace: usize, index: usize, workloads: &[Workload], seed: u64) -> String {
    let mut random = Random::of(!seed, index as u64);
    // Nobody writes policies for Jobs that are done.
    let running: Vec<&Workload> = workloads.iter().filter(|workload| workload.has_identity()).collect();
    let mut pick = || match running.get(random.below(running.len().max(1))) {
        Some(workload) => (workload.name(), workload.role),
        None => ("none", "none"),
    };
    let ((app, role), (_, peer)) = (pick(), pick());
    let spec = spec(index, app, role, peer, &mut random);
    format!(
        r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"namespace":"{}","name":"policy-{index}"}},"spec":{spec}}}"#,
        namespace_name(namespace),
    ) + "\n"
}

fn spec(index: usize, app: &str, role: &str, peer: &str, random: &mut Random) -> String {
    match index % 8 {
        0 => r#"{"podSelector":{},"policyTypes":["Ingress"]}"#.to_owned(),
        1 => r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{}}]}]}"#.to_owned(),
        2 => format!(
            r#"{{"podSelector":{{"matchLabels":{{"app":"{app}"}}}},"ingress":[{{"from":[{{"namespaceSelector":{{"matchLabels":{{"kubernetes.io/metadata.name":"ingress"}}}}}}],"ports":[{{"port":"serve"}}]}}]}}"#
        ),
        3 => format!(
            r#"{{"podSelector":{{"matchLabels":{{"role":"{role}"}}}},"ingress":[{{"from":[{{"namespaceSelector":{{"matchLabels":{{"team":"team-{}"}}}},"podSelector":{{"matchLabels":{{"role":"frontend"}}}}}}],"ports":[{{"port":8080}},{{"port":443}}]}}]}}"#,
            random.below(TEAMS)
        ),
        4 => r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"kube-system"}}}],"ports":[{"port":53,"protocol":"UDP"},{"port":53}]},{"to":[{"ipBlock":{"cidr":"0.0.0.0/0","except":["10.0.0.0/8","172.16.0.0/12","192.168.0.0/16"]}}]},{"to":[{"podSelector":{}}]}]}"#.to_owned(),
        5 => format!(
            r#"{{"podSelector":{{"matchExpressions":[{{"key":"role","operator":"In","values":["{role}","api"]}}]}},"ingress":[{{"from":[{{"namespaceSelector":{{"matchExpressions":[{{"key":"environment","operator":"NotIn","values":["{}"]}}]}},"podSelector":{{"matchExpressions":[{{"key":"role","operator":"NotIn","values":["database","worker"]}}]}}}}],"ports":[{{"port":8000,"endPort":8999}}]}}]}}"#,
            random.pick(&ENVIRONMENTS)
        ),
        6 => r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{},"podSelector":{"matchLabels":{"role":"metrics"}}}],"ports":[{"port":"metrics"}]}]}"#.to_owned(),
        _ => format!(
            r#"{{"podSelector":{{"matchLabels":{{"app":"{app}"}}}},"policyTypes":["Ingress","Egress"],"ingress":[{{"from":[{{"ipBlock":{{"cidr":"203.0.{}.0/24"}}}},{{"podSelector":{{"matchLabels":{{"role":"{peer}"}}}}}}]}}],"egress":[{{"to":[{{"podSelector":{{"matchLabels":{{"role":"{peer}"}}}}}}],"ports":[{{"port":5432}}]}},{{"ports":[{{"port":53,"protocol":"UDP"}}]}}]}}"#,
            random.below(200)
        ),
    }
}
