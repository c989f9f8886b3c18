//! DNS names and the addresses behind them → which `domainNames` patterns each address matches.
//!
//! Patterns are numbers here: rules keep theirs when only the addresses behind a name change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::objects::{Objects, TierPeer};

/// Addresses → the patterns they match.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    /// Sorted; the number of a pattern is its place.
    patterns: Vec<Box<str>>,
    /// Numbers ascending.
    by_address: HashMap<IpAddr, Box<[u32]>>,
}

impl Domains {
    pub(crate) fn new(objects: &Objects) -> Self {
        let rules = objects.tiers.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        let patterns: BTreeSet<&str> = rules
            .flat_map(|rule| &rule.peers)
            .filter_map(|peer| match peer {
                TierPeer::Domains(patterns) => Some(patterns),
                _ => None,
            })
            .flatten()
            .map(String::as_str)
            .collect();
        let mut matching: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (number, pattern) in (0_u32..).zip(&patterns) {
            let named = objects.domains.iter().filter(|(name, _)| matches(pattern, name));
            for ip in named.flat_map(|(_, addresses)| addresses) {
                matching.entry(*ip).or_default().insert(number);
            }
        }
        Self {
            patterns: patterns.into_iter().map(Into::into).collect(),
            by_address: matching
                .into_iter()
                .map(|(ip, numbers)| (ip, numbers.into_iter().collect()))
                .collect(),
        }
    }

    pub(crate) fn number(&self, pattern: &str) -> Option<u32> {
        let place = self.patterns.binary_search_by(|own| (**own).cmp(pattern)).ok()?;
        u32::try_from(place).ok()
    }

    /// True when the address matches one of the patterns, whose numbers ascend.
    pub(crate) fn any(&self, patterns: &[u32], ip: IpAddr) -> bool {
        !patterns.is_empty()
            && self
                .by_address
                .get(&ip)
                .is_some_and(|own| own.iter().any(|number| patterns.binary_search(number).is_ok()))
    }

    /// The addresses that match other patterns here than there.
    pub(crate) fn differing<'d>(&'d self, other: &'d Self) -> impl Iterator<Item = IpAddr> + 'd {
        let all = self.by_address.keys().chain(other.by_address.keys());
        all.copied().filter(|ip| !self.of(*ip).eq(other.of(*ip)))
    }

    fn of(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&ip).into_iter().flatten().map(|number| &*self.patterns[*number as usize])
    }
}

/// `*.` stands for one label or more. Source: network-policy-api's DomainName.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern == name,
        Some(parent) => {
            let below = name.strip_suffix(parent).and_then(|below| below.strip_suffix('.'));
            below.is_some_and(|below| !below.is_empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_every_name_below_and_a_name_for_itself() {
        for (pattern, inside, outside) in [
            ("example.com", &["example.com"][..], &["www.example.com", "example.org", "myexample.com"][..]),
            (
                "*.example.com",
                &["www.example.com", "a.b.example.com"],
                &["example.com", "myexample.com", ".example.com", "example.com.evil.org"],
            ),
        ] {
            for name in inside {
                assert!(matches(pattern, name), "{pattern} {name}");
            }
            for name in outside {
                assert!(!matches(pattern, name), "{pattern} {name}");
            }
        }
    }
}
