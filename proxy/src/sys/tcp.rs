//! Sockets of both legs: the transparent listener, and upstream sockets that speak with another host's address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Opens the listener that TPROXY hands connections to, on the loopback address of one family (a wildcard
/// listener could be dialled by a pod). Accepted sockets inherit its options. Source: ip(7), `IP_TRANSPARENT`.
pub(crate) fn listen_transparent(
    loopback: IpAddr,
    port: u16,
    keepalive_s: u32,
) -> io::Result<std::net::TcpListener> {
    let address = SocketAddr::new(loopback, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    set_transparent(&socket, loopback)?;
    if loopback.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_carrier_options(&socket, keepalive_s)?;
    socket.bind(&address.into())?;
    socket.listen(16_384)?;
    Ok(socket.into())
}

/// Accepts one connection, non-blocking. Source: accept4(2).
pub(crate) fn accept(listener: impl AsFd) -> io::Result<(std::net::TcpStream, Option<SocketAddr>)> {
    let flags = nix::libc::SOCK_NONBLOCK | nix::libc::SOCK_CLOEXEC;
    let (socket, peer) = SockRef::from(&listener).accept4(flags)?;
    Ok((socket.into(), peer.as_socket()))
}

/// A non-blocking socket for the server's side, marked so that the rules know it, not yet bound.
/// Source: socket(7), `SO_MARK` (needs CAP_NET_ADMIN).
pub(crate) fn upstream(destination: SocketAddr, mark: u32, keepalive_s: u32) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(destination), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    set_carrier_options(&socket, keepalive_s)?;
    delay_acknowledgement(&socket)?;
    Ok(socket)
}

/// Binds to another host's address. `SO_REUSEADDR` lets one client address and port serve several
/// destinations; connect(2) then refuses a tuple that is taken. Source: ip(7), `IP_TRANSPARENT`.
pub(crate) fn bind_transparent(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    set_transparent(socket, source.ip())?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())
}

/// Starts connecting. `Ok` means under way or done: wait until the socket is writable, then take its error.
pub(crate) fn start_connect(socket: &Socket, destination: SocketAddr) -> io::Result<()> {
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// True once the handshake is done. Source: getpeername(2), ENOTCONN before.
pub(crate) fn is_connected(stream: &std::net::TcpStream) -> bool {
    stream.peer_addr().is_ok()
}

/// Lets the last step of the handshake wait for the first bytes, at most for the kernel's delay of
/// acknowledgements (0.2 s). Source: tcp(7), `TCP_QUICKACK`; `tcp_rcv_synsent_state_process` in tcp_input.c.
pub(crate) fn delay_acknowledgement(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_quickack(false)
}

/// Sends an acknowledgement that waits. Source: tcp(7), `TCP_QUICKACK`.
pub(crate) fn acknowledge(socket: impl AsFd) {
    // A socket that is gone already has nothing to acknowledge.
    let _ = SockRef::from(&socket).set_tcp_quickack(true);
}

/// Writes to a socket, as a part of more to come when `more` is true: what follows at once, a FIN too, shares
/// its last segment. Source: send(2), `MSG_MORE`.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = if more { nix::libc::MSG_NOSIGNAL | nix::libc::MSG_MORE } else { nix::libc::MSG_NOSIGNAL };
    SockRef::from(&socket).send_with_flags(bytes, flags)
}

/// Makes the coming close(2) send a reset instead of a FIN. Source: socket(7), `SO_LINGER` of zero.
pub(crate) fn reset_on_close(socket: impl AsFd) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Makes the coming close(2) send a FIN again, behind what is left to send. Source: socket(7), `SO_LINGER`.
pub(crate) fn end_on_close(socket: impl AsFd) {
    let _ = SockRef::from(&socket).set_linger(None);
}

/// What the client dialled before DNAT, where conntrack knows it. Source: `SO_ORIGINAL_DST`.
pub(crate) fn dialed(socket: impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    match local {
        SocketAddr::V4(_) => {
            let raw = getsockopt(&socket, OriginalDst).ok()?;
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(raw.sin_port)))
        }
        SocketAddr::V6(_) => {
            let raw = getsockopt(&socket, Ip6tOriginalDst).ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(raw.sin6_addr.s6_addr).into(), u16::from_be(raw.sin6_port)))
        }
    }
}

fn set_transparent(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// A carrier must not wait for more bytes (the ends decide that) and must notice a leg that died silently.
fn set_carrier_options(socket: &Socket, keepalive_s: u32) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // Urgent data stays in its place in the stream. Out of band it would end reads at its mark, and be lost.
    socket.set_out_of_band_inline(true)?;
    if keepalive_s > 0 {
        let time = Duration::from_secs(keepalive_s.into());
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))?;
    }
    Ok(())
}
