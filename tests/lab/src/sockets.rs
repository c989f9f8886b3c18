//! Real sockets inside a namespace: they stay in it wherever they are used from afterwards (socket(7) takes
//! the namespace of the thread that creates it).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::shape::Family;
use crate::wait::patiently;

impl Netns {
    /// Connects from inside. The error is what connect(2) gave: `ConnectionRefused`, `HostUnreachable`,
    /// `TimedOut` when nothing answered within `limit`.
    pub fn connect(&self, to: impl Into<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
        let to = to.into();
        self.run(|| TcpStream::connect_timeout(&to, patiently(limit)))
    }

    /// Connects from inside, from `local`; port 0 lets the kernel choose.
    pub fn connect_from(
        &self,
        local: impl Into<SocketAddr>,
        to: impl Into<SocketAddr>,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        let socket = self.bound(local)?;
        socket.connect_timeout(&to.into().into(), patiently(limit))?;
        Ok(socket.into())
    }

    /// A TCP socket bound to `local` inside, not yet connected: its port is known even when the connection
    /// is then refused.
    pub fn bound(&self, local: impl Into<SocketAddr>) -> io::Result<Socket> {
        let local = local.into();
        let socket = self.socket(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        Ok(socket)
    }

    /// Listens inside on every IPv4 address; port 0 lets the kernel choose.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.listen_on((Ipv4Addr::UNSPECIFIED, port))
    }

    /// Listens inside on every address of a family.
    pub fn listen_in(&self, family: Family, port: u16) -> io::Result<TcpListener> {
        self.listen_on((family.unspecified(), port))
    }

    /// Listens inside on one address.
    pub fn listen_on(&self, local: impl Into<SocketAddr>) -> io::Result<TcpListener> {
        let local = local.into();
        self.run(|| TcpListener::bind(local))
    }

    /// A socket of any kind inside.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.run(|| Socket::new(domain, kind, protocol))
    }
}
