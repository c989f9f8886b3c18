//! The sets of pods' addresses, as scripts for `ipset restore`. Pure.
//!
//! ipset has no transaction over several sets. So whatever a pod becomes is added before what it was is taken
//! away, and rules ask for the stricter set first: at no moment is a pod in fewer sets than it should be.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use crate::pods::SetElements;
use crate::spec::RedirectSpec;

/// One set: its name, its type with options, and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    kind: &'static str,
    family: &'static str,
    pub(super) elements: BTreeSet<String>,
}

/// All sets of a node with these elements, the stricter first.
pub(super) fn sets(elements: &SetElements, ipv6: bool) -> Vec<Set> {
    let mut sets = Vec::new();
    let mut push = |name: &str, version: u8, kind, elements: BTreeSet<String>| {
        let family = if version == 4 { "inet" } else { "inet6" };
        sets.push(Set { name: format!("sluice-{name}{version}"), kind, family, elements });
    };
    let SetElements { isolated4, observed4, passed4, ranges4, .. } = elements;
    push("isolated", 4, "hash:ip", words(isolated4));
    push("ranges", 4, "hash:net", words(ranges4));
    push("observed", 4, "hash:ip", words(observed4));
    push("passed", 4, "hash:ip", words(passed4));
    if ipv6 {
        let SetElements { isolated6, observed6, passed6, ranges6, .. } = elements;
        push("isolated", 6, "hash:ip", words(isolated6));
        push("ranges", 6, "hash:net", words(ranges6));
        push("observed", 6, "hash:ip", words(observed6));
        push("passed", 6, "hash:ip", words(passed6));
    }
    sets
}

fn words<T: Display>(elements: &BTreeSet<T>) -> BTreeSet<String> {
    elements.iter().map(ToString::to_string).collect()
}

/// Makes every set what the spec says, whatever is there. Sets are changed by exchange, after what is new was
/// added to the old ones.
pub(crate) fn replace_script(spec: &RedirectSpec) -> String {
    let mut script = String::new();
    let sets = sets(&spec.elements(), spec.ipv6);
    for Set { name, kind, family, elements } in &sets {
        let _ = writeln!(script, "create {name} {kind} family {family} -exist");
        for element in elements {
            let _ = writeln!(script, "add {name} {element} -exist");
        }
    }
    for Set { name, kind, family, elements } in &sets {
        let next = format!("{name}.next");
        let _ = writeln!(script, "create {next} {kind} family {family} -exist\nflush {next}");
        for element in elements {
            let _ = writeln!(script, "add {next} {element}");
        }
        let _ = writeln!(script, "swap {name} {next}\ndestroy {next}");
    }
    script
}

/// Turns the sets for `old` into the sets for `new`; `None` when they are the same.
pub(crate) fn delta_script(old: &SetElements, new: &SetElements, ipv6: bool) -> Option<String> {
    let (mut added, mut taken) = (String::new(), String::new());
    for (before, after) in sets(old, ipv6).iter().zip(sets(new, ipv6)) {
        for element in after.elements.difference(&before.elements) {
            let _ = writeln!(added, "add {} {element}", after.name);
        }
        for element in before.elements.difference(&after.elements) {
            let _ = writeln!(taken, "del {} {element}", after.name);
        }
    }
    let script = added + &taken;
    (!script.is_empty()).then_some(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::LocalPods;

    fn elements(isolated: &[&str], observed: &[&str], ranges: &[&str]) -> SetElements {
        let parse = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let pods = LocalPods {
            isolated: parse(isolated),
            observed: parse(observed),
            ranges,
            ..LocalPods::default()
        };
        SetElements::of(&pods, true)
    }

    #[test]
    fn what_a_pod_becomes_is_added_before_what_it_was_is_taken_away() {
        let script = delta_script(
            &elements(&["10.0.0.2"], &["10.0.0.1", "fd00::1"], &["10.0.0.0/24"]),
            &elements(&["10.0.0.1", "fd00::1"], &["10.0.0.2"], &["10.0.0.0/23"]),
            true,
        );
        assert_eq!(
            script.unwrap(),
            "add sluice-isolated4 10.0.0.1\nadd sluice-ranges4 10.0.0.0/23\nadd sluice-observed4 10.0.0.2\n\
             add sluice-isolated6 fd00::1\ndel sluice-isolated4 10.0.0.2\ndel sluice-ranges4 10.0.0.0/24\n\
             del sluice-observed4 10.0.0.1\ndel sluice-observed6 fd00::1\n"
        );
    }

    #[test]
    fn equal_sets_need_no_script() {
        let some = elements(&["10.0.0.1"], &[], &["fd00::/64"]);
        assert_eq!(delta_script(&some, &some, true), None);
    }
}
