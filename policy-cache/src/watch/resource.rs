//! Which collections of the API are followed, and where they are.

use flow::PolicyKind;

use crate::objects::Kind;

/// The group of the policies of the other tiers, whose kinds come and go with their CRDs.
pub(crate) const TIER_GROUP: &str = "policy.networking.k8s.io";

/// One collection of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    /// Empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
}

impl Resource {
    /// Whether the API may lack it.
    pub(crate) const fn is_optional(self) -> bool {
        matches!(
            self.kind,
            Kind::Policy(
                PolicyKind::ClusterNetworkPolicy
                    | PolicyKind::AdminNetworkPolicy
                    | PolicyKind::BaselineAdminNetworkPolicy
            )
        )
    }

    /// The path of the collection over all namespaces.
    pub(crate) fn path(self) -> String {
        match self.group {
            "" => format!("/api/{}/{}", self.version, self.plural),
            group => format!("/apis/{group}/{}/{}", self.version, self.plural),
        }
    }
}

const fn core(kind: Kind, plural: &'static str) -> Resource {
    Resource { kind, group: "", version: "v1", plural }
}

const fn tier(kind: PolicyKind, version: &'static str, plural: &'static str) -> Resource {
    Resource { kind: Kind::Policy(kind), group: TIER_GROUP, version, plural }
}

/// Every collection that is followed.
pub(crate) const RESOURCES: [Resource; 9] = [
    core(Kind::Namespace, "namespaces"),
    core(Kind::Pod, "pods"),
    core(Kind::Node, "nodes"),
    core(Kind::Service, "services"),
    Resource {
        kind: Kind::EndpointSlice,
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
    },
    Resource {
        kind: Kind::Policy(PolicyKind::NetworkPolicy),
        group: "networking.k8s.io",
        version: "v1",
        plural: "networkpolicies",
    },
    tier(PolicyKind::ClusterNetworkPolicy, "v1alpha2", "clusternetworkpolicies"),
    tier(PolicyKind::AdminNetworkPolicy, "v1alpha1", "adminnetworkpolicies"),
    tier(PolicyKind::BaselineAdminNetworkPolicy, "v1alpha1", "baselineadminnetworkpolicies"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::single::api_version;

    #[test]
    fn collections_are_read_in_the_version_they_are_asked_for() {
        for resource in RESOURCES {
            let version = match resource.group {
                "" => resource.version.to_owned(),
                group => format!("{group}/{}", resource.version),
            };
            assert_eq!(api_version(resource.kind), version, "{}", resource.plural);
        }
    }
}
