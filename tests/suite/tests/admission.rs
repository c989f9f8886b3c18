//! What connect(2) returns, and what is recorded of it: denied, refused, unreachable, swallowed.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use lab::{Cluster, ClusterBuilder, Netns, PodSpec, ServiceSpec, patiently, wait_until};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::Socket;
use suite::carried::{Carried, accept};
use suite::enforced::{Enforced, LIMIT, told};
use suite::packets::{Hole, SynCount};
use suite::syn::SynSender;

/// A Linux client sends its first SYN again after a second (RFC 6298, section 2): whatever is quicker met no
/// lost packet.
const ONE_STALL: Duration = Duration::from_millis(900);

const DENY_INGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: closed, namespace: shop }
spec:
  podSelector: { matchLabels: { app: closed } }
  policyTypes: [Ingress]
";

const DENY_EGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: jailed, namespace: shop }
spec:
  podSelector: { matchLabels: { app: jailed } }
  policyTypes: [Egress]
";

const POLICIES: [(&str, &str); 2] = [("ingress.yaml", DENY_INGRESS), ("egress.yaml", DENY_EGRESS)];

fn one_node() -> ClusterBuilder {
    Cluster::builder()
        .pod(PodSpec::new("shop/client"))
        .pod(PodSpec::new("shop/web").label("app", "web"))
        .pod(PodSpec::new("shop/closed").label("app", "closed"))
        .pod(PodSpec::new("shop/jailed").label("app", "jailed"))
        .service(ServiceSpec::new("shop/web").selector("app", "web").port("http", 80, 8080))
        .service(ServiceSpec::new("shop/closed").selector("app", "closed").port("http", 80, 8080))
}

/// A socket of a pod whose port is known, whatever becomes of it.
fn caller(pod: &lab::Pod) -> (Socket, SocketAddr) {
    let socket = pod.bound(pod.at(0)).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, local)
}

/// Connects, and tells how that went and how long it took.
fn dial(socket: &Socket, to: SocketAddr, limit: Duration) -> (io::Result<()>, Duration) {
    let start = Instant::now();
    let outcome = socket.connect_timeout(&to.into(), patiently(limit));
    (outcome, start.elapsed())
}

fn assert_nobody_comes(listener: &std::net::TcpListener) {
    assert!(accept(listener, Duration::ZERO).is_none(), "the server accepted a connection");
}

/// Before the handshake only the queue knows which Service was dialled, and not on every kernel
/// (CONFIG_NETFILTER_NETLINK_GLUE_CT).
fn queue_tells_what_was_dialled(cluster: &Enforced) -> bool {
    !cluster.sluice("node1").stderr().contains("the queue tells no conntrack tuples")
}

