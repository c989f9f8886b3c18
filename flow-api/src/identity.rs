//! Numbers for who stands behind an address. Hubble's tools take flows with equal numbers for flows of one service.

use sha1_smol::Sha1;

/// Ends that are no pods, by the names and numbers that Hubble's tools know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    OwnNode,
    World,
    OtherNode,
}

impl Peer {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::OwnNode => 1,
            Self::World => 2,
            Self::OtherNode => 6,
        }
    }

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::OwnNode => "reserved:host",
            Self::World => "reserved:world",
            Self::OtherNode => "reserved:remote-node",
        }
    }
}

/// Numbers below are reserved.
const FIRST: u32 = 256;
/// Numbers from here on mean address blocks.
const END: u32 = 1 << 24;
/// Labels that differ between pods of one workload.
const OF_ONE_POD: [&str; 5] = [
    "k8s:pod-template-hash=",
    "k8s:controller-revision-hash=",
    "k8s:statefulset.kubernetes.io/pod-name=",
    "k8s:apps.kubernetes.io/pod-index=",
    "k8s:batch.kubernetes.io/job-completion-index=",
];

/// The number of everything with these labels, sorted: a hash, so it is the same on every node without anybody
/// giving it out. Two sets of labels may share one.
pub(crate) fn number(labels: &[String]) -> u32 {
    let mut hash = Sha1::new();
    for label in labels.iter().filter(|label| !OF_ONE_POD.iter().any(|prefix| label.starts_with(prefix))) {
        hash.update(label.as_bytes());
        hash.update(b"\0");
    }
    let [first, second, third, fourth, ..] = hash.digest().bytes();
    FIRST + u32::from_be_bytes([first, second, third, fourth]) % (END - FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[&str]) -> u32 {
        number(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn equal_labels_share_a_number_and_what_tells_pods_of_one_workload_apart_does_not_count() {
        let web = of(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]);
        assert_eq!(web, of(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]));
        assert_eq!(
            web,
            of(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:pod-template-hash=1"])
        );
        assert_ne!(web, of(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=other"]));
        assert_ne!(of(&["k8s:a=bc"]), of(&["k8s:ab=c"]));
        assert!((FIRST..END).contains(&web));
    }
}
