//! Ports of a pods' bridge in a real kernel: each speaks with the addresses behind it, and with no other's.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use netns::{Netns, until};
use redirect::{LocalPods, Redirect, RedirectConfig, RedirectSpec, probe};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than the second in which the kernel believes no second claim (neigh/locktime in ip-sysctl.rst).
const CLAIMED_FOR: Duration = Duration::from_millis(2_500);
const OWNER: &str = "10.9.0.2";

/// A bridge with the node's address 10.9.0.1, and a pod with 10.9.0.2 and one with 10.9.0.3 on it.
struct Cluster {
    node: Arc<Netns>,
    owner: Netns,
    liar: Netns,
}

impl Cluster {
    fn new() -> Self {
        let (node, owner, liar) = (Arc::new(Netns::new()), Netns::new(), Netns::new());
        node.run("ip link add cni0 type bridge");
        node.run("ip address add 10.9.0.1/24 dev cni0");
        node.run("ip link set cni0 up");
        for (port, pod, address) in [("owner0", &owner, OWNER), ("liar0", &liar, "10.9.0.3")] {
            node.run(&format!("ip link add {port} type veth peer name eth0 netns {}", pod.name()));
            node.run(&format!("ip link set {port} master cni0 up"));
            pod.run(&format!("ip address add {address}/24 dev eth0"));
            pod.run("ip link set eth0 up");
        }
        Self { node, owner, liar }
    }

    /// The hardware address by which the node knows the owner's address.
    fn known(&self) -> String {
        let shown = self.node.run(&format!("ip neigh show {OWNER}"));
        shown
            .split_once("lladdr ")
            .map(|(_, rest)| rest.split(' ').next().unwrap().to_owned())
            .unwrap_or_default()
    }

    /// Whether the node, after a while, takes the liar for the owner. The liar asks for the node by ARP, with that address.
    fn is_fooled(&self) -> bool {
        let begun = std::time::Instant::now();
        let liar = hardware(&self.liar);
        while begun.elapsed() < CLAIMED_FOR {
            self.liar.run("ip neigh flush all");
            self.liar.enter(|| {
                let socket = UdpSocket::bind((OWNER, 0)).unwrap();
                let _ = socket.send_to(b"HELLO", "10.9.0.1:9");
            });
            if self.known() == liar {
                return true;
            }
        }
        false
    }

    fn owned(&self) -> String {
        let listed = self.node.try_run("nft list set bridge sluice owned4");
        String::from_utf8(listed.stdout).unwrap()
    }
}

fn hardware(pod: &Netns) -> String {
    let shown = pod.run("ip -o link show eth0");
    shown.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned()
}

fn ask_for_the_owner(node: &Netns) {
    node.enter(|| UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"HELLO", (OWNER, 9)).unwrap());
}

async fn start() -> redirect::RedirectHandle {
    let capabilities = probe().await;
    let observed = [OWNER, "10.9.0.3"].map(|address| address.parse().unwrap()).into();
    let pods = LocalPods { observed, ..LocalPods::default() };
    let gate = capabilities.gate_backend().unwrap();
    let spec = RedirectSpec::new(&RedirectConfig::default(), gate, capabilities.ipv6, pods).unwrap();
    Redirect::start(spec).await.unwrap()
}

#[test]
fn the_node_believes_no_pod_of_a_bridge_that_speaks_with_the_address_of_another() {
    let cluster = Arc::new(Cluster::new());
    // Also a pod that may give itself addresses: it is the younger.
    cluster.liar.run(&format!("ip address add {OWNER}/24 dev eth0"));
    ask_for_the_owner(&cluster.node);
    assert!(cluster.is_fooled(), "without rules it does");
    cluster.node.run("ip neigh flush all");
    let (inside, node) = (cluster.clone(), cluster.node.clone());
    node.block_on(move || async move {
        let handle = start().await;
        until("the owners", PATIENCE, || inside.owned().contains("\"liar0\" . 10.9.0.3")).await;
        let owned = inside.owned();
        assert!(
            owned.contains("\"owner0\" . 10.9.0.2") && !owned.contains("\"liar0\" . 10.9.0.2"),
            "{owned}"
        );
        let owner = hardware(&inside.owner);
        until("the owner to be known", PATIENCE, || {
            ask_for_the_owner(&inside.node);
            inside.known() == owner
        })
        .await;
        assert!(!inside.is_fooled());
        assert_eq!(inside.known(), owner);
        handle.stop().await;
    });
}

#[test]
fn owners_follow_the_addresses_of_pods_and_their_going() {
    let cluster = Cluster::new();
    let node = cluster.node.clone();
    node.block_on(move || async move {
        let handle = start().await;
        until("the owner", PATIENCE, || cluster.owned().contains("\"owner0\" . 10.9.0.2")).await;
        cluster.owner.run("ip address add 10.9.0.77/24 dev eth0");
        until("its new address", PATIENCE, || cluster.owned().contains("\"owner0\" . 10.9.0.77")).await;
        cluster.node.run("ip link del owner0");
        until("its going", PATIENCE, || !cluster.owned().contains("owner0")).await;
        assert!(cluster.owned().contains("\"liar0\" . 10.9.0.3"));
        assert_eq!(handle.health().borrow().repairs, 0, "nothing of it is a stranger's doing");
        handle.stop().await;
    });
}
