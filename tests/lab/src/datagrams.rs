//! UDP as TCP is served here: a server that tells every client the address it was seen with, and a client that
//! asks it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::netns::Netns;
use crate::server::GREETING;
use crate::wait::patiently;

/// How often a server looks whether it is to end.
const STEP: Duration = Duration::from_millis(50);
const LARGEST: usize = 65_536;

/// Answers every datagram with a greeting until it is dropped.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Serves on a bound socket, on a thread of its own.
    pub fn start(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        socket.set_read_timeout(Some(STEP))?;
        let ended = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let peers = Arc::new(Mutex::new(Vec::new()));
        let (ends, count, seen) = (Arc::clone(&ended), Arc::clone(&received), Arc::clone(&peers));
        let thread = thread::Builder::new().name("lab-udp-server".into()).spawn(move || {
            let mut buffer = vec![0; LARGEST];
            while !ends.load(Ordering::Relaxed) {
                // Errors are those of earlier answers: a client that has gone.
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    // A socket of both families takes an IPv4 client for ::ffff:a.b.c.d.
                    let plain = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(plain);
                    let _ = socket.send_to(format!("{GREETING}{plain}\n").as_bytes(), peer);
                }
            }
        })?;
        Ok(Self { address, ended, received, peers, thread: Some(thread) })
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The sender of every datagram so far, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends `request` from a connected socket and returns who the server took it for. Errors: what the socket
/// gave, ECONNREFUSED for an ICMP error, `WouldBlock` for silence.
pub fn ask(socket: &UdpSocket, request: &[u8], limit: Duration) -> io::Result<SocketAddr> {
    socket.send(request)?;
    hear(socket, limit)
}

/// Waits for one answer of a [`UdpServer`] and returns who the server took the socket for. Errors: as of [`ask`].
pub fn hear(socket: &UdpSocket, limit: Duration) -> io::Result<SocketAddr> {
    socket.set_read_timeout(Some(patiently(limit)))?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
    line.trim_end()
        .strip_prefix(GREETING)
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not a greeting: {line:?}")))
}

impl Netns {
    /// A UDP socket inside, bound to `local`; port 0 lets the kernel choose.
    pub fn udp(&self, local: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
        let local = local.into();
        self.run(|| UdpSocket::bind(local))
    }

    /// A UDP socket inside, connected to `to`.
    pub fn udp_to(&self, to: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
        let to = to.into();
        let any =
            if to.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0_u16; 8], 0)) };
        self.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            Ok(socket)
        })
    }

    /// Starts a [`UdpServer`] inside on this address.
    pub fn serve_udp_on(&self, local: impl Into<SocketAddr>) -> io::Result<UdpServer> {
        UdpServer::start(self.udp(local)?)
    }

    /// Starts a [`UdpServer`] inside on every IPv4 address.
    pub fn serve_udp(&self, port: u16) -> io::Result<UdpServer> {
        self.serve_udp_on(([0, 0, 0, 0], port))
    }
}
