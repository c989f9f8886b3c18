//! Accepts what the kernel delivers by TPROXY and hands it to the connection that waits for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::Duration;

use flow::Tuple;
use nix::libc;

use crate::datapath::Datapath;
use crate::relay::LegSocket;
use crate::sys::readiness::{watch_listener, watch_stream};
use crate::sys::tcp;

/// Connections accepted before other tasks get a turn.
const BURST: usize = 64;

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}:{port}: {cause}{}", hint(cause))]
pub struct ListenError {
    /// Loopback address.
    pub address: IpAddr,
    /// The configured port.
    pub port: u16,
    /// What bind(2) or setsockopt(2) said.
    #[source]
    pub cause: io::Error,
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EADDRINUSE) => " (another sluice runs here, or set redirect.listener_port)",
        Some(libc::EPERM | libc::EACCES) => " (needs CAP_NET_ADMIN: run as root)",
        _ => "",
    }
}

/// Opens the listeners: IPv4, and IPv6 where the node has it.
pub(crate) fn open(port: u16, keepalive_s: u32) -> Result<Vec<TcpListener>, ListenError> {
    let open_one = |address: IpAddr| {
        tcp::listen_transparent(address, port, keepalive_s).map_err(|cause| ListenError {
            address,
            port,
            cause,
        })
    };
    let mut listeners = vec![open_one(Ipv4Addr::LOCALHOST.into())?];
    match open_one(Ipv6Addr::LOCALHOST.into()) {
        Ok(listener) => listeners.push(listener),
        Err(error) if no_ipv6(&error.cause) => tracing::info!("no IPv6 on this node"),
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn no_ipv6(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

/// The listeners, for those who expect a connection right now. They are closed when the tasks that own them end.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    v4: Weak<TcpListener>,
    v6: Weak<TcpListener>,
}

impl Listeners {
    pub(crate) fn new(listeners: &[Arc<TcpListener>]) -> Self {
        let mut all = Self::default();
        for listener in listeners {
            match listener.local_addr() {
                Ok(address) if address.is_ipv6() => all.v6 = Arc::downgrade(listener),
                _ => all.v4 = Arc::downgrade(listener),
            }
        }
        all
    }

    fn of(&self, address: IpAddr) -> Option<Arc<TcpListener>> {
        if address.is_ipv6() { self.v6.upgrade() } else { self.v4.upgrade() }
    }
}

/// Accepts what has arrived up to the connection of `tuple`, without waiting, and returns that one. A client on this
/// node has finished its handshake within the verdict that released its SYN: nobody else needs to wake up for it.
pub(crate) fn accept_arrived(path: &Datapath, tuple: &Tuple) -> Option<LegSocket> {
    let listener = path.listeners.of(tuple.client.0.ip())?;
    for _ in 0..BURST {
        // The task of the listener sees whatever error it is.
        let (stream, peer) = tcp::accept(&*listener).ok()?;
        match whose(stream, peer) {
            Some((accepted, leg)) if accepted == *tuple => return Some(leg),
            Some((accepted, leg)) => deliver(path, &accepted, leg),
            None => {}
        }
    }
    None
}

/// Accepts until the task is aborted.
pub(crate) async fn accept(path: Arc<Datapath>, listener: Arc<TcpListener>) -> io::Error {
    let listener = match watch_listener(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let mut ready = match listener.readable().await {
            Ok(ready) => ready,
            Err(error) => return error,
        };
        for _ in 0..BURST {
            match tcp::accept(&**listener.get_ref()) {
                Ok((stream, peer)) => {
                    if let Some((tuple, leg)) = whose(stream, peer) {
                        deliver(&path, &tuple, leg);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                Err(error) if is_exhaustion(&error) => {
                    // Reservations keep this from happening; if it does all the same, connections wait in
                    // the backlog until descriptors are free.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                // The connection was reset before it was accepted: accept(2) passes its error on.
                Err(error) => tracing::debug!(%error, "accept"),
            }
        }
        tokio::task::yield_now().await;
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Whose connection was accepted. `None` when it is gone already, or cannot be watched.
fn whose(stream: std::net::TcpStream, peer: Option<std::net::SocketAddr>) -> Option<(Tuple, LegSocket)> {
    let peer = peer.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
    let tuple = peer
        .and_then(|peer| Ok(Tuple::tcp(peer, stream.local_addr()?)))
        .inspect_err(|error| tracing::debug!(%error, "an accepted connection broke at once"))
        .ok()?;
    let leg = watch_stream(stream)
        .inspect_err(|error| tracing::warn!(%error, "an accepted connection cannot be watched"))
        .ok()?;
    Some((tuple, leg))
}

/// Hands an accepted connection to whoever expects it.
fn deliver(path: &Datapath, tuple: &Tuple, leg: LegSocket) {
    if let Err(unexpected) = path.pairing.deliver(tuple, leg) {
        // Nobody permitted it: its attempt was given up, or its SYN never met the gate.
        tracing::debug!(%tuple, "refusing an accepted connection that nobody expects");
        tcp::reset_on_close(unexpected.get_ref());
    }
}
