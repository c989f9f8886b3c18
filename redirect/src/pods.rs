//! The addresses of this node's pods, and the change from one set of them to another as one transaction.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ruleset::TABLE;

/// Addresses of the pods on this node whose connections are intercepted.
///
/// An address in both sets counts as isolated. IPv4-mapped IPv6 addresses count as IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPods {
    /// Pods that at least one policy isolates.
    pub isolated: BTreeSet<IpAddr>,
    /// The other pods: their connections are recorded.
    pub observed: BTreeSet<IpAddr>,
    /// Pods out of scope: their connections are intercepted only where the other end asks for it. Only where the
    /// spec says that there may be such pods; an address that is in another set as well is not one of them.
    pub passed: BTreeSet<IpAddr>,
    /// The ranges this node gives its pods addresses from: an address in them that is in neither set belongs
    /// to a pod that is not known yet. None may overlap another.
    pub ranges: BTreeSet<IpNet>,
}

/// The elements of the table's sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetElements {
    pub(crate) isolated4: BTreeSet<Ipv4Addr>,
    pub(crate) isolated6: BTreeSet<Ipv6Addr>,
    pub(crate) observed4: BTreeSet<Ipv4Addr>,
    pub(crate) observed6: BTreeSet<Ipv6Addr>,
    pub(crate) passed4: BTreeSet<Ipv4Addr>,
    pub(crate) passed6: BTreeSet<Ipv6Addr>,
    pub(crate) ranges4: BTreeSet<Ipv4Net>,
    pub(crate) ranges6: BTreeSet<Ipv6Net>,
    pub(crate) links: BTreeSet<String>,
}

/// The nft transaction that turns the sets for `old` into the sets for `new`; `None` when they are the same.
pub fn delta(old: &LocalPods, new: &LocalPods) -> Option<String> {
    delta_of(&SetElements::of(old, true), &SetElements::of(new, true))
}

pub(crate) fn delta_of(old: &SetElements, new: &SetElements) -> Option<String> {
    let mut script = String::new();
    change(&mut script, "isolated4", &old.isolated4, &new.isolated4);
    change(&mut script, "isolated6", &old.isolated6, &new.isolated6);
    change(&mut script, "observed4", &old.observed4, &new.observed4);
    change(&mut script, "observed6", &old.observed6, &new.observed6);
    change(&mut script, "passed4", &old.passed4, &new.passed4);
    change(&mut script, "passed6", &old.passed6, &new.passed6);
    change_ranges(&mut script, "pod_ranges4", &old.ranges4, &new.ranges4);
    change_ranges(&mut script, "pod_ranges6", &old.ranges6, &new.ranges6);
    for (verb, names) in
        [("add", new.links.difference(&old.links)), ("delete", old.links.difference(&new.links))]
    {
        line(&mut script, verb, "pod_links", name_list(names));
    }
    (!script.is_empty()).then_some(script)
}

impl SetElements {
    /// Sorts the pods' addresses into the sets; IPv6 addresses are left out unless the node has IPv6.
    pub(crate) fn of(pods: &LocalPods, ipv6: bool) -> Self {
        let mut elements = Self::default();
        for address in &pods.isolated {
            match address.to_canonical() {
                IpAddr::V4(address) => {
                    elements.isolated4.insert(address);
                }
                IpAddr::V6(address) if ipv6 => {
                    elements.isolated6.insert(address);
                }
                IpAddr::V6(_) => {}
            }
        }
        for address in &pods.observed {
            match address.to_canonical() {
                IpAddr::V4(address) if !elements.isolated4.contains(&address) => {
                    elements.observed4.insert(address);
                }
                IpAddr::V6(address) if ipv6 && !elements.isolated6.contains(&address) => {
                    elements.observed6.insert(address);
                }
                _ => {}
            }
        }
        for address in &pods.passed {
            match address.to_canonical() {
                IpAddr::V4(address)
                    if !elements.isolated4.contains(&address) && !elements.observed4.contains(&address) =>
                {
                    elements.passed4.insert(address);
                }
                IpAddr::V6(address)
                    if ipv6
                        && !elements.isolated6.contains(&address)
                        && !elements.observed6.contains(&address) =>
                {
                    elements.passed6.insert(address);
                }
                _ => {}
            }
        }
        for range in &pods.ranges {
            match range {
                IpNet::V4(range) => drop(elements.ranges4.insert(range.trunc())),
                IpNet::V6(range) if ipv6 => drop(elements.ranges6.insert(range.trunc())),
                IpNet::V6(_) => {}
            }
        }
        elements
    }
}

