//! Turns what stands behind each port of a pods' bridge into rules of family `bridge`: a pod speaks with its own addresses,
//! and announces no others. Pure.
//!
//! All pods of a bridge come in by one interface of the node, and ARP and neighbour discovery believe whoever speaks
//! (RFC 826, RFC 4861). So only the port tells who it is. A port behind which an address was found speaks with nothing
//! else in that family; one behind which nothing was found yet speaks with what is nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::ruleset::{Script, families};
use crate::spec::RedirectSpec;

/// The other end of a port, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherEnd {
    /// The port's own number on the node: the older interface has the smaller one.
    pub(crate) index: u32,
    /// The port's name.
    pub(crate) port: String,
    /// The number of the pod's namespace, as the node's counts them.
    pub(crate) namespace: i32,
    /// The addresses of the port's other end itself.
    pub(crate) own: BTreeSet<IpAddr>,
    /// All addresses in its namespace.
    pub(crate) all: BTreeSet<IpAddr>,
}

/// Who may speak with which address on the bridges of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The addresses of each port.
    pub addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Ports that speak with no other address of IPv4.
    pub bound4: BTreeSet<String>,
    /// Ports that speak with no other address of IPv6.
    pub bound6: BTreeSet<String>,
    /// The node's own addresses, which are no port's.
    pub node: BTreeSet<IpAddr>,
}

impl Owners {
    /// An address that two namespaces have belongs to the one that had it before, else to that of the older port; the
    /// node's belongs to none.
    pub(crate) fn of(mut ends: Vec<OtherEnd>, node: BTreeSet<IpAddr>, before: &Self) -> Self {
        ends.sort_by_key(|end| end.index);
        let mut namespaces: BTreeMap<IpAddr, i32> = BTreeMap::new();
        for OtherEnd { port, namespace, all, .. } in &ends {
            let had = before.addresses.get(port).into_iter().flatten();
            for address in had.filter(|address| all.contains(*address)) {
                namespaces.entry(*address).or_insert(*namespace);
            }
        }
        let mut owners = Self { node, ..Self::default() };
        for OtherEnd { port, namespace, own, all, .. } in ends {
            for address in own.iter().filter(|address| is_wide(address)) {
                let bound = if address.is_ipv4() { &mut owners.bound4 } else { &mut owners.bound6 };
                bound.insert(port.clone());
            }
            let is_its = |address: &IpAddr| {
                !address.is_loopback()
                    && !owners.node.contains(address)
                    && *namespaces.entry(*address).or_insert(namespace) == namespace
            };
            let addresses: BTreeSet<IpAddr> = all.into_iter().filter(is_its).collect();
            owners.addresses.insert(port, addresses);
        }
        owners
    }

    fn taken(&self) -> BTreeSet<IpAddr> {
        self.addresses.values().flatten().chain(&self.node).copied().collect()
    }
}

/// An address by which a pod is known. A virtual machine's bridge within a pod has others.
fn is_wide(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    }
}

/// The sets, and the chains that ask them.
pub(crate) fn write(script: &mut Script, spec: &RedirectSpec) {
    let Owners { addresses, bound4, bound6, .. } = &spec.owners;
    let taken = spec.owners.taken();
    let mut set = |name: String, kind: &str, elements: Vec<String>| {
        let list = elements.join(", ");
        let elements = if list.is_empty() { String::new() } else { format!(" elements = {{ {list} }};") };
        script.line(1, &format!("set {name} {{ type {kind};{elements} }}"));
    };
    for ((_, version), bound) in families(spec).zip([bound4, bound6]) {
        let of_version = |address: &&IpAddr| address.is_ipv4() == (version == 4);
        let pairs = addresses.iter().flat_map(|(port, addresses)| {
            addresses.iter().filter(of_version).map(move |address| format!("\"{port}\" . {address}"))
        });
        let kind = format!("ipv{version}_addr");
        set(format!("owned{version}"), &format!("ifname . {kind}"), pairs.collect());
        set(
            format!("taken{version}"),
            &kind,
            taken.iter().filter(of_version).map(IpAddr::to_string).collect(),
        );
        set(format!("bound{version}"), "ifname", bound.iter().map(|port| format!("\"{port}\"")).collect());
    }
    write_arp(script);
    for (protocol, version) in families(spec) {
        script.chain(&format!("speaks_ip{version}"), None);
        ask(script, &format!("{protocol} saddr"), version);
        script.end();
    }
    if spec.ipv6 {
        write_neighbours(script, spec, &taken);
    }
}

/// The rules that lead there, before everything else that frames of pods are asked.
pub(crate) fn write_jumps(script: &mut Script, spec: &RedirectSpec, tags: &str) {
    script.rule("iifname @ports meta protocol arp jump speaks_arp", "who has which address");
    // The kernel has taken one tag off. What is behind a second one would be asked by nobody.
    script
        .rule(&format!("iifname @ports meta protocol {{ {tags} }} counter drop"), "a packet within two tags");
    // A pod is no router, and its neighbours believe one that says it is.
    script.rule(
        "iifname @ports icmpv6 type { nd-router-advert, nd-redirect } counter drop",
        "pods are no routers",
    );
    if spec.ipv6 {
        script.rule(
            "iifname @ports icmpv6 type nd-neighbor-advert jump announces_ip6",
            "who has which address",
        );
    }
    for (protocol, version) in families(spec) {
        script.rule(
            &format!("iifname @ports meta protocol {protocol} jump speaks_ip{version}"),
            "its own address",
        );
    }
}