fn policies(side: &Value) -> Vec<&str> {
    side["policies"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_denied_connect_fails_before_any_handshake_and_the_server_hears_nothing() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let (closed, web) = (cluster.pod("shop/closed"), cluster.pod("shop/web"));
    let listeners = [closed.listen(8080).unwrap(), web.listen(8080).unwrap()];
    let taps = [SynCount::start(closed), SynCount::start(web)];
    let service = cluster.cluster_ip("shop/closed", 80).unwrap();
    let web_service = cluster.cluster_ip("shop/web", 80).unwrap();
    let cases = [
        ("shop/client", closed.at(8080), "ingress", "NetworkPolicy/shop/closed"),
        ("shop/client", service, "ingress", "NetworkPolicy/shop/closed"),
        ("shop/jailed", web.at(8080), "egress", "NetworkPolicy/shop/jailed"),
        ("shop/jailed", web_service, "egress", "NetworkPolicy/shop/jailed"),
        ("shop/jailed", cluster.external().at(80), "egress", "NetworkPolicy/shop/jailed"),
    ];
    let mut fastest = Duration::MAX;
    for (from, to, side, policy) in cases {
        let (socket, local) = caller(cluster.pod(from));
        let (outcome, took) = dial(&socket, to, LIMIT);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{from} to {to}");
        assert!(took < patiently(ONE_STALL), "{from} to {to}: {took:?}");
        fastest = fastest.min(took);

        let record = cluster.last_record("node1", local);
        assert_eq!(told(&record), "connection-denied policy-denied");
        assert_eq!(record["sluice"][side]["verdict"], "deny");
        assert_eq!(policies(&record["sluice"][side]), [policy]);
        assert_eq!(record["event"]["reason"], format!("{side} no-rule-matched"));
        assert_eq!(cluster.records_of("node1", local).len(), 1, "no started record");
        if [service, web_service].contains(&to) {
            assert_eq!(record["destination"]["port"], 8080, "the backend's");
            let told = record["destination"]["service"]["ip"].as_str().map(str::to_owned);
            assert_eq!(told, queue_tells_what_was_dialled(&cluster).then(|| to.ip().to_string()));
        }
    }
    assert!(fastest < patiently(Duration::from_millis(100)), "{fastest:?}");
    listeners.iter().for_each(assert_nobody_comes);
    assert_eq!(taps.map(|tap| tap.count()), [0, 0]);
    assert_eq!(cluster.metric("node1", "sluice_connections_denied_total{side=\"ingress\"}"), 2.0);
    assert_eq!(cluster.metric("node1", "sluice_connections_denied_total{side=\"egress\"}"), 3.0);
    assert_eq!(cluster.metric("node1", "sluice_connections_opened_total"), 0.0);
}

#[test]
fn a_refused_client_may_try_again_at_once_from_the_same_port() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let client = cluster.pod("shop/client");
    for (to, told_of) in [
        (cluster.pod("shop/closed").at(8080), "connection-denied policy-denied"),
        (cluster.pod("shop/web").at(8080), "connection-failed refused"),
    ] {
        let (first, local) = caller(client);
        drop(first);
        for _ in 0..100 {
            let socket = client.bound(local).unwrap();
            let (outcome, took) = dial(&socket, to, LIMIT);
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert!(took < patiently(ONE_STALL), "{took:?}");
        }
        // A client knows of its refusal before that is recorded.
        assert!(wait_until(LIMIT, || cluster.records_of("node1", local).len() >= 100), "{to}");
        let records = cluster.records_of("node1", local);
        assert_eq!(records.iter().map(told).collect::<Vec<_>>(), vec![told_of; 100]);
    }
}

/// What has become of a connect() that did not wait: `None` while it is under way.
fn outcome(socket: &Socket) -> Option<Result<(), ErrorKind>> {
    match socket.take_error().unwrap() {
        Some(error) => Some(Err(error.kind())),
        None => socket.peer_addr().is_ok().then_some(Ok(())),
    }
}

#[test]
fn however_many_attempts_wait_to_be_read_each_is_decided_and_recorded_once() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let (client, closed, web) =
        (cluster.pod("shop/client"), cluster.pod("shop/closed"), cluster.pod("shop/web"));
    let listener = web.listen(8080).unwrap();
    let sluice = Pid::from_raw(cluster.sluice("node1").pid().try_into().unwrap());
    let cases = [(closed, Err(ErrorKind::ConnectionRefused)), (web, Ok(()))];
    // Of few the gate itself decides, of many its tasks do, and of more than it reads at a time both.
    for together in [1, 2, 5, 40] {
        // Nobody reads the queue while the process is stopped.
        kill(sluice, Signal::SIGSTOP).unwrap();
        let dialling: Vec<_> = (0..together)
            .flat_map(|_| &cases)
            .map(|(to, expected)| {
                let (socket, local) = caller(client);
                socket.set_nonblocking(true).unwrap();
                let begun = socket.connect(&to.at(8080).into());
                assert_eq!(begun.unwrap_err().raw_os_error(), Some(Errno::EINPROGRESS as i32));
                (socket, local, *expected)
            })
            .collect();
        kill(sluice, Signal::SIGCONT).unwrap();
        for (socket, _, expected) in &dialling {
            let mut came_to = None;
            assert!(wait_until(LIMIT, || {
                came_to = came_to.or_else(|| outcome(socket));
                came_to.is_some()
            }));
            assert_eq!(came_to, Some(*expected), "{together} of each together");
        }
        let dialled: Vec<_> = dialling.into_iter().map(|(_, local, expected)| (local, expected)).collect();
        for _ in 0..together {
            drop(accept(&listener, LIMIT).expect("an allowed connection arrives"));
        }
        for (local, expected) in dialled {
            let (last, records) = match expected {
                Ok(()) => ("connection-ended client-closed", 2),
                Err(_) => ("connection-denied policy-denied", 1),
            };
            assert_eq!(told(&cluster.last_record("node1", local)), last);
            assert_eq!(cluster.records_of("node1", local).len(), records);
        }
        assert_eq!(cluster.metric("node1", "sluice_gate_pending"), 0.0);
    }
}