/// A set's elements as nft writes them between braces.
pub(crate) fn element_list<A: Display>(addresses: impl IntoIterator<Item = A>) -> String {
    addresses.into_iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

/// Names of interfaces as nft writes them between braces.
pub(crate) fn name_list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn change<A: Ord + Display>(script: &mut String, set: &str, old: &BTreeSet<A>, new: &BTreeSet<A>) {
    // Both lines of one set are in one transaction with all others: a pod that becomes isolated is at no
    // moment in neither set.
    for (verb, addresses) in [("add", new.difference(old)), ("delete", old.difference(new))] {
        line(script, verb, set, element_list(addresses));
    }
}

/// Ranges that go make room first: the kernel refuses one that overlaps another. Older ones (5.10) and their nft refuse it
/// within a transaction as well; the whole table is replaced then.
fn change_ranges<R: Ord + Display>(script: &mut String, set: &str, old: &BTreeSet<R>, new: &BTreeSet<R>) {
    for (verb, ranges) in [("delete", old.difference(new)), ("add", new.difference(old))] {
        line(script, verb, set, element_list(ranges));
    }
}

fn line(script: &mut String, verb: &str, set: &str, list: String) {
    if !list.is_empty() {
        script.push_str(&format!("{verb} element inet {TABLE} {set} {{ {list} }}\n"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pods(isolated: &[&str], observed: &[&str]) -> LocalPods {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        LocalPods { isolated: parse(isolated), observed: parse(observed), ..LocalPods::default() }
    }

    #[test]
    fn equal_sets_need_no_transaction() {
        let some = pods(&["10.0.0.1", "fd00::1"], &["10.0.0.2"]);
        assert_eq!(delta(&some, &some), None);
        assert_eq!(delta(&LocalPods::default(), &LocalPods::default()), None);
        assert_eq!(delta(&pods(&["10.0.0.1"], &["10.0.0.1"]), &pods(&["::ffff:10.0.0.1"], &[])), None);
    }

    #[test]
    fn a_pod_that_becomes_isolated_moves_in_one_transaction() {
        let script =
            delta(&pods(&[], &["10.0.0.1", "fd00::1"]), &pods(&["10.0.0.1", "fd00::1"], &[])).unwrap();
        assert_eq!(
            script,
            "add element inet sluice isolated4 { 10.0.0.1 }\n\
             add element inet sluice isolated6 { fd00::1 }\n\
             delete element inet sluice observed4 { 10.0.0.1 }\n\
             delete element inet sluice observed6 { fd00::1 }\n"
        );
    }

    #[test]
    fn a_range_that_goes_makes_room_for_one_that_overlaps_it() {
        let of = |range: &str| LocalPods { ranges: [range.parse().unwrap()].into(), ..LocalPods::default() };
        assert_eq!(
            delta(&of("10.0.0.0/16"), &of("10.0.1.0/24")).unwrap(),
            "delete element inet sluice pod_ranges4 { 10.0.0.0/16 }\n\
             add element inet sluice pod_ranges4 { 10.0.1.0/24 }\n"
        );
    }

    #[test]
    fn ipv6_addresses_are_left_out_on_a_node_without_ipv6() {
        let elements = SetElements::of(&pods(&["fd00::1", "10.0.0.1"], &["fd00::2"]), false);
        assert_eq!(
            elements,
            SetElements { isolated4: BTreeSet::from([[10, 0, 0, 1].into()]), ..SetElements::default() }
        );
    }

    /// The naive model of nft: sets by name, `add` and `delete` line by line, a missing element is an error, and
    /// so is a range that overlaps another.
    fn model(
        mut sets: BTreeMap<String, BTreeSet<IpNet>>,
        script: &str,
    ) -> Result<BTreeMap<String, BTreeSet<IpNet>>, String> {
        for line in script.lines() {
            let words = line.replace([',', '{', '}'], " ");
            let words: Vec<&str> = words.split_whitespace().collect();
            let [verb, "element", "inet", "sluice", set, addresses @ ..] = words.as_slice() else {
                return Err(format!("unknown line {line}"));
            };
            let set = sets.entry((*set).to_owned()).or_default();
            for address in addresses {
                let address = element(address).ok_or_else(|| format!("no address: {address}"))?;
                match *verb {
                    "add" if set.iter().any(|other| overlap(other, &address)) => {
                        return Err(format!("{address} overlaps"));
                    }
                    "add" => drop(set.insert(address)),
                    "delete" if set.remove(&address) => {}
                    _ => return Err(format!("cannot {verb} {address}")),
                }
            }
        }
        sets.retain(|_, addresses| !addresses.is_empty());
        Ok(sets)
    }

    fn element(text: &str) -> Option<IpNet> {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    }

    fn overlap(one: &IpNet, other: &IpNet) -> bool {
        one != other && (one.contains(other) || other.contains(one))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0_u8..12).prop_map(|n| IpAddr::from([10, 0, 0, n])),
            (0_u16..12).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
            (0_u8..12).prop_map(|n| IpAddr::from(Ipv4Addr::from([10, 0, 0, n]).to_ipv6_mapped())),
        ]
    }

    fn any_pods() -> impl Strategy<Value = LocalPods> {
        let set = || proptest::collection::btree_set(address(), 0..12);
        (set(), set(), set(), ranges()).prop_map(|(isolated, observed, passed, ranges)| LocalPods {
            isolated,
            observed,
            passed,
            ranges,
        })
    }

    /// Disjoint ranges: of each two that would overlap, one.
    fn ranges() -> impl Strategy<Value = BTreeSet<IpNet>> {
        let range = (0_u8..4, 22_u8..26).prop_map(|(third, length)| {
            IpNet::new([10, 0, third, 0].into(), length).map(|range| range.trunc()).unwrap()
        });
        let range = prop_oneof![
            range,
            (0_u16..3).prop_map(|n| { IpNet::new([0xfd00, n, 0, 0, 0, 0, 0, 0].into(), 64).unwrap() })
        ];
        proptest::collection::vec(range, 0..4).prop_map(|list| {
            let mut ranges: BTreeSet<IpNet> = BTreeSet::new();
            for range in list {
                if !ranges.iter().any(|other| overlap(other, &range)) {
                    ranges.insert(range);
                }
            }
            ranges
        })
    }

    /// What the sets must hold, written the slow way.
    fn expected(pods: &LocalPods) -> BTreeMap<String, BTreeSet<IpNet>> {
        let mut sets: BTreeMap<String, BTreeSet<IpNet>> = BTreeMap::new();
        let isolated: BTreeSet<IpAddr> = pods.isolated.iter().map(IpAddr::to_canonical).collect();
        let observed: BTreeSet<IpAddr> =
            pods.observed.iter().map(IpAddr::to_canonical).filter(|a| !isolated.contains(a)).collect();
        let passed: BTreeSet<IpAddr> = pods
            .passed
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|a| !isolated.contains(a) && !observed.contains(a))
            .collect();
        for (name, addresses) in [("isolated", isolated), ("observed", observed), ("passed", passed)] {
            for address in addresses {
                let family = if address.is_ipv4() { 4 } else { 6 };
                sets.entry(format!("{name}{family}")).or_default().insert(address.into());
            }
        }
        for range in &pods.ranges {
            let family = if matches!(range, IpNet::V4(_)) { 4 } else { 6 };
            sets.entry(format!("pod_ranges{family}")).or_default().insert(*range);
        }
        sets
    }

    proptest! {
        #[test]
        fn applying_the_delta_to_the_old_sets_gives_the_new(old in any_pods(), new in any_pods()) {
            let script = delta(&old, &new).unwrap_or_default();
            prop_assert_eq!(model(expected(&old), &script), Ok(expected(&new)));
        }
    }
}
