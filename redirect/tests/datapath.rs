//! What the rules do to packets: a client pod and a server pod, each a network namespace, and a node between
//! them. No proxy takes part: the rules' own verdicts are what is tested. Every rule is tested for every backend.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netns::{Netns, ip};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use redirect::{
    BackendChoice, FailMode, GateBackend, IptablesVariant, LocalPods, Marks, Redirect, RedirectConfig,
    RedirectSpec, probe_for,
};

const PORT: u16 = 8080;
const CLIENT: [&str; 2] = ["10.1.0.2", "fd01::2"];
const SERVER: [&str; 2] = ["10.2.0.2", "fd02::2"];
/// Longer than any refusal takes and shorter than the first retransmission of a SYN.
const SILENCE: Duration = Duration::from_millis(700);

struct Cluster {
    backend: BackendChoice,
    node: Arc<Netns>,
    client: Netns,
    server: Netns,
}

impl Cluster {
    fn new(backend: BackendChoice) -> Self {
        let cluster =
            Self { backend, node: Arc::new(Netns::new()), client: Netns::new(), server: Netns::new() };
        cluster.node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for (pod, net) in [(&cluster.client, 1), (&cluster.server, 2)] {
            let device = format!("pod{net}");
            let (node, name) = (cluster.node.name(), pod.name());
            ip(&["-n", node, "link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", name]);
            cluster.node.run(&format!("ip addr add 10.{net}.0.1/24 dev {device}"));
            cluster.node.run(&format!("ip addr add fd0{net}::1/64 dev {device} nodad"));
            cluster.node.run(&format!("ip link set {device} up"));
            pod.run(&format!("ip addr add 10.{net}.0.2/24 dev eth0"));
            pod.run(&format!("ip addr add fd0{net}::2/64 dev eth0 nodad"));
            pod.run("ip link set eth0 up");
            pod.run(&format!("ip route add default via 10.{net}.0.1"));
            pod.run(&format!("ip route add default via fd0{net}::1"));
        }
        serve(&cluster.server, PORT);
        // Devices and addresses become usable when the kernel's link watch says so.
        for (address, start) in SERVER.map(|address| (address, Instant::now())) {
            while cluster.dial(address).is_err() {
                assert!(start.elapsed() < Duration::from_secs(20), "{address} stays unreachable");
            }
        }
        cluster
    }

    /// Installs the rules in the node and ends the guard.
    fn install(&self, config: RedirectConfig, pods: LocalPods) -> RedirectSpec {
        let backend = self.backend;
        self.node.block_on(move || async move {
            let gate = probe_for(backend).await.choose(backend).unwrap();
            let spec = RedirectSpec::new(&config, gate, true, pods).unwrap();
            Redirect::start(spec.clone()).await.unwrap().stop().await;
            spec
        })
    }

    /// Dials the server pod from the client pod.
    fn dial(&self, address: &str) -> io::Result<TcpStream> {
        self.dial_for(address, SILENCE)
    }

