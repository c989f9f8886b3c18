//! Fields below the top of objects that are no policies: one that looks like a field that is read, and is none that the API
//! has, is a misspelling of it. An unknown field that looks like none is left alone: it may be newer than these lists,
//! and decides nothing here.
//!
//! Source: k8s.io/api, core/v1 and discovery/v1. Fields of later versions may be missing; they need to be here only when
//! they differ from one that is read in less than three letters.

use super::near;
use super::reader::{Cursor, Findings, MAX_MEANT};

/// A part of an object: the fields that are read, and others that the API has there.
#[derive(Debug)]
pub(crate) struct Part {
    read: &'static [&'static str],
    others: &'static [&'static str],
}

pub(crate) const POD_SPEC: Part = Part {
    read: &["hostNetwork", "nodeName", "containers", "initContainers"],
    others: &[
        "activeDeadlineSeconds",
        "affinity",
        "automountServiceAccountToken",
        "dnsConfig",
        "dnsPolicy",
        "enableServiceLinks",
        "ephemeralContainers",
        "hostAliases",
        "hostIPC",
        "hostPID",
        "hostUsers",
        "hostname",
        "hostnameOverride",
        "imagePullSecrets",
        "nodeSelector",
        "os",
        "overhead",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "readinessGates",
        "resourceClaims",
        "resources",
        "restartPolicy",
        "runtimeClassName",
        "schedulerName",
        "schedulingGates",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "terminationGracePeriodSeconds",
        "tolerations",
        "topologySpreadConstraints",
        "volumes",
    ],
};
pub(crate) const CONTAINER: Part = Part {
    read: &["ports", "restartPolicy"],
    others: &[
        "args",
        "command",
        "env",
        "envFrom",
        "image",
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "name",
        "readinessProbe",
        "resizePolicy",
        "resources",
        "restartPolicyRules",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "tty",
        "volumeDevices",
        "volumeMounts",
        "workingDir",
    ],
};
pub(crate) const CONTAINER_PORT: Part =
    Part { read: &["name", "containerPort", "protocol"], others: &["hostPort", "hostIP"] };
pub(crate) const POD_STATUS: Part = Part {
    read: &["phase", "podIP", "podIPs", "hostIP", "hostIPs", "conditions"],
    others: &[
        "allocatedResources",
        "containerStatuses",
        "ephemeralContainerStatuses",
        "extendedResourceClaimStatus",
        "initContainerStatuses",
        "message",
        "nominatedNodeName",
        "observedGeneration",
        "qosClass",
        "reason",
        "resize",
        "resourceClaimStatuses",
        "resources",
        "startTime",
    ],
};
pub(crate) const NODE_SPEC: Part = Part {
    read: &["podCIDR", "podCIDRs"],
    others: &["configSource", "externalID", "providerID", "taints", "unschedulable"],
};
pub(crate) const NODE_STATUS: Part = Part {
    read: &["addresses"],
    others: &[
        "allocatable",
        "capacity",
        "conditions",
        "config",
        "daemonEndpoints",
        "features",
        "images",
        "nodeInfo",
        "phase",
        "runtimeHandlers",
        "volumesAttached",
        "volumesInUse",
    ],
};
pub(crate) const SERVICE_SPEC: Part = Part {
    read: &["clusterIP", "clusterIPs", "externalIPs", "externalTrafficPolicy", "ports", "selector"],
    others: &[
        "allocateLoadBalancerNodePorts",
        "externalName",
        "healthCheckNodePort",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamily",
        "ipFamilyPolicy",
        "loadBalancerClass",
        "loadBalancerIP",
        "loadBalancerSourceRanges",
        "publishNotReadyAddresses",
        "sessionAffinity",
        "sessionAffinityConfig",
        "topologyKeys",
        "trafficDistribution",
        "type",
    ],
};
pub(crate) const SERVICE_PORT: Part =
    Part { read: &["name", "protocol", "port", "targetPort", "nodePort"], others: &["appProtocol"] };
pub(crate) const ENDPOINT: Part = Part {
    read: &["addresses", "conditions"],
    others: &["deprecatedTopology", "hints", "hostname", "nodeName", "targetRef", "topology", "zone"],
};
pub(crate) const ENDPOINT_CONDITIONS: Part = Part { read: &["ready"], others: &["serving", "terminating"] };
pub(crate) const SLICE_PORT: Part = Part { read: &["name", "protocol", "port"], others: &["appProtocol"] };

/// Reports the fields of a part that are misspelt.
pub(crate) fn report(at: &Cursor, part: &Part, findings: &mut Findings) {
    if !findings.strict {
        return;
    }
    let is_known = |key: &str| part.read.contains(&key) || part.others.contains(&key);
    let mut missing = None;
    for (key, field) in at.entries().filter(|(key, _)| !is_known(key)).take(MAX_MEANT) {
        let missing = missing.get_or_insert_with(|| {
            part.read.iter().copied().filter(|name| at.get(name).is_none()).collect::<Vec<_>>()
        });
        if let Some(meant) = near::meant(key, missing.iter().copied()) {
            findings.unknown(&field, Some(meant));
        }
    }
}