#[test]
fn where_denials_are_silent_the_client_runs_into_its_limit_and_one_record_tells_of_it() {
    let cluster = Enforced::start(one_node(), &POLICIES, "proxy: { deny_action: drop }\n");
    let closed = cluster.pod("shop/closed");
    let listener = closed.listen(8080).unwrap();
    let tap = SynCount::start(closed);
    let (socket, local) = caller(cluster.pod("shop/client"));
    let repeated = "sluice_gate_dropped_total{reason=\"duplicate\"}";
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| dial(&socket, closed.at(8080), Duration::from_millis(3_500)));
        cluster.wait_metric("node1", repeated, 2.0);
        let (outcome, _) = dialling.join().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    });
    assert_eq!(told(&cluster.last_record("node1", local)), "connection-denied policy-denied");
    assert_eq!(cluster.records("node1").len(), 1);
    assert_eq!(cluster.metric("node1", "sluice_gate_pending"), 0.0);
    assert_nobody_comes(&listener);
    assert_eq!(tap.count(), 0);
}

#[test]
fn a_closed_port_refuses_as_it_does_without_a_proxy() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let web = cluster.pod("shop/web");
    for to in [web.at(8080), cluster.cluster_ip("shop/web", 80).unwrap(), cluster.external().at(80)] {
        let (socket, local) = caller(cluster.pod("shop/client"));
        let (outcome, took) = dial(&socket, to, LIMIT);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
        assert!(took < patiently(ONE_STALL), "{to}: {took:?}");
        let record = cluster.last_record("node1", local);
        assert_eq!(told(&record), "connection-failed refused");
        assert_eq!(record["event"]["outcome"], "failure");
    }
    assert_eq!(cluster.metric("node1", "sluice_connections_failed_total{cause=\"refused\"}"), 3.0);
    assert_eq!(cluster.metric("node1", "sluice_connections_live"), 0.0);
}

#[test]
fn what_the_node_has_no_way_to_is_unreachable_for_the_client() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let node = cluster.node("node1").unwrap();
    node.ip("route add unreachable 198.51.100.0/24\nroute add prohibit 192.0.2.0/24\n").unwrap();
    for to in ["198.51.100.7:80", "192.0.2.7:80"] {
        let (socket, local) = caller(cluster.pod("shop/client"));
        let (outcome, took) = dial(&socket, to.parse().unwrap(), LIMIT);
        assert_eq!(
            outcome.unwrap_err().kind(),
            ErrorKind::HostUnreachable,
            "{to}: {:#?}",
            cluster.last_record("node1", local)
        );
        assert!(took < patiently(ONE_STALL), "{to}: {took:?}");
        assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed unreachable");
    }
    assert_eq!(cluster.metric("node1", "sluice_connections_failed_total{cause=\"unreachable\"}"), 2.0);
}

/// Routers answer to the source of the upstream leg, which is the client's address: the answer is the
/// proxy's all the same.
#[test]
fn a_router_s_icmp_error_reaches_the_proxy_and_then_the_client() {
    let builder = one_node()
        .nodes(2)
        .pod(PodSpec::new("shop/near").on("node1"))
        .pod(PodSpec::new("shop/far").on("node2").label("app", "far"))
        .service(ServiceSpec::new("shop/far").selector("app", "far").port("http", 80, 8080));
    let cluster = builder.build().unwrap();
    let far = cluster.pod("shop/far").unwrap().at(8080);
    let service = cluster.cluster_ip("shop/far", 80).unwrap();
    cluster.fabric().ip("route add unreachable 198.51.100.0/24\n").unwrap();
    cluster.node("node2").unwrap().ip(&format!("route replace unreachable {}/32\n", far.ip())).unwrap();
    let cluster = Enforced::on(cluster, &["node1"], "");
    // An error that quotes the backend says nothing to a client that dialled a Service; a reset does.
    let through_service = match queue_tells_what_was_dialled(&cluster) {
        true => ErrorKind::HostUnreachable,
        false => ErrorKind::ConnectionRefused,
    };
    let outside = "198.51.100.7:80".parse().unwrap();
    for (to, kind) in
        [(service, through_service), (far, ErrorKind::HostUnreachable), (outside, ErrorKind::HostUnreachable)]
    {
        let (socket, local) = caller(cluster.pod("shop/near"));
        let (outcome, took) = dial(&socket, to, LIMIT);
        assert_eq!(outcome.unwrap_err().kind(), kind, "{to}");
        assert!(took < patiently(ONE_STALL), "{to}: {took:?}");
        assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed unreachable", "{to}");
    }
    assert_eq!(cluster.metric("node1", "sluice_connections_failed_total{cause=\"unreachable\"}"), 3.0);
}

