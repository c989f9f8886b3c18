//! Kinds that decide nothing and yet look like policies: misspelt, or somebody else's. Whoever wrote one believes
//! that it is enforced.

use super::{near, tiers};

/// The policies that are read, with the `apiVersion` of each.
const KNOWN: [&str; 4] =
    ["NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"];

/// Groups of others' policies, and whose they are.
const OTHERS: [(&str, &str); 3] =
    [("projectcalico.org", "Calico"), ("cilium.io", "Cilium"), ("antrea.io", "Antrea")];

/// Kinds that are read, with their groups.
const READ: [(&str, &str); 9] = [
    ("Namespace", ""),
    ("Node", ""),
    ("Pod", ""),
    ("Service", ""),
    ("EndpointSlice", "discovery.k8s.io"),
    ("NetworkPolicy", "networking.k8s.io"),
    ("ClusterNetworkPolicy", "policy.networking.k8s.io"),
    ("AdminNetworkPolicy", "policy.networking.k8s.io"),
    ("BaselineAdminNetworkPolicy", "policy.networking.k8s.io"),
];

/// Why no API server has such a kind, when it was surely meant as one that is read: in a group of Kubernetes' own its
/// name is misspelt or belongs to another group, or the group is.
pub(crate) fn refused(api_version: &str, kind: &str) -> Option<String> {
    let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
    let is_like = |word: &str, known: &str| word == known || near::meant(word, [known]).is_some();
    let singular = kind.strip_suffix("ies").map(|stem| format!("{stem}y"));
    let is_kind =
        |known: &str| is_like(kind, known) || singular.as_deref().is_some_and(|kind| is_like(kind, known));
    let is_own = |group: &str| READ.iter().any(|(_, own)| *own == group);
    let meant = |(name, own): &&(&str, &str)| {
        let same_group = group == *own || (!own.is_empty() && near::meant(group, [*own]).is_some());
        same_group && is_kind(name) || kind == *name && is_own(group)
    };
    let (name, _) = READ.iter().find(meant)?;
    let version = match *name {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        name => tiers::version(name).unwrap_or("v1"),
    };
    Some(format!("no such kind, did you mean {name} of {version}?"))
}

/// Why an object that is not read may have been meant as a policy; nothing when it looks like none. `group` is
/// its whole `apiVersion`.
pub(crate) fn stray(group: &str, kind: &str) -> Option<String> {
    let own_group = group.split_once('/').map_or(group, |(name, _)| name);
    let is_of = |(suffix, _): &&(&str, &str)| {
        own_group.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let names_policy = kind.to_lowercase().contains("networkpolic");
    if let Some((_, whose)) = OTHERS.iter().find(is_of) {
        return names_policy.then(|| format!("{whose}'s own policies are not enforced"));
    }
    let meant = if KNOWN.contains(&kind) { Some(kind) } else { near::meant(kind, KNOWN) };
    match meant {
        Some(kind) => {
            let version = tiers::version(kind).unwrap_or("networking.k8s.io/v1");
            Some(format!("no such kind is enforced, did you mean {kind} of {version}?"))
        }
        None if names_policy => Some("no such kind is enforced".to_owned()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{refused, stray};

    #[test]
    fn a_kind_that_no_api_server_has_is_told_from_one_that_is_not_read() {
        let table = [
            ("networking.k8s.io/v1", "NetworkPolcy", "NetworkPolicy of networking.k8s.io/v1?"),
            ("networking.k8s.io/v1", "networkpolicy", "NetworkPolicy of networking.k8s.io/v1?"),
            ("networking.k8s.io/v1", "NetworkPolicies", "NetworkPolicy of networking.k8s.io/v1?"),
            ("Networking.k8s.io/v1", "NetworkPolicy", "NetworkPolicy of networking.k8s.io/v1?"),
            ("networking.k8s.oi/v1", "NetworkPolicy", "NetworkPolicy of networking.k8s.io/v1?"),
            ("v1", "NetworkPolicy", "NetworkPolicy of networking.k8s.io/v1?"),
            ("v1", "Namespce", "Namespace of v1?"),
            ("v1", "pod", "Pod of v1?"),
            ("v2", "Pod", "Pod of v1?"),
            ("networking.k8s.io/v1", "Service", "Service of v1?"),
            ("discovery.k8s.io/v1beta1", "EndpointSlice", "EndpointSlice of discovery.k8s.io/v1?"),
            (
                "networking.k8s.io/v1",
                "ClusterNetworkPolicy",
                "ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2?",
            ),
            (
                "policy.networking.k8s.io/v1alpha2",
                "ClusterNetworkPolices",
                "ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2?",
            ),
        ];
        for (group, kind, told) in table {
            let expected = format!("no such kind, did you mean {told}");
            assert_eq!(refused(group, kind).as_deref(), Some(expected.as_str()), "{group} {kind}");
        }
        let kinds_of_others = [
            ("v1", "Secret"),
            ("v1", "Endpoints"),
            ("v1", "Event"),
            ("v1", "PodTemplate"),
            ("v1", "ServiceAccount"),
            ("v1", "ConfigMap"),
            ("apps/v1", "Deployment"),
            ("metrics.k8s.io/v1beta1", "NodeMetrics"),
            ("serving.knative.dev/v1", "Service"),
            ("networking.k8s.io/v1", "Ingress"),
            ("networking.istio.io/v1", "ServiceEntry"),
            ("crd.projectcalico.org/v1", "NetworkPolicy"),
            ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
            ("example.com/v1", "Namespace"),
        ];
        for (group, kind) in kinds_of_others {
            assert_eq!(refused(group, kind), None, "{group} {kind}");
        }
    }

    #[test]
    fn what_looks_like_a_policy_is_told_from_what_decides_nothing() {
        let table = [
            ("networking.k8s.io/v1", "NetworkPolcy", "did you mean NetworkPolicy of networking.k8s.io/v1?"),
            ("networking.k8s.io/v1", "networkpolicy", "did you mean NetworkPolicy of networking.k8s.io/v1?"),
            ("network.k8s.io/v1", "NetworkPolicy", "did you mean NetworkPolicy of networking.k8s.io/v1?"),
            ("v1", "NetworkPolicy", "did you mean NetworkPolicy of networking.k8s.io/v1?"),
            (
                "policy.networking.k8s.io/v1alpha2",
                "ClusterNetworkPolices",
                "did you mean ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2?",
            ),
            ("crd.projectcalico.org/v1", "NetworkPolicy", "Calico's own policies are not enforced"),
            ("projectcalico.org/v3", "GlobalNetworkPolicy", "Calico's own policies are not enforced"),
            ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "Cilium's own policies are not enforced"),
            ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy", "Antrea's own policies are not enforced"),
            ("example.com/v1", "MyNetworkPolicySet", "no such kind is enforced"),
        ];
        for (group, kind, told) in table {
            assert!(stray(group, kind).is_some_and(|text| text.ends_with(told)), "{group} {kind}");
        }
        for (group, kind) in [
            ("apps/v1", "Deployment"),
            ("policy/v1", "PodDisruptionBudget"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("projectcalico.org/v3", "IPPool"),
            ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
        ] {
            assert_eq!(stray(group, kind), None, "{group} {kind}");
        }
    }
}
