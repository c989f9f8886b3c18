//! What is not intercepted: pods that are out of scope, and ports and ranges for pods that no policy isolates.
//!
//! An isolated pod is never passed by, whatever stands at the other end; nor is a pod that nobody has told of yet,
//! because a policy may isolate it. Every rule that lets a packet pass stands behind the questions for those.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::first_packet::{interfaces, not_borrowed, target, unknown};
use crate::pods::element_list;
use crate::ruleset::{Script, closed, families};
use crate::spec::RedirectSpec;

/// What the connections of pods that no policy isolates are not intercepted for. Such connections are not recorded,
/// and are carried by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bypass {
    /// Destination ports of TCP, UDP and SCTP, as pods see them: behind a Service the pod's port. Default none.
    pub ports: Vec<u16>,
    /// Ranges in which the other end is, such as `192.0.2.0/24`. Default none.
    pub cidrs: Vec<String>,
}

/// The same, as rules take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bypassed {
    ports: BTreeSet<u16>,
    ranges4: BTreeSet<Ipv4Net>,
    ranges6: BTreeSet<Ipv6Net>,
}

impl Bypass {
    /// What is wrong with it: the field, the value and the problem of each.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let ports = self
            .ports
            .iter()
            .filter(|port| **port == 0)
            .map(|_| ("bypass.ports", "0".to_owned(), "a port from 1 to 65535 is needed"));
        let cidrs = self.cidrs.iter().filter_map(|text| {
            let problem = match text.parse::<IpNet>() {
                Err(_) => "must be a range such as 192.0.2.0/24",
                Ok(range) if range.prefix_len() == 0 => {
                    "would pass by every connection; use interception: isolated"
                }
                Ok(_) => return None,
            };
            Some(("bypass.cidrs", format!("{text:?}"), problem))
        });
        ports.chain(cidrs).collect()
    }
}

impl Bypassed {
    /// Takes over what can be used. Ranges inside others are left out: a set refuses what overlaps.
    pub(crate) fn of(bypass: &Bypass) -> Self {
        let parsed = bypass.cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok());
        let ranges: Vec<IpNet> = parsed.map(|range| range.trunc()).collect();
        let mut bypassed = Self { ports: bypass.ports.iter().copied().collect(), ..Self::default() };
        for range in IpNet::aggregate(&ranges) {
            match range {
                IpNet::V4(range) => drop(bypassed.ranges4.insert(range)),
                IpNet::V6(range) => drop(bypassed.ranges6.insert(range)),
            }
        }
        bypassed
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The ports, in order.
    pub(crate) fn port_list(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied()
    }

    /// The ranges of one family, in order.
    pub(crate) fn range_list(&self, version: u8) -> Vec<String> {
        match version {
            4 => self.ranges4.iter().map(ToString::to_string).collect(),
            _ => self.ranges6.iter().map(ToString::to_string).collect(),
        }
    }

    fn ranges(&self, version: u8) -> String {
        if version == 4 { element_list(&self.ranges4) } else { element_list(&self.ranges6) }
    }
}

/// `daddr` is of no pod that is known to be open.
pub(crate) fn not_open(spec: &RedirectSpec, protocol: &str, version: u8) -> String {
    let observed = format!("{protocol} daddr != @observed{version}");
    if spec.passes { format!("{observed} {protocol} daddr != @passed{version}") } else { observed }
}

/// The chains for pods out of scope, and for ports and ranges. Before the chains that lead here.
pub(crate) fn write(script: &mut Script, spec: &RedirectSpec) {
    if spec.passes {
        from_passed(script, spec);
    }
    if !spec.bypass.is_empty() {
        from_observed(script, spec);
        to_observed(script, spec);
    }
}

/// The chain for what goes to an observed pod.
pub(crate) fn to_observed_chain(spec: &RedirectSpec) -> &'static str {
    let (_, observed) = closed(spec.fail_mode);
    if spec.bypass.is_empty() { target(observed) } else { "to_observed" }
}

/// Asks, in the chain of an observed pod, whether the other end or the port is passed by.
pub(crate) fn write_jump(script: &mut Script, spec: &RedirectSpec) {
    if !spec.bypass.is_empty() {
        script.rule("jump bypassed", "ports and ranges that are not intercepted");
    }
}