/// Neither end knows of the smaller link: only the ICMP errors that come back to the proxy tell of it. A
/// cluster for each way, because a kernel remembers what it was told about a destination.
fn a_bulk_transfer_finds_the_smaller_mtu(way: impl Fn(&Enforced) -> (&Netns, SocketAddr)) {
    let builder = one_node()
        .nodes(2)
        .pod(PodSpec::new("shop/near").on("node1"))
        .pod(PodSpec::new("shop/far").on("node2").label("app", "far"))
        .service(ServiceSpec::new("shop/far").selector("app", "far").port("http", 80, 8080));
    let cluster = builder.build().unwrap();
    narrow(&cluster);
    let cluster = Enforced::on(cluster, &["node1", "node2"], "");
    let (server, to) = way(&cluster);
    let listener = server.listen(8080).unwrap();
    let mut carried = Carried::open(cluster.pod("shop/near"), &listener, to);
    carried.exchange(2_000_000, 2_000_000).unwrap();
    let local = carried.local;
    carried.close();
    let record = cluster.last_record("node1", local);
    assert_eq!(told(&record), "connection-ended client-closed");
    assert_eq!(record["source"]["bytes"], 2_000_000);
    assert_eq!(record["destination"]["bytes"], 2_000_000);
}

#[test]
fn a_bulk_transfer_to_a_pod_finds_the_smaller_mtu_between_the_nodes() {
    a_bulk_transfer_finds_the_smaller_mtu(|cluster| {
        let far = cluster.pod("shop/far");
        (far, far.at(8080))
    });
}

#[test]
fn a_bulk_transfer_to_a_service_finds_the_smaller_mtu_between_the_nodes() {
    a_bulk_transfer_finds_the_smaller_mtu(|cluster| {
        (cluster.pod("shop/far"), cluster.cluster_ip("shop/far", 80).unwrap())
    });
}

#[test]
fn a_bulk_transfer_out_of_the_cluster_finds_the_smaller_mtu_on_the_way() {
    a_bulk_transfer_finds_the_smaller_mtu(|cluster| (cluster.external(), cluster.external().at(8080)));
}

/// Leads the traffic between the nodes through the fabric's router, and gives all its routes a small MTU.
fn narrow(cluster: &Cluster) {
    let fabric = cluster.fabric();
    fabric.sysctl("net.ipv4.conf.all.send_redirects", "0").unwrap();
    fabric.sysctl("net.ipv4.conf.br0.send_redirects", "0").unwrap();
    fabric.ip(&format!("route add {}/32 dev ext0 mtu 1280\n", cluster.external().address())).unwrap();
    for node in cluster.nodes() {
        fabric
            .ip(&format!("route add {} via {} dev br0 mtu 1280\n", node.pod_cidr(), node.address()))
            .unwrap();
        for other in cluster.nodes().iter().filter(|other| other.name() != node.name()) {
            node.ip(&format!("route replace {} via 172.18.0.1\n", other.pod_cidr())).unwrap();
        }
    }
}

#[test]
fn a_server_that_swallows_everything_is_recorded_once_as_a_timeout() {
    let cluster = Enforced::start(one_node(), &POLICIES, "proxy: { connect_timeout_ms: 500 }\n");
    let web = cluster.pod("shop/web");
    let _hole = Hole::dig(web, 8080);
    let (socket, local) = caller(cluster.pod("shop/client"));
    // Long enough for one more SYN on every machine: this is no limit of a wait.
    let outcome = socket.connect_timeout(&web.at(8080).into(), Duration::from_millis(1_500));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed connect-timeout");
    assert_eq!(cluster.metric("node1", "sluice_gate_dropped_total{reason=\"duplicate\"}"), 1.0);
    assert_eq!(cluster.records("node1").len(), 1);
}

#[test]
fn a_client_that_gives_up_is_recorded_once_and_its_leg_is_given_up_too() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let web = cluster.pod("shop/web");
    let _hole = Hole::dig(web, 8080);
    let (socket, local) = caller(cluster.pod("shop/client"));
    let (outcome, _) = dial(&socket, web.at(8080), Duration::from_millis(300));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    drop(socket);
    assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed client-gone");
    assert_eq!(cluster.records("node1").len(), 1);
    assert!(wait_until(LIMIT, || cluster.metric("node1", "sluice_gate_pending") == 0.0));
    let legs = sockets_to(cluster.node("node1").unwrap(), web.at(8080));
    assert_eq!(legs, "", "the upstream leg is closed");
}

