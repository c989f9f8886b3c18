//! Asks the kernel what stands behind the ports of pods' bridges.
//!
//! A port is one end of a pair, of which the other is in the pod's namespace. The kernel tells of that namespace's addresses
//! who has CAP_NET_ADMIN over it (Linux 4.20, `IFA_TARGET_NETNSID`); nothing of it is entered.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use crate::owners::{OtherEnd, Owners};

/// A port of a pods' bridge, as far as the node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The number of its other end, in the namespace of that.
    pub(crate) peer: u32,
    /// The number of that namespace in this one.
    pub(crate) namespace: i32,
}

/// Who may speak with which address, when it was as `before`. A port of which the kernel does not tell has no addresses.
pub(crate) async fn find(
    handle: &Handle,
    ports: Vec<Port>,
    before: &Owners,
) -> Result<Owners, rtnetlink::Error> {
    let here: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let node = here.iter().filter_map(address_of).filter(|address| !address.is_loopback()).collect();
    let mut ends = Vec::new();
    for Port { index, name, peer, namespace } in ports {
        let mut request = handle.address().get();
        request.message_mut().attributes.push(AddressAttribute::TargetNetNsId(namespace));
        let there: Result<Vec<AddressMessage>, _> = request.execute().try_collect().await;
        // A pod that has gone meanwhile, or a kernel that does not know the question.
        let mut there = there.unwrap_or_default();
        // One that knows nothing of namespaces answers for this one.
        there.retain(|message| message.attributes.contains(&AddressAttribute::TargetNetNsId(namespace)));
        let all: BTreeSet<IpAddr> = there.iter().filter_map(address_of).collect();
        there.retain(|message| message.header.index == peer);
        let own = there.iter().filter_map(address_of).collect();
        ends.push(OtherEnd { index, port: name, namespace, own, all });
    }
    Ok(Owners::of(ends, node, before))
}

/// An interface's own address; `IFA_ADDRESS` is its neighbour's where there is `IFA_LOCAL` (linux/if_addr.h).
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
