//! Kinds that decide nothing and yet look like policies: misspelt, or somebody else's. Whoever wrote one believes
//! that it is enforced.

use super::{near, tiers};

/// The policies that are read, with the `apiVersion` of each.
const KNOWN: [&str; 4] =
    ["NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"];

/// Groups of others' policies, and whose they are.
const OTHERS: [(&str, &str); 3] =
    [("projectcalico.org", "Calico"), ("cilium.io", "Cilium"), ("antrea.io", "Antrea")];

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
    use super::stray;

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
