//! Sets of addresses as sorted ranges of numbers. IPv4 and IPv6 never match each other: 0.0.0.0/0 holds no
//! IPv6 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// A set of addresses. Inclusive ranges, sorted, disjoint and not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AddressRanges {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl AddressRanges {
    /// The union of blocks, each without its own exceptions.
    pub(crate) fn new<'a>(blocks: impl IntoIterator<Item = (&'a IpNet, &'a [IpNet])>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (cidr, except) in blocks {
            match cidr {
                IpNet::V4(net) => {
                    let holes = except.iter().filter_map(|net| match net {
                        IpNet::V4(net) => {
                            Some((net.network().to_bits().into(), net.broadcast().to_bits().into()))
                        }
                        IpNet::V6(_) => None,
                    });
                    let range = (net.network().to_bits().into(), net.broadcast().to_bits().into());
                    v4.extend(subtract(range, holes));
                }
                IpNet::V6(net) => {
                    let holes = except.iter().filter_map(|net| match net {
                        IpNet::V6(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
                        IpNet::V4(_) => None,
                    });
                    v6.extend(subtract((net.network().to_bits(), net.broadcast().to_bits()), holes));
                }
            }
        }
        let narrow = |(low, high): (u128, u128)| Some((u32::try_from(low).ok()?, u32::try_from(high).ok()?));
        Self { v4: union(v4).into_iter().filter_map(narrow).collect(), v6: union(v6).into() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The same addresses as the fewest blocks.
    pub(crate) fn blocks(&self) -> Vec<IpNet> {
        let v4 = self.v4.iter().flat_map(|(low, high)| {
            Ipv4Subnets::new(Ipv4Addr::from_bits(*low), Ipv4Addr::from_bits(*high), 0).map(IpNet::V4)
        });
        let v6 = self.v6.iter().flat_map(|(low, high)| {
            Ipv6Subnets::new(Ipv6Addr::from_bits(*low), Ipv6Addr::from_bits(*high), 0).map(IpNet::V6)
        });
        v4.chain(v6).collect()
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => holds(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => holds(&self.v6, ip.to_bits()),
        }
    }
}

fn holds<N: Ord + Copy>(ranges: &[(N, N)], number: N) -> bool {
    let after = ranges.partition_point(|(low, _)| *low <= number);
    after > 0 && number <= ranges[after - 1].1
}

/// What is left of a range without `holes`, which may overlap. In the order of the holes' number, times its logarithm:
/// whoever may write a policy must not hold up everybody's.
fn subtract(range: (u128, u128), holes: impl Iterator<Item = (u128, u128)>) -> Vec<(u128, u128)> {
    let (mut first, last) = range;
    let mut left = Vec::new();
    for (low, high) in union(holes.collect()) {
        if low > last {
            break;
        }
        if high < first {
            continue;
        }
        if low > first {
            left.push((first, low - 1));
        }
        match high.checked_add(1) {
            Some(next) if next <= last => first = next,
            _ => return left,
        }
    }
    left.push((first, last));
    left
}

fn union(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(blocks: &[(&str, &[&str])]) -> AddressRanges {
        let blocks: Vec<(IpNet, Vec<IpNet>)> = blocks
            .iter()
            .map(|(cidr, except)| {
                (cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap()).collect())
            })
            .collect();
        AddressRanges::new(blocks.iter().map(|(cidr, except)| (cidr, except.as_slice())))
    }

    fn check(set: &AddressRanges, inside: &[&str], outside: &[&str]) {
        for ip in inside {
            assert!(set.contains(ip.parse().unwrap()), "{ip} is missing");
        }
        for ip in outside {
            assert!(!set.contains(ip.parse().unwrap()), "{ip} is too much");
        }
    }

    #[test]
    fn twenty_thousand_exceptions_are_taken_out_at_once() {
        let except: Vec<IpNet> = (0..20_000u32)
            .map(|at| IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::from_bits(at << 5), 28)))
            .collect();
        let begun = std::time::Instant::now();
        let set = AddressRanges::new([(&"0.0.0.0/0".parse().unwrap(), except.as_slice())]);
        // One after the other it took more than 25 s.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
        check(
            &set,
            &["0.0.0.16", "0.0.0.31", "0.9.196.16", "255.255.255.255"],
            &["0.0.0.0", "0.0.0.15", "0.0.0.32"],
        );
    }

    #[test]
    fn the_whole_of_ipv4_holds_no_ipv6() {
        let set = ranges(&[("0.0.0.0/0", &[])]);
        check(&set, &["0.0.0.0", "255.255.255.255"], &["::", "::1", "ffff::"]);
        let set = ranges(&[("::/0", &[])]);
        check(&set, &["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], &["0.0.0.0", "10.0.0.1"]);
    }

    #[test]
    fn exceptions_leave_holes_and_another_block_may_fill_them() {
        let set =
            ranges(&[("10.0.0.0/8", &["10.1.0.0/16", "10.0.0.0/24", "10.255.255.255/32", "10.1.1.0/24"])]);
        check(
            &set,
            &["10.0.1.0", "10.0.255.255", "10.2.0.0", "10.255.255.254"],
            &[
                "9.255.255.255",
                "10.0.0.0",
                "10.0.0.255",
                "10.1.0.0",
                "10.1.1.7",
                "10.1.255.255",
                "10.255.255.255",
            ],
        );
        let set = ranges(&[("10.0.0.0/8", &["10.1.0.0/16"]), ("10.1.2.0/24", &[])]);
        check(&set, &["10.1.2.3", "10.2.0.0"], &["10.1.1.255", "10.1.3.0"]);
    }

    #[test]
    fn ranges_are_told_as_the_fewest_blocks() {
        let told = |blocks: &[(&str, &[&str])]| -> Vec<String> {
            ranges(blocks).blocks().iter().map(IpNet::to_string).collect()
        };
        assert_eq!(told(&[("10.0.0.0/25", &[]), ("10.0.0.128/25", &[])]), ["10.0.0.0/24"]);
        assert_eq!(
            told(&[("10.0.1.0/24", &[]), ("10.0.2.0/24", &[]), ("fd00::/64", &[])]),
            ["10.0.1.0/24", "10.0.2.0/24", "fd00::/64"]
        );
        assert_eq!(told(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_block_with_every_half_excepted_is_empty() {
        assert!(ranges(&[("10.0.0.0/8", &["10.0.0.0/9", "10.128.0.0/9"])]).is_empty());
        assert!(ranges(&[("::/0", &["::/1", "8000::/1"])]).is_empty());
    }
}
