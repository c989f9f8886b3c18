//! The lab's own connectivity, without Sluice: what a cluster without policies must do.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use lab::{
    Cluster, ClusterBuilder, Families, Family, LabError, Netns, PodSpec, Server, ServiceSpec, Topology,
    greeting_peer, wait_until,
};

const LIMIT: Duration = Duration::from_secs(5);

fn two_nodes() -> ClusterBuilder {
    Cluster::builder()
        .nodes(2)
        .pod(PodSpec::new("shop/web").on("node1").label("app", "web").port("http", 8080))
        .pod(PodSpec::new("shop/web2").on("node2").label("app", "web").port("http", 8081))
        .pod(PodSpec::new("shop/client").on("node1"))
        .pod(PodSpec::new("ops/remote").on("node2"))
        .pod(PodSpec::new("ops/idle").on("node2"))
        .pod(PodSpec::new("ops/single").on("node1").label("app", "single"))
        .service(
            ServiceSpec::new("shop/web").selector("app", "web").port("http", 80, "http").node_port(30080),
        )
        .service(
            ServiceSpec::new("ops/single").selector("app", "single").port("http", 80, 8080).node_port(30081),
        )
        .service(ServiceSpec::new("ops/nobody").selector("app", "nobody").port("http", 80, 8080))
}

#[test]
fn pods_reach_each_other_with_their_own_addresses_on_one_node_and_across() {
    let cluster = two_nodes().build().unwrap();
    let web = cluster.pod("shop/web").unwrap();
    let _server = web.serve(8080).unwrap();
    for client in ["shop/client", "ops/remote"] {
        let client = cluster.pod(client).unwrap();
        let mut stream = client.connect(web.at(8080), LIMIT).unwrap();
        let local = stream.local_addr().unwrap();
        assert_eq!(local.ip(), IpAddr::from(client.address()));
        assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), local);
        let mut stream = client.connect_from(client.at(40_000), web.at(8080), LIMIT).unwrap();
        assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), client.at(40_000));
        assert_eq!(client.connect(web.at(8081), LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    let node = cluster.node("node1").unwrap();
    let mut stream = node.connect(web.at(8080), LIMIT).unwrap();
    assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap().ip(), IpAddr::from(node.address()));
}