/// In `first_packet`, behind the known pods at the source.
pub(crate) fn write_source(script: &mut Script, spec: &RedirectSpec) {
    for (protocol, version) in families(spec).filter(|_| spec.passes) {
        script.rule(&format!("{protocol} saddr @passed{version} goto from_passed"), "from pods out of scope");
    }
}

/// In `first_packet`, behind the known pods at the destination.
pub(crate) fn write_destination(script: &mut Script, spec: &RedirectSpec) {
    for (protocol, version) in families(spec).filter(|_| spec.passes) {
        script.rule(&format!("{protocol} daddr @passed{version} accept"), "to pods out of scope");
    }
}

/// Its connections are intercepted for the sake of the other end alone.
fn from_passed(script: &mut Script, spec: &RedirectSpec) {
    let (isolated, observed) = closed(spec.fail_mode);
    script.chain("from_passed", None);
    not_borrowed(script);
    for (set, is_closed) in [("isolated", isolated), ("observed", observed)] {
        for (protocol, version) in families(spec) {
            let to = target(is_closed);
            script.rule(&format!("{protocol} daddr @{set}{version} goto {to}"), &format!("to {set} pods"));
        }
    }
    to_unknown(script, spec, &format!("goto {}", unknown(spec)));
    script.rule("accept", "between pods out of scope and others");
    script.end();
}

fn from_observed(script: &mut Script, spec: &RedirectSpec) {
    script.chain("bypassed", None);
    for (protocol, version) in families(spec) {
        script.rule(&format!("{protocol} daddr @isolated{version} return"), "to isolated pods: never");
    }
    to_unknown(script, spec, "return");
    passing(script, spec, "daddr");
    script.end();
}

/// Whoever comes here is no pod of this node that is isolated or unknown.
fn to_observed(script: &mut Script, spec: &RedirectSpec) {
    let (_, observed) = closed(spec.fail_mode);
    script.chain("to_observed", None);
    passing(script, spec, "saddr");
    script.rule(&format!("goto {}", target(observed)), "to observed pods");
    script.end();
}

/// A pod of this node that nobody has told of yet, by its address or its interface.
fn to_unknown(script: &mut Script, spec: &RedirectSpec, then: &str) {
    for (protocol, version) in families(spec) {
        let open = not_open(spec, protocol, version);
        script.rule(
            &format!("{protocol} daddr @pod_ranges{version} {open} fib daddr type != local {then}"),
            "to unknown pods",
        );
        for interface in interfaces(spec) {
            let mark = match then {
                "return" => String::new(),
                _ => format!("meta mark set meta mark or {:#x} ", spec.marks.tracked),
            };
            script.rule(&format!("{open} fib daddr oifname {interface} {mark}{then}"), "to unknown pods");
        }
    }
}

fn passing(script: &mut Script, spec: &RedirectSpec, end: &str) {
    for (protocol, version) in families(spec) {
        let ranges = spec.bypass.ranges(version);
        if !ranges.is_empty() {
            script
                .rule(&format!("{protocol} {end} {{ {ranges} }} accept"), "ranges that are not intercepted");
        }
    }
    if !spec.bypass.ports.is_empty() {
        let ports = element_list(&spec.bypass.ports);
        script.rule(&format!("th dport {{ {ports} }} accept"), "ports that are not intercepted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_and_range_that_cannot_be_used_is_told() {
        let bypass = Bypass {
            ports: vec![0, 53],
            cidrs: ["10.0.0.0/8", "10.0.0.1", "::/0", "x", "fd00::/64"].map(str::to_owned).into(),
        };
        let values: Vec<String> = bypass.problems().into_iter().map(|(_, value, _)| value).collect();
        assert_eq!(values, ["0", "\"10.0.0.1\"", "\"::/0\"", "\"x\""]);
    }

    #[test]
    fn ranges_that_overlap_become_one() {
        let cidrs = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/64", "10.0.0.0/8"].map(str::to_owned).into();
        let bypassed = Bypassed::of(&Bypass { ports: vec![9, 9], cidrs });
        assert_eq!(
            (bypassed.ranges(4), bypassed.ranges(6)),
            ("10.0.0.0/8".to_owned(), "fd00::/64".to_owned())
        );
        assert_eq!(bypassed.ports, [9].into());
    }
}