fn write_arp(script: &mut Script) {
    script.chain("speaks_arp", None);
    // Only then the sender stands where it is looked for; and the kernel takes others for Ethernet (net/ipv4/arp.c).
    for (field, value) in [("htype", 1), ("hlen", 6), ("plen", 4)] {
        script.rule(&format!("arp {field} != {value} counter drop"), "no ARP of Ethernet");
    }
    script.rule("arp saddr ip 0.0.0.0 return", "is anybody there");
    ask(script, "arp saddr ip", 4);
    script.end();
}

fn ask(script: &mut Script, sender: &str, version: u8) {
    let nobody = if version == 6 { format!(" {sender} != ::") } else { String::new() };
    script.rule(&format!("iifname . {sender} @owned{version} return"), "its own");
    script.rule(
        &format!("iifname @bound{version}{nobody} counter drop"),
        "a pod with an address that is not its own",
    );
    script.rule(&format!("{sender} @taken{version} counter drop"), "a pod with an address of another");
}

/// What an announcement is about stands behind the ICMPv6 header (RFC 4861, section 4.4). nft has no name for it in
/// a set of pairs before version 1.0.7, so each port has a rule.
fn write_neighbours(script: &mut Script, spec: &RedirectSpec, taken: &BTreeSet<IpAddr>) {
    const TARGET: &str = "@th,64,128";
    script.chain("announces_ip6", None);
    for (port, addresses) in &spec.owners.addresses {
        if let Some(own) = numbers(addresses) {
            script.rule(&format!("iifname \"{port}\" {TARGET} {own} return"), "its own");
        }
    }
    script.rule("iifname @bound6 counter drop", "a pod with an address that is not its own");
    if let Some(taken) = numbers(taken) {
        script.rule(&format!("{TARGET} {taken} counter drop"), "a pod with an address of another");
    }
    script.end();
}

/// The addresses of IPv6 as numbers, in a set.
fn numbers(addresses: &BTreeSet<IpAddr>) -> Option<String> {
    let six = addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(format!("{:#034x}", address.to_bits())),
        IpAddr::V4(_) => None,
    });
    let list: Vec<String> = six.collect();
    (!list.is_empty()).then(|| format!("{{ {} }}", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn end(index: u32, namespace: i32, own: &[&str], others: &[&str]) -> OtherEnd {
        let own = addresses(own);
        let all = own.union(&addresses(others)).copied().collect();
        OtherEnd { index, port: format!("veth{index}"), namespace, own, all }
    }

    #[test]
    fn an_address_that_two_pods_have_is_the_older_one_s() {
        let ends = vec![end(9, 2, &["10.0.0.1", "10.0.0.9"], &[]), end(4, 1, &["10.0.0.1"], &[])];
        let owners = Owners::of(ends, BTreeSet::new(), &Owners::default());
        assert_eq!(owners.addresses["veth4"], addresses(&["10.0.0.1"]));
        assert_eq!(owners.addresses["veth9"], addresses(&["10.0.0.9"]));
        let both_of_one_pod = vec![end(4, 1, &["10.0.0.1"], &[]), end(9, 1, &[], &["10.0.0.1"])];
        let owners = Owners::of(both_of_one_pod, BTreeSet::new(), &Owners::default());
        assert_eq!(owners.addresses["veth9"], addresses(&["10.0.0.1"]));
    }

    #[test]
    fn nobody_takes_an_address_from_a_pod_that_still_has_it() {
        let had = Owners::of(vec![end(9, 2, &["10.0.0.9"], &[])], BTreeSet::new(), &Owners::default());
        let both = vec![end(4, 1, &["10.0.0.1"], &["10.0.0.9"]), end(9, 2, &["10.0.0.9"], &[])];
        let owners = Owners::of(both, BTreeSet::new(), &had);
        assert_eq!(owners.addresses["veth9"], addresses(&["10.0.0.9"]));
        assert_eq!(owners.addresses["veth4"], addresses(&["10.0.0.1"]));
        // It is free once that one has gone.
        let one = vec![end(4, 1, &["10.0.0.1"], &["10.0.0.9"])];
        assert_eq!(Owners::of(one, BTreeSet::new(), &had).addresses["veth4"].len(), 2);
    }

    #[test]
    fn the_node_s_addresses_are_no_pod_s() {
        let ends = vec![end(4, 1, &["10.0.0.1", "10.0.0.7"], &[])];
        let owners = Owners::of(ends, addresses(&["10.0.0.1"]), &Owners::default());
        assert_eq!(owners.addresses["veth4"], addresses(&["10.0.0.7"]));
        assert_eq!(owners.taken(), addresses(&["10.0.0.1", "10.0.0.7"]));
    }

    #[test]
    fn a_port_is_bound_by_a_wide_address_of_its_own_other_end() {
        for (own, others, bound) in [
            (&["10.0.0.1", "fe80::1"][..], &[][..], [true, false]),
            (&["fd00::1"], &["127.0.0.1", "::1"], [false, true]),
            (&[], &["10.0.0.1"], [false, false]),
            (&["169.254.75.10"], &[], [false, false]),
        ] {
            let owners = Owners::of(vec![end(4, 1, own, others)], BTreeSet::new(), &Owners::default());
            assert_eq!([owners.bound4.len() == 1, owners.bound6.len() == 1], bound, "{own:?} {others:?}");
            assert!(!owners.addresses["veth4"].iter().any(IpAddr::is_loopback));
        }
    }
}
