//! When the rules have come to cover connections that may have passed by them: it is then that the datapath has
//! to look for such connections.

use std::collections::BTreeSet;
use std::net::IpAddr;

use redirect::{Health, LocalPods};

/// Follows the pods that the rules are told of, and what the kernel has of them.
#[derive(Debug)]
pub(crate) struct Uncovered {
    pods: LocalPods,
    /// Whether connections of observed pods may pass by: those of one that becomes isolated have to be looked for.
    bypasses: bool,
    /// The version of the pods that first covers what was not covered before.
    newly_covered: Option<u64>,
    repairs: u64,
}

impl Uncovered {
    /// `pods` are those of the installation; `bypasses` is whether some connections of observed pods pass by.
    pub(crate) fn new(pods: LocalPods, bypasses: bool) -> Self {
        Self { pods, bypasses, newly_covered: None, repairs: 0 }
    }

    /// The rules were told of these pods, as this version.
    pub(crate) fn told(&mut self, pods: LocalPods, version: u64) {
        let all =
            |pods: &LocalPods| -> BTreeSet<IpAddr> { pods.isolated.union(&pods.observed).copied().collect() };
        let (old, new) = (all(&self.pods), all(&pods));
        let was_wholly =
            |ip: &IpAddr| !self.bypasses || self.pods.isolated.contains(ip) || !pods.isolated.contains(ip);
        let as_unknown = |ip: &IpAddr| {
            !self.pods.passed.contains(ip) && self.pods.ranges.iter().any(|range| range.contains(ip))
        };
        let was_covered = |ip: &IpAddr| if old.contains(ip) { was_wholly(ip) } else { as_unknown(ip) };
        if !new.iter().all(was_covered) || !pods.ranges.is_subset(&self.pods.ranges) {
            self.newly_covered = Some(version);
        }
        self.pods = pods;
    }

    /// True once for each time that the kernel has come to cover more, or that the rules were put back.
    pub(crate) fn is_due(&mut self, health: &Health) -> bool {
        if !health.installed {
            return false;
        }
        let repaired = health.repairs > self.repairs;
        self.repairs = health.repairs;
        let covered = self.newly_covered.is_some_and(|version| health.applied_version >= version);
        if covered {
            self.newly_covered = None;
        }
        repaired || covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(observed: &[&str], ranges: &[&str]) -> LocalPods {
        LocalPods {
            observed: observed.iter().map(|ip| ip.parse().unwrap()).collect(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..LocalPods::default()
        }
    }

    fn health(applied_version: u64, repairs: u64) -> Health {
        Health { installed: true, applied_version, repairs, ..Health::default() }
    }

    #[test]
    fn a_look_is_due_when_the_kernel_covers_a_pod_outside_the_ranges_and_not_before() {
        let mut uncovered = Uncovered::new(pods(&["10.0.0.1"], &["10.1.0.0/24"]), false);
        assert!(!uncovered.is_due(&health(0, 0)));
        uncovered.told(pods(&["10.0.0.1", "10.1.0.7"], &["10.1.0.0/24"]), 1);
        assert!(!uncovered.is_due(&health(1, 0)), "inside the ranges");
        uncovered.told(pods(&["10.0.0.1", "10.0.0.2"], &["10.1.0.0/24"]), 2);
        assert!(!uncovered.is_due(&health(1, 0)), "not in the kernel yet");
        assert!(uncovered.is_due(&health(2, 0)));
        assert!(!uncovered.is_due(&health(2, 0)), "once");
        uncovered.told(pods(&["10.0.0.1", "10.0.0.2"], &["10.1.0.0/24", "10.2.0.0/24"]), 3);
        assert!(uncovered.is_due(&health(3, 0)), "a new range");
    }

    #[test]
    fn a_look_is_due_when_a_pod_comes_into_scope_or_loses_its_bypass() {
        let isolated = |list: &[&str]| LocalPods {
            isolated: list.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..pods(&[], &["10.0.0.0/24"])
        };
        let passed =
            LocalPods { passed: ["10.0.0.1".parse().unwrap()].into(), ..pods(&[], &["10.0.0.0/24"]) };
        let mut uncovered = Uncovered::new(passed, false);
        uncovered.told(isolated(&["10.0.0.1"]), 1);
        assert!(uncovered.is_due(&health(1, 0)), "it was out of scope");
        for (bypasses, due) in [(true, true), (false, false)] {
            let mut uncovered = Uncovered::new(pods(&["10.0.0.1"], &["10.0.0.0/24"]), bypasses);
            uncovered.told(isolated(&["10.0.0.1"]), 1);
            assert_eq!(uncovered.is_due(&health(1, 0)), due, "{bypasses}");
        }
    }

    #[test]
    fn a_look_is_due_after_a_repair() {
        let mut uncovered = Uncovered::new(LocalPods::default(), false);
        assert!(uncovered.is_due(&health(0, 1)));
        assert!(!uncovered.is_due(&health(0, 1)));
    }
}
