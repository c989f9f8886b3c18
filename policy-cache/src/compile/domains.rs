//! DNS names and the addresses behind them → which `domainNames` patterns each address matches.
//!
//! Patterns are numbers here: rules keep theirs when only the addresses behind a name change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses → the patterns they match.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    /// By their numbers; empty where no rule uses the number.
    patterns: Box<[Arc<str>]>,
    /// Numbers ascending.
    by_address: HashMap<IpAddr, Box<[u32]>>,
}

impl Domains {
    /// From the patterns by their numbers, and the addresses behind each name.
    pub(crate) fn new(patterns: Box<[Arc<str>]>, names: &BTreeMap<String, BTreeSet<IpAddr>>) -> Self {
        let mut matching: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (number, pattern) in (0_u32..).zip(&patterns).filter(|(_, pattern)| !pattern.is_empty()) {
            let named = names.iter().filter(|(name, _)| matches(pattern, name));
            for ip in named.flat_map(|(_, addresses)| addresses) {
                matching.entry(*ip).or_default().insert(number);
            }
        }
        let by_address = matching.into_iter().map(|(ip, numbers)| (ip, numbers.into_iter().collect()));
        Self { patterns, by_address: by_address.collect() }
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
        all.copied().filter(|ip| self.of(*ip) != other.of(*ip))
    }

    fn of(&self, ip: IpAddr) -> BTreeSet<&str> {
        let numbers = self.by_address.get(&ip).into_iter().flatten();
        numbers.map(|number| &*self.patterns[*number as usize]).collect()
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
