//! `peer.Peer`: where the agents of the cluster are, now and with every change.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::config::HubbleConfig;
use crate::flow;
use crate::proto::peer::peer_server::Peer;
use crate::proto::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest, Tls};

/// Nodes by name, each with its addresses.
pub type Nodes = BTreeMap<Arc<str>, Vec<IpAddr>>;

/// Clients that may be told of peers at a time.
const STREAMS: usize = 64;
/// Changes that wait for one.
const WAITING: usize = 64;

#[derive(Debug)]
pub(crate) struct Peers {
    config: HubbleConfig,
    port: u16,
    nodes: watch::Receiver<Arc<Nodes>>,
    streams: Arc<Semaphore>,
}

impl Peers {
    pub(crate) fn new(config: HubbleConfig, port: u16, nodes: watch::Receiver<Arc<Nodes>>) -> Self {
        Self { config, port, nodes, streams: Arc::new(Semaphore::new(STREAMS)) }
    }
}

#[tonic::async_trait]
impl Peer for Peers {
    type NotifyStream = Pin<Box<dyn Stream<Item = Result<ChangeNotification, Status>> + Send>>;

    async fn notify(&self, _: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{STREAMS} clients are told of peers already"))
        })?;
        let (changes, stream) = mpsc::channel(WAITING);
        let (config, port, mut nodes) = (self.config.clone(), self.port, self.nodes.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let mut known = BTreeMap::new();
            loop {
                let now = reached(&nodes.borrow_and_update(), port);
                for change in differences(&known, &now, &config) {
                    if changes.send(Ok(change)).await.is_err() {
                        return;
                    }
                }
                known = now;
                tokio::select! {
                    changed = nodes.changed() => if changed.is_err() { return },
                    () = changes.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Where each node's agent is; nodes without an address have none.
fn reached(nodes: &Nodes, port: u16) -> BTreeMap<Arc<str>, SocketAddr> {
    let address = |addresses: &Vec<IpAddr>| addresses.iter().copied().min_by_key(nearness);
    let place = |(name, addresses): (&Arc<str>, &Vec<IpAddr>)| {
        Some((Arc::clone(name), SocketAddr::new(address(addresses)?, port)))
    };
    nodes.iter().filter_map(place).collect()
}

/// Nodes have internal and external addresses, and it is not told which is which: private ones first, IPv4 first.
fn nearness(address: &IpAddr) -> (u8, IpAddr) {
    let rank = match address {
        IpAddr::V4(address) if address.is_private() => 0,
        IpAddr::V4(_) => 1,
        IpAddr::V6(address) if address.is_unique_local() => 2,
        IpAddr::V6(_) => 3,
    };
    (rank, *address)
}

fn differences(
    before: &BTreeMap<Arc<str>, SocketAddr>,
    now: &BTreeMap<Arc<str>, SocketAddr>,
    config: &HubbleConfig,
) -> Vec<ChangeNotification> {
    let change = |name: &Arc<str>, address: &SocketAddr, kind: ChangeNotificationType| ChangeNotification {
        name: flow::node_name(name, &config.cluster_name),
        address: address.to_string(),
        r#type: kind.into(),
        tls: config.server_name(name).map(|server_name| Tls { server_name }),
    };
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
    let gone = gone.map(|(name, address)| change(name, address, ChangeNotificationType::PeerDeleted));
    let here = now.iter().filter_map(|(name, address)| match before.get(name) {
        None => Some(change(name, address, ChangeNotificationType::PeerAdded)),
        Some(old) if old != address => Some(change(name, address, ChangeNotificationType::PeerUpdated)),
        Some(_) => None,
    });
    gone.chain(here).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[(&str, &[&str])]) -> Nodes {
        let addresses = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
        list.iter().map(|(name, all)| (Arc::from(*name), addresses(all))).collect()
    }

    #[test]
    fn every_node_is_told_once_and_then_what_changes() {
        let config = HubbleConfig::default();
        let told = |before: &Nodes, now: &Nodes| -> Vec<(String, String, i32)> {
            differences(&reached(before, 4244), &reached(now, 4244), &config)
                .into_iter()
                .map(|change| (change.name, change.address, change.r#type))
                .collect()
        };
        let text = |name: &str, address: &str, kind: i32| (name.to_owned(), address.to_owned(), kind);
        let first =
            nodes(&[("a", &["fd00::1", "198.51.100.1", "10.0.0.1"]), ("b", &["fd00::2"]), ("c", &[])]);
        assert_eq!(
            told(&Nodes::new(), &first),
            [text("a", "10.0.0.1:4244", 1), text("b", "[fd00::2]:4244", 1)]
        );
        assert_eq!(told(&first, &first), []);
        let second = nodes(&[("a", &["10.0.0.9"]), ("d", &["10.0.0.4"])]);
        assert_eq!(
            told(&first, &second),
            [text("b", "[fd00::2]:4244", 2), text("a", "10.0.0.9:4244", 3), text("d", "10.0.0.4:4244", 1)]
        );
    }
}