    /// Dials the server pod by all of its addresses at once, because silence takes its time.
    fn dial_each(&self) -> [(&'static str, io::Result<TcpStream>); 2] {
        at_once(SERVER, |address| (address, self.dial(address)))
    }

    fn dial_for(&self, address: &str, limit: Duration) -> io::Result<TcpStream> {
        let server = SocketAddr::new(address.parse().unwrap(), PORT);
        self.client.enter(move || TcpStream::connect_timeout(&server, limit))
    }

    /// Puts another verdict in the gate's place, as user space would give it.
    fn verdict(&self, spec: &RedirectSpec, mark: u32) {
        match spec.gate {
            GateBackend::IptablesNfqueue => {
                self.node.run("iptables-nft -t mangle -F SLUICE-GATE");
                self.node.run("ip6tables-nft -t mangle -F SLUICE-GATE");
            }
            GateBackend::NftQueue => drop(self.node.run("nft flush chain inet sluice gate")),
            GateBackend::Iptables(_) => drop(self.iptables("mangle", "-F SLUICE-INPUT")),
        }
        let proxy = spec.marks.proxy;
        self.node.load(&format!(
            "table inet verdict\ndelete table inet verdict\ntable inet verdict {{\nchain input {{\n\
             type filter hook input priority -150;\n\
             meta mark and {proxy:#x} == {proxy:#x} tcp flags & (syn | ack) == syn meta mark set meta mark or {mark:#x}\n\
             }}\n}}\n"
        ));
    }

    /// The variant of iptables whose rules these are; `None` for nft's.
    fn variant(&self) -> Option<IptablesVariant> {
        match self.backend {
            BackendChoice::IptablesNft => Some(IptablesVariant::Nft),
            BackendChoice::IptablesLegacy => Some(IptablesVariant::Legacy),
            _ => None,
        }
    }

    /// Runs the variant's tools of both families, and gives what they print.
    fn iptables(&self, table: &str, line: &str) -> String {
        let word = self.variant().expect("rules of iptables").word();
        ["iptables", "ip6tables"]
            .map(|command| self.node.run(&format!("{command}-{word} -t {table} {line}")))
            .concat()
    }

    /// How many packets the dropping rules of a chain have met: those whose line has `what` in nft's listing, or
    /// those of a chain of iptables.
    fn dropped(&self, nft: (&str, &str), iptables: &str) -> usize {
        let count = |text: &str| text.split(' ').next().unwrap().parse::<usize>().unwrap();
        if self.variant().is_none() {
            let (chain, what) = nft;
            let listed = self.node.run(&format!("nft list chain inet sluice {chain}"));
            let lines = listed.lines().filter(|line| line.contains(what));
            return lines.filter_map(|line| Some(count(line.split_once("packets ")?.1))).sum();
        }
        let listed = self.iptables("mangle", &format!("-v -S {iptables}"));
        let lines = listed.lines().filter(|line| line.ends_with("-j DROP"));
        lines.filter_map(|line| Some(count(line.split_once(" -c ")?.1))).sum()
    }

    /// What the rules hold of the interfaces of known pods.
    fn pod_links(&self) -> String {
        match self.variant() {
            None => self.node.run("nft list set inet sluice pod_links"),
            Some(_) => self.iptables("mangle", "-S SLUICE-LINKS"),
        }
    }

    /// The proxy's listeners, which nobody accepts from.
    fn listen(&self, port: u16) -> Vec<TcpListener> {
        self.node.enter(move || {
            let listen = |address: &str| {
                let listener = TcpListener::bind(SocketAddr::new(address.parse().unwrap(), port)).unwrap();
                setsockopt(&listener, sockopt::IpTransparent, &true).unwrap();
                listener
            };
            vec![listen("127.0.0.1"), listen("::1")]
        })
    }
}

/// What becomes of each, on threads of their own.
fn at_once<const N: usize, A: Copy + Send, B: Send>(all: [A; N], work: impl Fn(A) -> B + Sync) -> [B; N] {
    thread::scope(|scope| {
        let work = &work;
        let threads = all.map(|one| scope.spawn(move || work(one)));
        threads.map(|thread| thread.join().unwrap())
    })
}

/// Echoes what it gets, in both families, until the process ends.
fn serve(ns: &Netns, port: u16) {
    let listener = ns.enter(move || TcpListener::bind(("::", port)).unwrap());
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
}

fn answer(mut stream: TcpStream) {
    thread::spawn(move || {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
}

fn local(isolated: &[&str], observed: &[&str]) -> LocalPods {
    let parse = |list: &[&str]| list.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect();
    LocalPods { isolated: parse(isolated), observed: parse(observed), ..LocalPods::default() }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn is_silent(outcome: io::Result<TcpStream>) -> bool {
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The upstream leg of a proxy: from the client's address, with a mark.
fn upstream(source: SocketAddr, target: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Bounds connect, too (socket(7)).
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(700))?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(TcpStream::from(socket))
}

/// One datagram from an address that need not be one's own.
fn datagram(source: SocketAddr, target: SocketAddr) -> io::Result<usize> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    let flags = socket::MsgFlags::empty();
    Ok(socket::sendto(socket.as_raw_fd(), b"x", &SockaddrStorage::from(target), flags)?)
}

/// Dials with nobody listening, where isolated and observed pods must or must not be reached.
fn without_a_listener(backend: BackendChoice, mode: FailMode, isolated: bool, observed: bool) {
    let cluster = Cluster::new(backend);
    let config = RedirectConfig { fail_mode: mode, ..RedirectConfig::default() };
    let table = [
        (local(&SERVER, &[]), isolated, "to isolated"),
        (local(&CLIENT, &[]), isolated, "from isolated"),
        (local(&[], &SERVER), observed, "to observed"),
        (local(&[], &CLIENT), observed, "from observed"),
        (local(&CLIENT, &SERVER), isolated, "from isolated to observed"),
        (local(&SERVER, &CLIENT), isolated, "from observed to isolated"),
        (LocalPods::default(), true, "between strangers"),
    ];
    for (pods, reached, which) in table {
        cluster.install(config.clone(), pods);
        for (address, outcome) in cluster.dial_each() {
            match outcome {
                Ok(mut stream) => {
                    assert!(reached, "{which}, {address}");
                    echo(&mut stream).unwrap();
                }
                outcome => assert!(!reached && is_silent(outcome), "{which}, {address}"),
            }
        }
    }
}

fn without_a_listener_isolated_pods_are_closed_and_others_open(backend: BackendChoice) {
    without_a_listener(backend, FailMode::Isolation, false, true);
}

fn without_a_listener_fail_mode_closed_closes_every_local_pod(backend: BackendChoice) {
    without_a_listener(backend, FailMode::Closed, false, false);
}

fn without_a_listener_fail_mode_open_closes_none(backend: BackendChoice) {
    without_a_listener(backend, FailMode::Open, true, true);
}

fn a_syn_is_held_while_nobody_reads_the_queue(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let spec = cluster.install(RedirectConfig::default(), local(&SERVER, &[]));
    let _listeners = cluster.listen(spec.listener_port);
    for (address, outcome) in cluster.dial_each() {
        assert!(is_silent(outcome), "{address}");
    }
    // To rules of iptables the queue's reader is what tells that a process is there.
    cluster.install(RedirectConfig::default(), local(&[], &SERVER));
    for (address, outcome) in cluster.dial_each() {
        assert_eq!(is_silent(outcome), cluster.variant().is_none(), "{address}");
    }
}

fn the_gates_refusals_reach_the_client(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let spec = cluster.install(RedirectConfig::default(), local(&SERVER, &[]));
    let _listeners = cluster.listen(spec.listener_port);
    for reflect in [0, 1] {
        cluster
            .node
            .run(&format!("sysctl -qw net.ipv4.fwmark_reflect={reflect} net.ipv6.fwmark_reflect={reflect}"));
        let Marks { reset, unreachable, .. } = spec.marks;
        for (mark, errors) in [
            (reset, [Errno::ECONNREFUSED, Errno::ECONNREFUSED]),
            // The kernel sends no ICMP of IPv4 from this place, see the rules.
            (unreachable, [Errno::ECONNREFUSED, Errno::EHOSTUNREACH]),
        ] {
            cluster.verdict(&spec, mark);
            for (address, number) in SERVER.into_iter().zip(errors) {
                let start = Instant::now();
                // Between veths all is done within connect(2), which still owns the socket, and an ICMP error
                // is no more than noted then (tcp_v6_err): here it is the answer to the second SYN that
                // counts. A gate in user space takes long enough for the first to count.
                let limit = if number == Errno::EHOSTUNREACH { 4 * SILENCE } else { SILENCE / 2 };
                let error = cluster.dial_for(address, limit).unwrap_err();
                assert_eq!(
                    error.raw_os_error(),
                    Some(number as i32),
                    "{address}, reflect {reflect}: {error}"
                );
                assert!(start.elapsed() < limit, "{address}: {:?}", start.elapsed());
            }
        }
    }
}

fn an_admitted_connection_reaches_the_listener_with_both_addresses(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let spec = cluster.install(RedirectConfig::default(), local(&SERVER, &[]));
    let listeners = cluster.listen(spec.listener_port);
    cluster.verdict(&spec, 0);
    for (listener, address) in listeners.into_iter().zip(SERVER) {
        let proxy = thread::spawn(move || {
            let (stream, peer) = listener.accept().unwrap();
            let local = stream.local_addr().unwrap();
            answer(stream);
            (peer, local)
        });
        let mut stream = cluster.dial(address).unwrap();
        echo(&mut stream).unwrap();
        let (peer, local) = proxy.join().unwrap();
        assert_eq!(local, SocketAddr::new(address.parse().unwrap(), PORT));
        assert_eq!(peer, stream.local_addr().unwrap());
    }
}

fn upstream_legs_to_pods_work_with_the_clients_address_and_stay_untracked(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let spec = cluster.install(RedirectConfig::default(), local(&SERVER, &CLIENT));
    for (client, server) in CLIENT.into_iter().zip(SERVER) {
        let source = SocketAddr::new(client.parse().unwrap(), 40_000);
        let target = SocketAddr::new(server.parse().unwrap(), PORT);
        let mark = spec.marks.cluster;
        let mut stream = cluster.node.enter(move || upstream(source, target, mark)).unwrap();
        echo(&mut stream).unwrap();
        let tracked = cluster.node.run("conntrack -L -f ipv4") + &cluster.node.run("conntrack -L -f ipv6");
        assert!(!tracked.contains("40000"), "{tracked}");
    }
}

fn upstream_legs_to_the_own_node_get_their_replies(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let spec = cluster.install(RedirectConfig::default(), local(&CLIENT, &[]));
    serve(&cluster.node, 9090);
    for (client, node) in CLIENT.into_iter().zip(["10.1.0.1", "fd01::1"]) {
        let source = SocketAddr::new(client.parse().unwrap(), 0);
        let target = SocketAddr::new(node.parse().unwrap(), 9090);
        let dial = |mark: u32| cluster.node.enter(move || upstream(source, target, mark));
        echo(&mut dial(spec.marks.tracked).unwrap()).unwrap();
        assert!(is_unanswered(dial(0)), "without the mark the replies go to the pod");
    }
}

fn is_unanswered(outcome: io::Result<TcpStream>) -> bool {
    // A blocking connect that its time limit ends says EINPROGRESS (socket(7), SO_SNDTIMEO).
    outcome.is_err_and(|error| {
        error.raw_os_error() == Some(Errno::EINPROGRESS as i32)
            || error.raw_os_error() == Some(Errno::ECONNREFUSED as i32)
    })
}

fn a_connection_older_than_the_rules_goes_on_when_conntrack_knows_it(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    cluster.node.load("table inet theirs { chain forward { type filter hook forward priority 0; ct state established accept; }; }\n");
    let mut streams = SERVER.map(|address| cluster.dial(address).unwrap());
    for stream in &mut streams {
        echo(stream).unwrap();
    }
    cluster.install(RedirectConfig::default(), local(&SERVER, &[]));
    for stream in &mut streams {
        echo(stream).unwrap();
    }
    assert!(is_silent(cluster.dial(SERVER[0])), "a new connection is closed");
}

fn a_packet_of_no_known_connection_does_not_reach_a_closed_pod(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    for address in SERVER {
        cluster.install(RedirectConfig::default(), LocalPods::default());
        let mut stream = cluster.dial(address).unwrap();
        echo(&mut stream).unwrap();
        cluster.node.run("conntrack -F");
        cluster.install(RedirectConfig::default(), local(&SERVER, &[]));
        assert!(echo(&mut stream).is_err(), "{address}");
        assert!(cluster.dropped(("stray", "counter packets"), "SLUICE-STRAY-TO") > 0);
    }
}

/// Pods of which only the ranges are known.
fn ranges(list: &[&str]) -> LocalPods {
    LocalPods { ranges: list.iter().map(|range| range.parse().unwrap()).collect(), ..LocalPods::default() }
}

const CLIENT_RANGES: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];
const SERVER_RANGES: [&str; 2] = ["10.2.0.0/24", "fd02::/64"];

fn behind(interfaces: &[&str]) -> RedirectConfig {
    RedirectConfig {
        pod_interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        ..RedirectConfig::default()
    }
}

fn without_a_listener_unknown_pods_are_closed_unless_all_are_open(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let observed_client = |pods| LocalPods { observed: local(&[], &CLIENT).observed, ..pods };
    let none = RedirectConfig::default;
    let table = [
        (none(), ranges(&SERVER_RANGES), "to a range"),
        (none(), ranges(&CLIENT_RANGES), "from a range"),
        (none(), observed_client(ranges(&SERVER_RANGES)), "from an observed pod to a range"),
        (behind(&["pod2"]), LocalPods::default(), "to an interface"),
        (behind(&["pod1"]), LocalPods::default(), "from an interface"),
        (behind(&["nothing*", "pod*"]), LocalPods::default(), "between interfaces"),
        (
            behind(&["cni0", "pod2"]),
            observed_client(LocalPods::default()),
            "from an observed pod to an interface",
        ),
    ];
    for mode in [FailMode::Isolation, FailMode::Closed, FailMode::Open] {
        for (config, pods, which) in table.clone() {
            cluster.install(RedirectConfig { fail_mode: mode, ..config }, pods);
            for (address, outcome) in cluster.dial_each() {
                assert_eq!(outcome.is_ok(), mode == FailMode::Open, "{which}, {address}, {mode:?}");
            }
        }
    }
    cluster.install(behind(&["cali*", "lxc*"]), ranges(&["10.3.0.0/16", "fd03::/64"]));
    for address in SERVER {
        cluster.dial(address).unwrap();
    }
}

fn a_first_packet_tells_the_gate_which_ends_lie_behind_interfaces_of_pods(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let marks = Marks::from_mask(RedirectConfig::default().mark_mask).unwrap();
    let (from, to) = (marks.cluster, marks.tracked);
    let table = [
        (behind(&["pod1"]), LocalPods::default(), from),
        (behind(&["pod2"]), LocalPods::default(), to),
        (behind(&["pod*"]), LocalPods::default(), from | to),
        (behind(&["pod2"]), local(&CLIENT, &[]), to),
        (behind(&["pod2"]), local(&[], &CLIENT), to),
        (behind(&["pod1"]), ranges(&SERVER_RANGES), from),
        (RedirectConfig::default(), ranges(&CLIENT_RANGES), 0),
        (RedirectConfig::default(), ranges(&SERVER_RANGES), 0),
    ];
    for (config, pods, bits) in table {
        // Rules of iptables see where a packet goes behind routing only, and hold it there.
        if cluster.variant().is_some() && bits & to != 0 {
            continue;
        }
        let spec = cluster.install(config.clone(), pods.clone());
        let _listeners = cluster.listen(spec.listener_port);
        cluster.node.load(&format!(
            "table inet seen\ndelete table inet seen\ntable inet seen {{\nchain input {{\n\
             type filter hook input priority -151;\n\
             meta mark and {:#x} == {:#x} meta l4proto tcp counter\n}}\n}}\n",
            from | to | marks.proxy,
            bits | marks.proxy
        ));
        for (_, outcome) in cluster.dial_each() {
            assert!(is_silent(outcome), "held: {config:?}");
        }
        let seen = cluster.node.run("nft list chain inet seen input");
        assert!(seen.contains("packets 2 "), "{config:?} {pods:?}: {seen}");
    }
}

fn the_nodes_own_addresses_are_no_pods_though_its_ranges_hold_them(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    serve(&cluster.node, 9090);
    cluster.install(behind(&["pod2"]), ranges(&SERVER_RANGES));
    let dial_node = |address: &str| {
        let to = SocketAddr::new(address.parse().unwrap(), 9090);
        cluster.client.enter(move || TcpStream::connect_timeout(&to, SILENCE))
    };
    for gateway in ["10.2.0.1", "fd02::1", "10.1.0.1", "fd01::1"] {
        echo(&mut dial_node(gateway).unwrap()).unwrap();
    }
    // What the node itself sends is not intercepted.
    for address in SERVER {
        let to = SocketAddr::new(address.parse().unwrap(), PORT);
        let stream = cluster.node.enter(move || TcpStream::connect_timeout(&to, SILENCE));
        echo(&mut stream.unwrap()).unwrap();
    }
}

fn a_pod_speaks_with_no_address_but_those_that_are_routed_to_it(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    let dropped = |at_least: usize| {
        // With nft's rules datagrams are dropped in a chain of their own.
        let [syns, datagrams] = [("first_packet", "not routed to it"), ("of_pods", "drop")]
            .map(|rules| cluster.dropped(rules, "SLUICE-LINKS"));
        let count = if cluster.variant().is_none() { syns + datagrams } else { syns };
        assert!(count >= at_least && (at_least > 0 || count == 0), "{count}");
    };
    let names = |link: &str| match cluster.variant() {
        None => cluster.pod_links().contains(&format!("\"{link}\"")),
        Some(_) => cluster.pod_links().contains(&format!("-i {link} ")),
    };
    for (pods, is_pod) in
        [(local(&CLIENT, &[]), true), (local(&[], &CLIENT), true), (local(&SERVER, &[]), false)]
    {
        cluster.install(RedirectConfig::default(), pods);
        // An address outside, and one that is routed to another pod or node.
        at_once(["198.51.100.7", "10.2.0.9", "2001:db8::7", "fd02::9"], |source| {
            let source = SocketAddr::new(source.parse().unwrap(), 0);
            let to = SERVER[usize::from(source.is_ipv6())];
            let target = SocketAddr::new(to.parse().unwrap(), PORT);
            assert!(is_unanswered(cluster.client.enter(move || upstream(source, target, 0))));
            cluster.client.enter(move || datagram(source, target)).unwrap();
        });
        dropped(if is_pod { 8 } else { 0 });
        assert!(names(if is_pod { "pod1" } else { "pod2" }), "{}", cluster.pod_links());
    }
    // An interface with a gateway behind it leads to more than a pod.
    cluster.node.run("ip route add default via 10.1.0.2 dev pod1");
    cluster.install(RedirectConfig::default(), local(&CLIENT, &[]));
    assert!(!names("pod1"), "{}", cluster.pod_links());
}

fn an_address_of_the_nodes_ranges_that_comes_from_elsewhere_is_dropped(backend: BackendChoice) {
    let cluster = Cluster::new(backend);
    for (config, pods) in [
        (RedirectConfig::default(), ranges(&SERVER_RANGES)),
        (behind(&["pod1"]), LocalPods::default()),
        (
            RedirectConfig::default(),
            LocalPods { isolated: local(&SERVER, &[]).isolated, ..ranges(&SERVER_RANGES) },
        ),
    ] {
        cluster.install(config, pods);
        at_once([("10.2.0.9", SERVER[0]), ("fd02::9", SERVER[1])], |(borrowed, server)| {
            let source = SocketAddr::new(borrowed.parse().unwrap(), 0);
            let target = SocketAddr::new(server.parse().unwrap(), PORT);
            assert!(is_unanswered(cluster.client.enter(move || upstream(source, target, 0))));
        });
        assert_eq!(cluster.dropped(("from_unknown", "from elsewhere"), "SLUICE-SOURCE"), 2);
    }
}

macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(super::BackendChoice::Auto) })*
        }
        mod iptables_nft {
            $(#[test] fn $name() { super::$name(super::BackendChoice::IptablesNft) })*
        }
        mod iptables_legacy {
            $(#[test] fn $name() { super::$name(super::BackendChoice::IptablesLegacy) })*
        }
    };
}
on_every_backend! {
    without_a_listener_isolated_pods_are_closed_and_others_open,
    without_a_listener_fail_mode_closed_closes_every_local_pod,
    without_a_listener_fail_mode_open_closes_none,
    a_syn_is_held_while_nobody_reads_the_queue,
    the_gates_refusals_reach_the_client,
    an_admitted_connection_reaches_the_listener_with_both_addresses,
    upstream_legs_to_pods_work_with_the_clients_address_and_stay_untracked,
    upstream_legs_to_the_own_node_get_their_replies,
    a_connection_older_than_the_rules_goes_on_when_conntrack_knows_it,
    a_packet_of_no_known_connection_does_not_reach_a_closed_pod,
    without_a_listener_unknown_pods_are_closed_unless_all_are_open,
    a_first_packet_tells_the_gate_which_ends_lie_behind_interfaces_of_pods,
    the_nodes_own_addresses_are_no_pods_though_its_ranges_hold_them,
    a_pod_speaks_with_no_address_but_those_that_are_routed_to_it,
    an_address_of_the_nodes_ranges_that_comes_from_elsewhere_is_dropped,
}
