//! Turns a permit into an established leg to the server, from the client's own address wherever the kernel
//! allows it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flow::{ClientAddr, OrigDst, UpstreamSource};
use nix::libc;

use crate::authorize::{Leg, Permit};
use crate::config::PortRange;
use crate::relay::LegSocket;
use crate::sys::readiness::watch_stream;
use crate::sys::tcp;

/// Ports tried before a leg is given up for want of one.
const PORT_ATTEMPTS: u32 = 64;

/// How legs to servers are made.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) mark_cluster: u32,
    pub(crate) mark_tracked: u32,
    pub(crate) ports: PortRange,
    pub(crate) keepalive_s: u32,
    pub(crate) limit: Duration,
    next_port: AtomicU32,
}

/// An established leg to the server.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) socket: LegSocket,
    /// Its source, when it is not the client's own address and port.
    pub(crate) source: Option<UpstreamSource>,
    /// True when the client's port was wanted and taken.
    pub(crate) port_fallback: bool,
}

/// Why there is no leg to the server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{upstream} refused the connection")]
    Refused { upstream: OrigDst },
    #[error("{upstream} is unreachable: {cause}")]
    Unreachable { upstream: OrigDst, cause: io::Error },
    #[error("{upstream} silent for {limit:?}")]
    TimedOut { upstream: OrigDst, limit: Duration },
    #[error("bind transparent source {client}: {cause}")]
    BindSource { client: ClientAddr, cause: io::Error },
    #[error("no free port for {client} towards {upstream} in {}-{}", ports.first, ports.last)]
    NoPort { client: ClientAddr, upstream: OrigDst, ports: PortRange },
    #[error("out of descriptors or memory: {cause}")]
    Exhausted { cause: io::Error },
    #[error("connect to {upstream}: {cause}")]
    Failed { upstream: OrigDst, cause: io::Error },
}

impl Connector {
    pub(crate) fn new(
        marks: crate::datapath::Marks,
        ports: PortRange,
        keepalive_s: u32,
        limit: Duration,
    ) -> Self {
        // Starting anywhere spreads the ports of a restarted process away from those it left in TIME_WAIT.
        let start = std::process::id().wrapping_mul(2_654_435_761);
        Self {
            mark_cluster: marks.cluster,
            mark_tracked: marks.tracked,
            ports,
            keepalive_s,
            limit,
            next_port: AtomicU32::new(start),
        }
    }

    /// Connects to the permitted destination. Cancel safe: a dropped attempt closes its socket.
    pub(crate) async fn connect(&self, permit: &Permit) -> Result<Upstream, ConnectError> {
        let (client, upstream) = (permit.tuple().client, permit.tuple().destination);
        let (socket, port_fallback) = match permit.leg() {
            Leg::Cluster => match self.start(self.mark_cluster, Some(client.0), upstream) {
                Err(StartError::SourceTaken) => {
                    (self.start_from_own_ports(self.mark_cluster, client, upstream)?, true)
                }
                started => (started.map_err(|error| error.into_connect_error(client, upstream))?, false),
            },
            Leg::External | Leg::OwnNode => {
                (self.start_from_own_ports(self.mark_tracked, client, upstream)?, false)
            }
            Leg::Hairpin => {
                let started = self.start(self.mark_tracked, None, upstream);
                (started.map_err(|error| error.into_connect_error(client, upstream))?, false)
            }
        };
        let socket = self.established(socket, upstream).await?;
        let source = match permit.leg() {
            Leg::Cluster if !port_fallback => None,
            _ => socket.get_ref().local_addr().ok().map(UpstreamSource),
        };
        Ok(Upstream { socket, source, port_fallback })
    }

