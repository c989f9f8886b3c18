//! Other transparent proxies on the same path: HAProxy and nginx behind TPROXY, as fast as they can be set up.
//!
//! They decide nothing and hold no SYN. They accept what the rules hand them, connect from the client's
//! address and a port of the node's own range, and write a line for every connection to a file.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{Cluster, Node, wait_until};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Type};

/// Where TPROXY delivers.
const LISTENER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 15_093);
/// Ports of legs to servers: pods take theirs from 32768 on.
const UPSTREAM_PORTS: (u16, u16) = (16_384, 32_767);
const BACKLOG: i32 = 16_384;
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With splice in both directions and `option tcplog`.
    HaProxy,
    /// The stream module with `proxy_bind … transparent`.
    Nginx,
}

/// A running proxy; ended on drop, by its own pid.
#[derive(Debug)]
pub(crate) struct Anchor {
    child: Child,
}

impl Anchor {
    /// Installs the rules in the cluster's node and starts the proxy behind them.
    pub(crate) fn start(kind: Kind, cluster: &Cluster) -> anyhow::Result<Self> {
        let node = cluster.node("node1")?;
        let (first, last) = UPSTREAM_PORTS;
        node.sysctl("net.ipv4.ip_local_port_range", &format!("{first} {last}"))?;
        node.ip(
            "rule add priority 93 fwmark 0x2/0x2 lookup 1093\nroute add local default dev lo table 1093\n",
        )?;
        let pods: Vec<String> = cluster.pods().iter().map(|pod| pod.address().to_string()).collect();
        node.nft(&rules(&pods.join(", ")))?;
        let child = match kind {
            Kind::HaProxy => haproxy(node, cluster.folder()),
            Kind::Nginx => nginx(node, cluster.folder()),
        }?;
        let mut anchor = Self { child };
        anchor.wait_ready(kind, node).with_context(|| complaints(cluster.folder()))?;
        Ok(anchor)
    }

    /// Not by a connection: the proxy would carry it to where it was dialled, which is the proxy.
    fn wait_ready(&mut self, kind: Kind, node: &Node) -> anyhow::Result<()> {
        let mut ended = None;
        let ready = wait_until(START_LIMIT, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
                || match kind {
                    Kind::HaProxy => is_listening(node),
                    // The listener was there before: the master has its workers once it is done.
                    Kind::Nginx => node.pids().len() > 1,
                }
        });
        match ended {
            Some(status) => bail!("the proxy ended at once: {status}"),
            None if ready => Ok(()),
            None => bail!("the proxy does not listen"),
        }
    }
}

/// Source: proc(5), `/proc/net/tcp`: addresses in hexadecimal, state 0A is listening.
fn is_listening(node: &Node) -> bool {
    let (address, port) = LISTENER;
    let local = format!("{:08X}:{port:04X}", u32::from_ne_bytes(address.octets()));
    let table = node.run(|| fs::read_to_string("/proc/thread-self/net/tcp")).unwrap_or_default();
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(1) == Some(&local.as_str()) && columns.get(3) == Some(&"0A")
    })
}

impl Drop for Anchor {
    fn drop(&mut self) {
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)) | Err(_));
        if let Ok(pid) = i32::try_from(self.child.id())
            && !ended(&mut self.child)
        {
            // Our child, not waited for: the pid is its own. A master of nginx ends its workers on SIGTERM.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if !wait_until(STOP_LIMIT, || ended(&mut self.child)) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

/// What a proxy that does not start has said.
fn complaints(folder: &Path) -> String {
    ["haproxy.errors", "haproxy.log", "nginx.errors", "nginx.stderr"]
        .iter()
        .filter_map(|name| fs::read_to_string(folder.join(name)).ok())
        .collect()
}

/// The interception of Sluice without its gate. Legs to servers are not tracked, as Sluice's are not; here they
/// are told by their ports, because these proxies cannot mark them.
fn rules(pods: &str) -> String {
    let ((address, port), (first, last)) = (LISTENER, UPSTREAM_PORTS);
    format!(
        "table inet bench {{
  set pods {{ type ipv4_addr; elements = {{ {pods} }}; }}
  chain intercept {{
    type filter hook prerouting priority dstnat + 10;
    iifname lo accept
    meta l4proto != tcp accept
    tcp flags & (fin | syn | rst | ack) == syn ip daddr @pods meta nfproto ipv4 meta l4proto tcp tproxy ip to {address}:{port} meta mark set meta mark or 0x2 accept
    socket transparent 1 meta mark set meta mark or 0x2 accept
  }}
  chain untracked_in {{
    type filter hook prerouting priority raw;
    tcp dport {first}-{last} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw;
    tcp sport {first}-{last} notrack
  }}
}}
"
    )
}

/// Source: HAProxy's configuration manual: `usesrc`, `option splice-request`, `log stdout`, a server address
/// of 0.0.0.0 (the one that the client dialled).
fn haproxy(node: &Node, folder: &Path) -> anyhow::Result<Child> {
    let (address, port) = LISTENER;
    let config = folder.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global
    maxconn 5000
    maxpipes 512
    tune.pipesize 1048576
    log stdout format raw local0
defaults
    mode tcp
    log global
    option tcplog
    option splice-request
    option splice-response
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen transparent
    bind {address}:{port} transparent backlog {BACKLOG}
    source 0.0.0.0 usesrc clientip
    server dialled 0.0.0.0
"
        ),
    )?;
    let mut command = node.command("haproxy");
    command.arg("-db").arg("-f").arg(&config).stdin(Stdio::null());
    // One write(2) of its own per line: cheaper than a syslog socket and somebody who reads it.
    command.stdout(File::create(folder.join("haproxy.log"))?);
    command.stderr(File::create(folder.join("haproxy.errors"))?);
    command.spawn().context("start haproxy (make setup-bench installs it)")
}

/// nginx cannot listen transparently, but takes over listeners named in `NGINX` (its binary upgrade), so it
/// gets one that was made for it. Of a wildcard listener it asks each connection for its local address, which
/// is what the client dialled.
fn nginx(node: &Node, folder: &Path) -> anyhow::Result<Child> {
    let (_, port) = LISTENER;
    let listener = inherited_listener(node)?;
    let folder = fs::canonicalize(folder)?;
    let config = folder.join("nginx.conf");
    let of_folder = |name: &str| folder.join(name).display().to_string();
    fs::write(
        &config,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
daemon off;
worker_processes auto;
worker_rlimit_nofile 20000;
pid {pid};
error_log {errors} error;
events {{ worker_connections 10000; }}
stream {{
  log_format tcp '$time_iso8601 $remote_addr:$remote_port $upstream_addr $status $bytes_received $bytes_sent $session_time';
  access_log {log} tcp buffer=64k flush=1s;
  server {{
    listen {port};
    proxy_bind $remote_addr transparent;
    proxy_pass $server_addr:$server_port;
    proxy_timeout 1h;
  }}
}}
",
            pid = of_folder("nginx.pid"),
            errors = of_folder("nginx.errors"),
            log = of_folder("nginx.log"),
        ),
    )?;
    let mut command = node.command("nginx");
    command.arg("-e").arg(of_folder("nginx.errors")).arg("-p").arg(&folder).arg("-c").arg(&config);
    command.env("NGINX", format!("{};", listener.as_raw_fd())).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(File::create(folder.join("nginx.stderr"))?);
    command.spawn().context("start nginx (make setup-bench installs it)")
}

fn inherited_listener(node: &Node) -> io::Result<TcpListener> {
    let socket = node.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, LISTENER.1)).into())?;
    socket.listen(BACKLOG)?;
    fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(socket.into())
}
