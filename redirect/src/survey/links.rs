//! The interfaces, and the routing rules that ask for a mark.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::{ENTRIES, plain};
use crate::routes::{RouteError, Routes};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// The bridge or other device it is a port of, by name.
    pub master: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A Linux bridge.
    Bridge,
    /// An end of a pair, as pods have.
    Veth,
    /// An overlay's device.
    Vxlan,
    /// Anything else.
    Other,
}

/// A routing rule that asks for a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// 4 or 6.
    pub family: u8,
    /// Lower ones are asked first.
    pub priority: u32,
    /// The mark.
    pub mark: u32,
    /// The bits of the mark that are looked at.
    pub mask: u32,
    /// Where it leads.
    pub table: u32,
    /// Whether Sluice wrote it.
    pub ours: bool,
}

pub(super) async fn read() -> Result<(Vec<Link>, Vec<MarkRule>), RouteError> {
    let routes = Routes::open()?;
    let mut rules = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        // A node without IPv6 has no such rules, and says so with an error.
        rules.extend(routes.mark_rules(version).await.unwrap_or_default());
    }
    rules.truncate(ENTRIES);
    Ok((links(&routes).await?, rules))
}

async fn links(routes: &Routes) -> Result<Vec<Link>, RouteError> {
    let refused = |error| RouteError::of("list interfaces", error);
    let messages: Vec<_> = routes.handle().link().get().execute().try_collect().await.map_err(refused)?;
    let addresses: Vec<_> = routes.handle().address().get().execute().try_collect().await.map_err(refused)?;
    let name_of = |index: u32| {
        let message = messages.iter().find(|message| message.header.index == index)?;
        message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(plain(name)),
            _ => None,
        })
    };
    let links = messages.iter().take(ENTRIES).filter_map(|message| {
        let master = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => name_of(*index),
            _ => None,
        });
        let kind = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(kind_of),
            _ => None,
        });
        let own = addresses.iter().filter(|address| address.header.index == message.header.index);
        Some(Link {
            name: name_of(message.header.index)?,
            kind: kind.unwrap_or(LinkKind::Other),
            master,
            addresses: own
                .filter_map(|address| {
                    address.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
                })
                .collect(),
        })
    });
    Ok(links.collect())
}

fn kind_of(info: &LinkInfo) -> Option<LinkKind> {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
        LinkInfo::Kind(InfoKind::Veth) => Some(LinkKind::Veth),
        LinkInfo::Kind(InfoKind::Vxlan) => Some(LinkKind::Vxlan),
        _ => None,
    }
}