    fn start_from_own_ports(
        &self,
        mark: u32,
        client: ClientAddr,
        upstream: OrigDst,
    ) -> Result<std::net::TcpStream, ConnectError> {
        let count = u32::from(self.ports.last - self.ports.first) + 1;
        for _ in 0..PORT_ATTEMPTS {
            let offset = self.next_port.fetch_add(1, Ordering::Relaxed) % count;
            let port = self.ports.first + u16::try_from(offset).unwrap_or(0);
            match self.start(mark, Some(SocketAddr::new(client.0.ip(), port)), upstream) {
                Err(StartError::SourceTaken) => {}
                started => return started.map_err(|error| error.into_connect_error(client, upstream)),
            }
        }
        Err(ConnectError::NoPort { client, upstream, ports: self.ports })
    }

    /// Opens, binds and starts connecting one socket.
    fn start(
        &self,
        mark: u32,
        source: Option<SocketAddr>,
        upstream: OrigDst,
    ) -> Result<std::net::TcpStream, StartError> {
        let socket = tcp::upstream(upstream.0, mark, self.keepalive_s).map_err(StartError::Socket)?;
        if let Some(source) = source {
            tcp::bind_transparent(&socket, source).map_err(|cause| match cause.raw_os_error() {
                Some(libc::EADDRINUSE) => StartError::SourceTaken,
                _ => StartError::Bind(cause),
            })?;
        }
        match tcp::start_connect(&socket, upstream.0) {
            Ok(()) => Ok(socket.into()),
            // The tuple lingers in another socket of ours: connect(2).
            Err(cause) if cause.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Err(StartError::SourceTaken),
            Err(cause) => Err(StartError::Connect(cause)),
        }
    }

    async fn established(
        &self,
        socket: std::net::TcpStream,
        upstream: OrigDst,
    ) -> Result<LegSocket, ConnectError> {
        let socket = watch_stream(socket).map_err(|cause| ConnectError::Exhausted { cause })?;
        // A server on this node has answered within connect(2): nothing to wait for.
        if tcp::is_connected(socket.get_ref()) {
            return Ok(socket);
        }
        let writable = tokio::time::timeout(self.limit, socket.writable());
        let outcome = match writable.await {
            Err(_) => return Err(ConnectError::TimedOut { upstream, limit: self.limit }),
            Ok(ready) => ready.map(drop).and_then(|()| socket.get_ref().take_error()),
        };
        match outcome {
            Ok(None) => Ok(socket),
            Ok(Some(cause)) | Err(cause) => Err(ConnectError::of_errno(cause, upstream, self.limit)),
        }
    }
}

enum StartError {
    Socket(io::Error),
    SourceTaken,
    Bind(io::Error),
    Connect(io::Error),
}

impl StartError {
    fn into_connect_error(self, client: ClientAddr, upstream: OrigDst) -> ConnectError {
        match self {
            Self::Socket(cause) if is_exhaustion(&cause) => ConnectError::Exhausted { cause },
            Self::Socket(cause) => ConnectError::Failed { upstream, cause },
            Self::SourceTaken => {
                ConnectError::BindSource { client, cause: io::Error::from_raw_os_error(libc::EADDRINUSE) }
            }
            Self::Bind(cause) => ConnectError::BindSource { client, cause },
            Self::Connect(cause) => ConnectError::of_errno(cause, upstream, Duration::ZERO),
        }
    }
}

impl ConnectError {
    /// Sorts what connect(2) says into what the client has to see.
    fn of_errno(cause: io::Error, upstream: OrigDst, limit: Duration) -> Self {
        match cause.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => Self::Refused { upstream },
            Some(libc::ETIMEDOUT) => Self::TimedOut { upstream, limit },
            Some(
                libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::ENONET
                | libc::EACCES
                | libc::EPERM
                | libc::ENOPROTOOPT
                | libc::EPROTO,
            ) => Self::Unreachable { upstream, cause },
            _ if is_exhaustion(&cause) => Self::Exhausted { cause },
            _ => Self::Failed { upstream, cause },
        }
    }
}

fn is_exhaustion(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
