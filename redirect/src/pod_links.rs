//! Finds the interfaces that lead to this node's known pods, by asking the kernel for the way to each.
//!
//! What comes in there comes from a pod, whatever its source address says. An interface that leads elsewhere as
//! well, by a gateway or a default route, is none of them: other machines' packets come in there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, IpVersion};

use crate::pods::LocalPods;
use crate::routes::{RouteError, Routes, towards};

/// `RT_TABLE_MAIN`, linux/rtnetlink.h.
const MAIN: u32 = 254;

/// The names of the interfaces, for the addresses of families that the node has.
pub(crate) async fn find(
    routes: &Routes,
    pods: &LocalPods,
    ipv6: bool,
) -> Result<BTreeSet<String>, RouteError> {
    let mut indexes = BTreeSet::new();
    for address in pods.isolated.iter().chain(&pods.observed).map(IpAddr::to_canonical) {
        if address.is_ipv4() || ipv6 {
            indexes.extend(way_to(routes.handle(), address).await);
        }
    }
    if indexes.is_empty() {
        return Ok(BTreeSet::new());
    }
    for version in [IpVersion::V4, IpVersion::V6].into_iter().take(if ipv6 { 2 } else { 1 }) {
        for route in routes.routes(version, MAIN).await?.iter().filter(|route| leads_on(route)) {
            for index in interfaces(route) {
                indexes.remove(&index);
            }
        }
    }
    let names = names(routes.handle()).await?;
    let usable = |name: &&String| !name.contains(|c: char| c.is_control() || "\"\\*".contains(c));
    Ok(indexes.iter().filter_map(|index| names.get(index)).filter(usable).cloned().collect())
}

/// The interface by which the kernel would send to this address, when that is its last hop. An address without
/// a way is no pod's yet.
async fn way_to(handle: &Handle, address: IpAddr) -> Option<u32> {
    let mut answers = Box::pin(handle.route().get(towards(address)).execute());
    let route = answers.try_next().await.ok()??;
    let is_last_hop = route.header.kind == RouteType::Unicast && !has_gateway(&route);
    interfaces(&route).next().filter(|_| is_last_hop)
}

fn has_gateway(route: &RouteMessage) -> bool {
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    };
    route.attributes.iter().any(is_gateway)
}

fn leads_on(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Unicast
        && (route.header.destination_prefix_length == 0 || has_gateway(route))
}

fn interfaces(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    })
}

async fn names(handle: &Handle) -> Result<BTreeMap<u32, String>, RouteError> {
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| RouteError::of("list interfaces", error))?;
    let name = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    };
    Ok(links
        .iter()
        .filter_map(|link| Some((link.header.index, link.attributes.iter().find_map(name)?)))
        .collect())
}