#[test]
fn a_client_that_resets_within_its_handshake_is_gone_at_once_and_may_come_again_from_the_same_port() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let (client, web) = (cluster.pod("shop/client"), cluster.pod("shop/web"));
    let listener = web.listen(8080).unwrap();
    let (SocketAddr::V4(source), SocketAddr::V4(to)) = (client.at(0), web.at(8080)) else { panic!("IPv4") };
    let scanner = SynSender::open(client, *source.ip()).unwrap();
    let scan = |port| {
        // Its kernel knows of no attempt and resets what the SYN/ACK begins, as a scan for open ports does.
        scanner.send(port, 1_000, to).unwrap();
        SocketAddr::V4(SocketAddrV4::new(*source.ip(), port))
    };
    let local = scan(40_000);
    let record = cluster.last_record("node1", local);
    assert_eq!(told(&record), "connection-failed client-gone");
    let lasted = Duration::from_nanos(record["event"]["duration"].as_u64().unwrap());
    assert!(lasted < patiently(Duration::from_secs(3)), "held for {lasted:?}, with a leg to the server");
    let legs = || sockets_to(cluster.node("node1").unwrap(), web.at(8080));
    assert!(wait_until(LIMIT, || legs().is_empty()), "{}", legs());

    let local = scan(40_001);
    cluster.wait_metric("node1", "sluice_gate_packets_total", 2.0);
    let socket = client.bound(local).unwrap();
    let (outcome, took) = dial(&socket, web.at(8080), LIMIT);
    outcome.unwrap();
    assert!(took < patiently(ONE_STALL), "the SYN was answered after {took:?}");
    let mut carried = Carried::accept(TcpStream::from(socket), &listener);
    carried.exchange(3, 5).unwrap();
}

#[test]
fn a_handshake_may_take_long() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let (client, web) = (cluster.pod("shop/client"), cluster.pod("shop/web"));
    let listener = web.listen(8080).unwrap();
    let hole = Hole::dig_for_answers(client, 8080);
    let (socket, local) = caller(client);
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| dial(&socket, web.at(8080), LIMIT));
        // The SYN again, after a second, comes into the same handshake.
        cluster.wait_metric("node1", "sluice_gate_packets_total", 2.0);
        drop(hole);
        let (outcome, took) = dialling.join().unwrap();
        outcome.unwrap();
        assert!(took > Duration::from_millis(900), "{took:?}: the first answer was not lost");
    });
    let mut carried = Carried::accept(TcpStream::from(socket), &listener);
    carried.exchange(3, 5).unwrap();
    assert_eq!(carried.peer, local);
    assert!(wait_until(LIMIT, || !cluster.records("node1").is_empty()));
    let actions: Vec<_> =
        cluster.records("node1").iter().map(|record| record["event"]["action"].clone()).collect();
    assert_eq!(actions, ["connection-started"], "one attempt, whose handshake took long");
}

/// The TCP sockets of a node towards an address.
fn sockets_to(node: &Netns, to: SocketAddr) -> String {
    let output = node.command("ss").args(["-Htan", "dst", &to.to_string()]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_syn_sent_again_while_the_first_is_held_opens_no_second_connection() {
    let cluster = Enforced::start(one_node(), &POLICIES, "");
    let web = cluster.pod("shop/web");
    let listener = web.listen(8080).unwrap();
    let hole = Hole::dig(web, 8080);
    let (socket, local) = caller(cluster.pod("shop/client"));
    let mut carried = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| dial(&socket, web.at(8080), LIMIT).0);
        cluster.wait_metric("node1", "sluice_gate_dropped_total{reason=\"duplicate\"}", 1.0);
        drop(hole);
        dialling.join().unwrap().unwrap();
        Carried::accept(TcpStream::from(socket.try_clone().unwrap()), &listener)
    });
    assert_eq!(carried.peer, local);
    carried.exchange(3, 5).unwrap();
    assert_nobody_comes(&listener);
    drop(socket);
    carried.close();
    cluster.last_record("node1", local);
    assert_eq!(cluster.records("node1").len(), 2, "started and ended");
    assert_eq!(cluster.metric("node1", "sluice_upstream_port_fallbacks_total"), 0.0);
}
