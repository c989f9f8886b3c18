//! The policies of the Admin and Baseline tiers: what administrators write for a whole cluster or for one team.

use super::random::Random;
use super::{ENVIRONMENTS, TEAMS};

/// The forms, in the order in which a growing cluster gets them. The last one exists once.
const FORMS: usize = 10;

/// One policy, on a line. `index` is its number in the whole cluster.
pub(crate) fn policy(index: usize, seed: u64) -> String {
    let mut random = Random::of(seed ^ 0x7e57, index as u64);
    let team = random.below(TEAMS);
    let environment = ENVIRONMENTS[random.below(ENVIRONMENTS.len())];
    match index {
        9 => baseline_admin(),
        _ => match index % FORMS {
            form @ (4 | 8) => admin_network_policy(index, form, team),
            form => cluster_network_policy(index, form, team, environment),
        },
    }
}

fn cluster_network_policy(index: usize, form: usize, team: usize, environment: &str) -> String {
    let own = format!(r#"{{"namespaces":{{"matchLabels":{{"team":"team-{team}"}}}}}}"#);
    let (tier, subject, rules) = match form {
        // Whoever may be isolated can still be measured.
        0 => (
            "Admin",
            r#"{"namespaces":{}}"#.to_owned(),
            r#""ingress":[{"name":"metrics","action":"Accept","from":[{"namespaces":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}],"protocols":[{"destinationNamedPort":"metrics"}]}]"#.to_owned(),
        ),
        // Nobody asks the cloud who the node is.
        1 => (
            "Admin",
            r#"{"namespaces":{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["kube-system"]}]}}"#.to_owned(),
            r#""egress":[{"name":"metadata","action":"Deny","to":[{"networks":["169.254.169.254/32"]}]}]"#.to_owned(),
        ),
        // Closed unless somebody opens.
        2 => (
            "Baseline",
            format!(r#"{{"namespaces":{{"matchLabels":{{"environment":"{environment}","team":"team-{team}"}}}}}}"#),
            format!(
                r#""ingress":[{{"name":"own","action":"Accept","from":[{own}]}},{{"name":"others","action":"Deny","from":[{{"namespaces":{{}}}}]}}]"#
            ),
        ),
        // Name service for all, whatever they write.
        3 => (
            "Admin",
            r#"{"namespaces":{}}"#.to_owned(),
            r#""egress":[{"name":"names","action":"Accept","to":[{"namespaces":{"matchLabels":{"kubernetes.io/metadata.name":"kube-system"}}}],"protocols":[{"udp":{"destinationPort":{"number":53}}},{"tcp":{"destinationPort":{"number":53}}}]}]"#.to_owned(),
        ),
        // What is being developed stays away from what is in use; the team's own policies decide on the rest.
        5 => (
            "Admin",
            format!(r#"{{"namespaces":{{"matchLabels":{{"environment":"production","team":"team-{team}"}}}}}}"#),
            format!(
                r#""ingress":[{{"name":"own","action":"Pass","from":[{own}]}},{{"name":"development","action":"Deny","from":[{{"namespaces":{{"matchLabels":{{"environment":"development"}}}}}}]}}]"#
            ),
        ),
        // Databases are for those who speak with them.
        6 => (
            "Admin",
            format!(
                r#"{{"pods":{{"namespaceSelector":{{"matchLabels":{{"team":"team-{team}"}}}},"podSelector":{{"matchLabels":{{"role":"database"}}}}}}}}"#
            ),
            r#""ingress":[{"action":"Pass","from":[{"pods":{"namespaceSelector":{},"podSelector":{"matchExpressions":[{"key":"role","operator":"In","values":["api","worker"]}]}}}],"protocols":[{"tcp":{"destinationPort":{"range":{"start":5400,"end":5500}}}}]},{"action":"Deny","from":[{"namespaces":{}}]}]"#.to_owned(),
        ),
        _ => (
            "Baseline",
            format!(r#"{{"namespaces":{{"matchLabels":{{"team":"team-{team}"}}}}}}"#),
            r#""egress":[{"action":"Deny","to":[{"networks":["192.168.0.0/16","fc00:db8::/32"]}]}]"#.to_owned(),
        ),
    };
    object(
        "ClusterNetworkPolicy",
        "v1alpha2",
        &format!("policy-{index}"),
        &format!(r#"{{"tier":"{tier}","priority":{},"subject":{subject},{rules}}}"#, 10 + index % 900),
    )
}

fn admin_network_policy(index: usize, form: usize, team: usize) -> String {
    let rules = match form {
        4 => {
            r#""egress":[{"name":"kubelets","action":"Deny","to":[{"nodes":{}}],"ports":[{"portNumber":{"protocol":"TCP","port":10250}}]}]"#
        }
        _ => {
            r#""ingress":[{"name":"edge","action":"Allow","from":[{"namespaces":{"matchLabels":{"kubernetes.io/metadata.name":"ingress"}}}],"ports":[{"portRange":{"protocol":"TCP","start":8000,"end":8999}}]}]"#
        }
    };
    object(
        "AdminNetworkPolicy",
        "v1alpha1",
        &format!("policy-{index}"),
        &format!(
            r#"{{"priority":{},"subject":{{"namespaces":{{"matchLabels":{{"team":"team-{team}"}}}}}},{rules}}}"#,
            10 + index % 900
        ),
    )
}

fn baseline_admin() -> String {
    object(
        "BaselineAdminNetworkPolicy",
        "v1alpha1",
        "default",
        r#"{"subject":{"namespaces":{"matchLabels":{"environment":"staging"}}},"ingress":[{"name":"development","action":"Deny","from":[{"namespaces":{"matchLabels":{"environment":"development"}}}]}]}"#,
    )
}

fn object(kind: &str, version: &str, name: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"policy.networking.k8s.io/{version}","kind":"{kind}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    ) + "\n"
}
