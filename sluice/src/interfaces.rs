//! The addresses of this node's own interfaces. Probes come from them (a bridge's gateway address, an
//! overlay's), and the Node object does not list them all.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Every address of the network namespace of this process, loopback excepted. Source: getifaddrs(3).
pub(crate) fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(addresses.filter(|ip| !ip.is_loopback()).collect())
}