#[test]
fn a_cluster_ip_leads_to_every_endpoint_on_its_own_port_and_keeps_the_client_s_address() {
    let cluster = two_nodes().build().unwrap();
    let first = cluster.pod("shop/web").unwrap().serve(8080).unwrap();
    let second = cluster.pod("shop/web2").unwrap().serve(8081).unwrap();
    let client = cluster.pod("shop/client").unwrap();
    let service = cluster.cluster_ip("shop/web", 80).unwrap();
    let mut locals = BTreeSet::new();
    // A fair coin that shows one side 64 times in a row is not fair.
    for _ in 0..64 {
        let mut stream = client.connect(service, LIMIT).unwrap();
        locals.insert(stream.local_addr().unwrap());
        greeting_peer(&mut stream, LIMIT).unwrap();
    }
    assert!(!first.peers().is_empty() && !second.peers().is_empty());
    let seen: BTreeSet<SocketAddr> = first.peers().into_iter().chain(second.peers()).collect();
    assert_eq!(seen, locals);
    let nobody = cluster.cluster_ip("ops/nobody", 80).unwrap();
    assert_eq!(client.connect(nobody, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_node_port_leads_to_a_pod_from_outside_and_from_pods_and_is_masqueraded() {
    let cluster = two_nodes().build().unwrap();
    let server = cluster.pod("ops/single").unwrap().serve(8080).unwrap();
    let clients = [
        &**cluster.external(),
        &**cluster.pod("shop/client").unwrap(),
        &**cluster.pod("ops/remote").unwrap(),
        &**cluster.node("node2").unwrap(),
    ];
    for client in clients {
        for node in cluster.nodes() {
            let mut stream = client.connect(node.at(30081), LIMIT).unwrap();
            let seen = greeting_peer(&mut stream, LIMIT).unwrap();
            assert_eq!(seen.ip(), IpAddr::from(node.address()), "through {}", node.name());
        }
    }
    assert_eq!(server.peers().len(), 8);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let cluster = two_nodes().build().unwrap();
    let single = cluster.pod("ops/single").unwrap();
    let _server = single.serve(8080).unwrap();
    let mut stream = single.connect(cluster.cluster_ip("ops/single", 80).unwrap(), LIMIT).unwrap();
    assert_ne!(greeting_peer(&mut stream, LIMIT).unwrap().ip(), IpAddr::from(single.address()));
}

#[test]
fn what_leaves_the_cluster_is_masqueraded_and_the_outside_reaches_no_pod_directly() {
    let cluster = two_nodes().build().unwrap();
    let outside = cluster.external().serve(80).unwrap();
    for client in ["shop/client", "ops/remote"] {
        let client = cluster.pod(client).unwrap();
        let mut stream = client.connect(cluster.external().at(80), LIMIT).unwrap();
        let node = cluster.node(client.node()).unwrap();
        assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap().ip(), IpAddr::from(node.address()));
    }
    assert_eq!(outside.peers().len(), 2);
    let web = cluster.pod("shop/web").unwrap();
    let _server = web.serve(8080).unwrap();
    let error = cluster.external().connect(web.at(8080), LIMIT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    // Not masqueraded towards nodes: the fabric is inside the cluster.
    let node = cluster.node("node2").unwrap();
    let on_node = node.serve(9999).unwrap();
    let client = cluster.pod("shop/client").unwrap();
    greeting_peer(&mut client.connect(node.at(9999), LIMIT).unwrap(), LIMIT).unwrap();
    assert_eq!(on_node.peers()[0].ip(), IpAddr::from(client.address()));
}

#[test]
fn reverse_path_filtering_lets_legitimate_traffic_pass_in_every_mode() {
    for mode in [1, 2] {
        let cluster = two_nodes().rp_filter(mode).build().unwrap();
        let node = cluster.node("node1").unwrap();
        let veth = cluster.pod("shop/web").unwrap().veth().unwrap().to_owned();
        for device in ["all", "eth0", &veth] {
            let key = format!("net.ipv4.conf.{device}.rp_filter");
            assert_eq!(node.sysctl_value(&key).unwrap(), mode.to_string());
        }
        let web = cluster.pod("shop/web").unwrap();
        let _server = web.serve(8080).unwrap();
        for client in ["shop/client", "ops/remote"] {
            cluster.pod(client).unwrap().connect(web.at(8080), LIMIT).unwrap();
        }
        let _single = cluster.pod("ops/single").unwrap().serve(8080).unwrap();
        for node in cluster.nodes() {
            cluster.external().connect(node.at(30081), LIMIT).unwrap();
        }
    }
}

#[test]
fn host_network_pods_share_their_node() {
    let cluster = Cluster::builder()
        .pod(PodSpec::new("agent").host_network())
        .pod(PodSpec::new("web"))
        .build()
        .unwrap();
    let agent = cluster.pod("agent").unwrap();
    assert_eq!(agent.address(), cluster.node("node1").unwrap().address());
    let server = cluster.pod("web").unwrap().serve(80).unwrap();
    agent.connect(cluster.pod("web").unwrap().at(80), LIMIT).unwrap();
    assert!(wait_until(LIMIT, || server.peers().first().map(SocketAddr::ip) == Some(agent.address().into())));
}

#[test]
fn a_dual_stack_cluster_does_all_of_it_over_ipv6_too() {
    let cluster = two_nodes().dual_stack().build().unwrap();
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let serve = |netns: &Netns, port: u16| Server::start(netns.listen_on(any(port)).unwrap()).unwrap();
    let single = cluster.pod("ops/single").unwrap();
    let _server = serve(single, 8080);
    for client in ["shop/client", "ops/remote"] {
        let client = cluster.pod(client).unwrap();
        let own = IpAddr::from(client.address_6().unwrap());
        for to in
            [single.at_in(Family::V6, 8080), cluster.cluster_ip_in(Family::V6, "ops/single", 80).unwrap()]
        {
            let mut stream = client.connect(to, LIMIT).unwrap();
            let local = stream.local_addr().unwrap();
            assert_eq!(local.ip(), own);
            assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), local);
        }
        let nobody = cluster.cluster_ip_in(Family::V6, "ops/nobody", 80).unwrap();
        assert_eq!(client.connect(nobody, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    for node in cluster.nodes() {
        let mut stream = cluster.external().connect(node.at_in(Family::V6, 30081), LIMIT).unwrap();
        let seen = greeting_peer(&mut stream, LIMIT).unwrap();
        assert_eq!(seen.ip(), IpAddr::from(node.address_6().unwrap()), "through {}", node.name());
    }
    let _outside = serve(cluster.external(), 80);
    let mut stream = single.connect(cluster.external().at_in(Family::V6, 80), LIMIT).unwrap();
    let node = cluster.node("node1").unwrap();
    assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap().ip(), IpAddr::from(node.address_6().unwrap()));
    let text = cluster.manifests();
    for address in ["fd00:10:244:1::2", "fd00:10:244:2::/64", "fd00:172:18::12", "fd00:10:96::a"] {
        assert!(text.contains(address), "{address}");
    }
    // IPv4 is as it was.
    cluster.pod("ops/remote").unwrap().connect(single.at(8080), LIMIT).unwrap();
}

#[test]
fn nothing_is_left_after_drop_and_two_clusters_do_not_meet() {
    let first = two_nodes().build().unwrap();
    let second = two_nodes().build().unwrap();
    let _server = first.pod("shop/web").unwrap().serve(8080).unwrap();
    let lonely = second.pod("shop/client").unwrap();
    let error = lonely.connect(second.pod("shop/web").unwrap().at(8080), LIMIT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let names: Vec<String> = [&first, &second]
        .iter()
        .flat_map(|cluster| cluster.pods().iter().map(|pod| pod.name().to_owned()))
        .collect();
    let folders = [first.folder().to_owned(), second.folder().to_owned()];
    assert!(names.iter().all(|name| fs::exists(format!("/run/netns/{name}")).unwrap()));
    drop((first, second));
    assert!(names.iter().all(|name| !fs::exists(format!("/run/netns/{name}")).unwrap()));
    assert!(folders.iter().all(|folder| !folder.exists()));
}

#[test]
fn policies_and_labels_change_in_the_manifest_folder() {
    let cluster = two_nodes().build().unwrap();
    let path = cluster.write_policy("deny.yaml", "kind: NetworkPolicy\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "kind: NetworkPolicy\n");
    cluster.remove_policy("deny.yaml").unwrap();
    cluster.set_pod_labels("shop/web", &[("app", "other")]).unwrap();
    let names: Vec<_> =
        fs::read_dir(cluster.manifest_folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["cluster.yaml"]);
    let text = fs::read_to_string(cluster.manifest_folder().join("cluster.yaml")).unwrap();
    assert_eq!(text, cluster.manifests());
    assert!(text.contains("app: other"), "{text}");
}

#[test]
fn a_description_that_contradicts_itself_is_refused_and_leaves_nothing() {
    let twice = Cluster::builder().pod(PodSpec::new("a")).pod(PodSpec::new("default/a"));
    assert!(matches!(twice.build(), Err(LabError::Description { object, .. }) if object == "default/a"));
    let nowhere = Cluster::builder().pod(PodSpec::new("a").on("node2"));
    assert!(matches!(nowhere.build(), Err(LabError::Description { .. })));
    assert!(matches!(Cluster::builder().nodes(0).build(), Err(LabError::Description { .. })));
}

#[test]
fn a_cluster_of_two_nodes_and_six_pods_is_up_in_a_second_and_a_half() {
    let start = Instant::now();
    let cluster = two_nodes().build().unwrap();
    let up = start.elapsed();
    drop(cluster);
    println!("up {up:?}, down {:?}", start.elapsed() - up);
    // The limit is for a quiet machine; other tests share the processors here.
    assert!(up < Duration::from_millis(1500), "{up:?}");
}

/// Every shape without Sluice: pods of one node and of two, Services, the own node, and the outside.
fn everything_reaches_what_it_should(topology: Topology, families: Families) {
    let cluster = two_nodes().topology(topology).families(families).build().unwrap();
    for family in families.each() {
        let serve = |netns: &Netns, port| Server::start(netns.listen_in(*family, port).unwrap()).unwrap();
        let single = cluster.pod("ops/single").unwrap();
        let _server = serve(single, 8080);
        let service = cluster.cluster_ip_in(*family, "ops/single", 80).unwrap();
        for client in ["shop/client", "ops/remote"] {
            let client = cluster.pod(client).unwrap();
            for to in [single.at_in(*family, 8080), service] {
                let mut stream = client.connect(to, LIMIT).unwrap();
                let local = stream.local_addr().unwrap();
                assert_eq!(local.ip(), client.address_in(*family));
                assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), local, "{to}");
            }
        }
        single.connect(service, LIMIT).unwrap();
        for node in cluster.nodes() {
            node.connect(single.at_in(*family, 8080), LIMIT).unwrap();
            cluster.external().connect(node.at_in(*family, 30081), LIMIT).unwrap();
        }
        let _outside = serve(cluster.external(), 80);
        let mut stream = single.connect(cluster.external().at_in(*family, 80), LIMIT).unwrap();
        let node = cluster.node("node1").unwrap().address_in(*family);
        assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap().ip(), node);
    }
    let text = cluster.manifests();
    assert_eq!(text.contains("10.244.1."), families != Families::V6);
    assert_eq!(text.contains("fd00:10:244:1::"), families != Families::V4);
}

#[test]
fn routed_pods_reach_what_they_should_in_each_family() {
    for families in Families::ALL {
        everything_reaches_what_it_should(Topology::Routed, families);
    }
}

#[test]
fn bridged_pods_reach_what_they_should_in_each_family() {
    for families in Families::ALL {
        everything_reaches_what_it_should(Topology::Bridge, families);
    }
}

#[test]
fn pods_across_an_overlay_reach_what_they_should_in_each_family() {
    for families in Families::ALL {
        everything_reaches_what_it_should(Topology::Vxlan, families);
    }
}
