//! What the kernel knows of a TCP connection of ours: sock_diag(7), one question for one socket.
//!
//! The safe socket crates have no TCP_INFO. The same structure comes by netlink for a socket named by its addresses,
//! while the kernel has it among the connected ones: not after both FINs or a reset have passed. Source:
//! include/uapi/linux/inet_diag.h, `inet_diag_dump_one_icsk` in net/ipv4/inet_diag.c, `tcp_get_info` in net/ipv4/tcp.c.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use audit::LegInfo;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use nix::libc;

use super::nfqueue::{FLAG_REQUEST, NLMSG_ERROR, attribute, field};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
/// Lengths of nlmsghdr, inet_diag_req_v2 and inet_diag_msg.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
const ANSWER: usize = HEADER + 72;
/// Place in inet_diag_msg.
const STATE: usize = HEADER + 1;
/// States of sockets that are no connection, or none any more: TIME_WAIT, CLOSE, and LISTEN, the socket that new ones
/// of these addresses would go to. Source: include/net/tcp_states.h.
const NO_CONNECTION: [u8; 3] = [6, 7, 10];
/// Places in tcp_info, which only ever grows at its end.
const RTT: usize = 68;
const TOTAL_RETRANS: usize = 100;

thread_local! {
    /// A socket a thread, so that no thread waits for another. `None` once the kernel has refused.
    static QUESTIONS: RefCell<Option<Questions>> = RefCell::new(Questions::open().ok());
}

/// Round trip time and retransmissions of a connected socket, as the kernel has them now. `None` when the kernel no
/// longer has the connection, or has no sock_diag. Does not wait: the kernel answers within the question.
pub(crate) fn leg_info(stream: &TcpStream) -> Option<LegInfo> {
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    QUESTIONS.with_borrow(|questions| questions.as_ref()?.ask(local, peer).ok()?)
}

/// Whether the kernel has a connection between these two, a handshake that is under way included. `None` when it does
/// not say. Without tcp_diag it says that there is none. Source: `inet_diag_find_one_icsk` and `inet_diag_lock_handler`
/// in net/ipv4/inet_diag.c, which both answer ENOENT.
pub(crate) fn has_connection(local: SocketAddr, peer: SocketAddr) -> Option<bool> {
    QUESTIONS.with_borrow(|questions| existence(&questions.as_ref()?.answer(local, peer).ok()?))
}

struct Questions {
    socket: Socket,
}

impl Questions {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    fn ask(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<LegInfo>> {
        self.answer(local, peer).map(|answer| parse(&answer))
    }

    fn answer(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<Vec<u8>> {
        self.socket.send_to(&request(local, peer), &NetlinkAddress::new(0, 0), 0)?;
        Ok(self.socket.recv_from_full()?.0)
    }
}

fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Vec::with_capacity(REQUEST);
    message.extend(u32::try_from(REQUEST).unwrap_or_default().to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(FLAG_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    let byte = |number: i32| u8::try_from(number).unwrap_or_default();
    message.extend([byte(family), byte(libc::IPPROTO_TCP), 1 << (INET_DIAG_INFO - 1), 0]);
    // Every state.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        match address {
            IpAddr::V4(address) => {
                message.extend(address.octets());
                message.extend([0; 12]);
            }
            IpAddr::V6(address) => message.extend(address.octets()),
        }
    }
    // Whatever interface, whatever cookie.
    message.extend(0u32.to_ne_bytes());
    message.extend([0xff; 8]);
    message
}

/// What an answer tells; `None` for an error, or for a socket of which nothing is told.
fn parse(answer: &[u8]) -> Option<LegInfo> {
    if u16::from_ne_bytes(field(answer, 4)?) != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let length = usize::try_from(u32::from_ne_bytes(field(answer, 0)?)).ok()?;
    let info = attribute(answer.get(ANSWER..length)?, INET_DIAG_INFO)?;
    Some(LegInfo {
        rtt_us: u32::from_ne_bytes(field(info, RTT)?),
        retransmits: u32::from_ne_bytes(field(info, TOTAL_RETRANS)?),
    })
}

/// Whether an answer tells of a socket, or of there being none.
fn existence(answer: &[u8]) -> Option<bool> {
    match u16::from_ne_bytes(field(answer, 4)?) {
        SOCK_DIAG_BY_FAMILY => Some(!NO_CONNECTION.contains(&field::<1>(answer, STATE)?[0])),
        NLMSG_ERROR if i32::from_ne_bytes(field(answer, HEADER)?) == -libc::ENOENT => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    #[test]
    fn both_ends_of_a_connection_have_a_round_trip_time_in_both_families() {
        for address in ["127.0.0.1", "::1"] {
            let (mut client, mut server) = pair(address);
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            for stream in [&client, &server] {
                let info = leg_info(stream).expect("the kernel has sock_diag");
                assert!((1..1_000_000).contains(&info.rtt_us), "{address}: {info:?}");
                assert_eq!(info.retransmits, 0, "{address}");
            }
        }
    }

    #[test]
    fn it_is_told_after_one_fin_and_no_more_after_a_reset() {
        let (client, mut server) = pair("127.0.0.1");
        client.shutdown(std::net::Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        assert!(leg_info(&client).is_some() && leg_info(&server).is_some());
        socket2::SockRef::from(&server).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(server);
        assert_eq!(leg_info(&client), None);
    }

    #[test]
    fn a_connection_is_there_before_it_is_accepted_and_no_more_after_a_reset() {
        for address in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            let client = TcpStream::connect(to).unwrap();
            let from = client.local_addr().unwrap();
            assert_eq!(has_connection(to, from), Some(true), "{address}");
            socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(client);
            assert_eq!(
                has_connection(to, from),
                Some(false),
                "{address}: it waits to be accepted, and is none"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse(&bytes), existence(&bytes));
        }
    }
}
