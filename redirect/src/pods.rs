//! The addresses of this node's pods, and the change from one set of them to another as one transaction.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
}

/// The elements of the table's four sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetElements {
    pub(crate) isolated4: BTreeSet<Ipv4Addr>,
    pub(crate) isolated6: BTreeSet<Ipv6Addr>,
    pub(crate) observed4: BTreeSet<Ipv4Addr>,
    pub(crate) observed6: BTreeSet<Ipv6Addr>,
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
        elements
    }
}

/// A set's elements as nft writes them between braces.
pub(crate) fn element_list<A: Display>(addresses: impl IntoIterator<Item = A>) -> String {
    addresses.into_iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

fn change<A: Ord + Display>(script: &mut String, set: &str, old: &BTreeSet<A>, new: &BTreeSet<A>) {
    // Both lines of one set are in one transaction with all others: a pod that becomes isolated is at no
    // moment in neither set.
    for (verb, addresses) in [("add", new.difference(old)), ("delete", old.difference(new))] {
        let list = element_list(addresses);
        if !list.is_empty() {
            script.push_str(&format!("{verb} element inet {TABLE} {set} {{ {list} }}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pods(isolated: &[&str], observed: &[&str]) -> LocalPods {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        LocalPods { isolated: parse(isolated), observed: parse(observed) }
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
    fn ipv6_addresses_are_left_out_on_a_node_without_ipv6() {
        let elements = SetElements::of(&pods(&["fd00::1", "10.0.0.1"], &["fd00::2"]), false);
        assert_eq!(
            elements,
            SetElements { isolated4: BTreeSet::from([[10, 0, 0, 1].into()]), ..SetElements::default() }
        );
    }

    /// The naive model of nft: sets by name, `add` and `delete` line by line, a missing element is an error.
    fn model(
        mut sets: BTreeMap<String, BTreeSet<IpAddr>>,
        script: &str,
    ) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, String> {
        for line in script.lines() {
            let words = line.replace([',', '{', '}'], " ");
            let words: Vec<&str> = words.split_whitespace().collect();
            let [verb, "element", "inet", "sluice", set, addresses @ ..] = words.as_slice() else {
                return Err(format!("unknown line {line}"));
            };
            let set = sets.entry((*set).to_owned()).or_default();
            for address in addresses {
                let address: IpAddr = address.parse().map_err(|_| format!("no address: {address}"))?;
                match *verb {
                    "add" => drop(set.insert(address)),
                    "delete" if set.remove(&address) => {}
                    _ => return Err(format!("cannot {verb} {address}")),
                }
            }
        }
        sets.retain(|_, addresses| !addresses.is_empty());
        Ok(sets)
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
        (set(), set()).prop_map(|(isolated, observed)| LocalPods { isolated, observed })
    }

    /// What the sets must hold, written the slow way.
    fn expected(pods: &LocalPods) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let mut sets: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        let isolated: BTreeSet<IpAddr> = pods.isolated.iter().map(IpAddr::to_canonical).collect();
        let observed: BTreeSet<IpAddr> =
            pods.observed.iter().map(IpAddr::to_canonical).filter(|a| !isolated.contains(a)).collect();
        for (name, addresses) in [("isolated", isolated), ("observed", observed)] {
            for address in addresses {
                let family = if address.is_ipv4() { 4 } else { 6 };
                sets.entry(format!("{name}{family}")).or_default().insert(address);
            }
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
