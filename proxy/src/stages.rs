//! Single stages of a connection's way, for the micro benches and for fuzzing. Not built without the feature `stages`.

use flow::Tuple;
use futures_util::FutureExt;

use crate::hello;
use crate::packet::{parse_flow, parse_syn};
use crate::pairing::Pairing;
use crate::sys::nfqueue;

/// Reads one message of the kernel's queue as the gate does: the packet in it, and the attempt that it is.
/// `None` when it is neither.
pub fn read_held(message: &[u8]) -> Option<Tuple> {
    let packet = nfqueue::parse(message)?;
    parse_syn(packet.payload).ok().map(|syn| syn.tuple)
}

/// Reads a packet from its IP header on, as the gate does: the connection attempt, and the flow, that it begins.
pub fn read_packet(packet: &[u8]) -> (Option<Tuple>, Option<Tuple>) {
    (parse_syn(packet).ok().map(|syn| syn.tuple), parse_flow(packet).ok())
}

/// A message as the kernel's queue sends it, with this packet.
pub fn message_with(packet: &[u8]) -> Vec<u8> {
    nfqueue::message_with(packet)
}

/// The server name and the protocols of the TLS ClientHello in these pieces, as they come from a client.
pub fn read_hello<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<audit::Tls> {
    hello::in_pieces(pieces)
}

/// Connections that are expected and delivered.
#[derive(Debug)]
pub struct Pairs(Pairing<u64>);

impl Default for Pairs {
    fn default() -> Self {
        Self(Pairing::new())
    }
}

impl Pairs {
    /// Expects a connection, delivers it, and takes it. False when any of that failed.
    pub fn pair(&self, tuple: Tuple) -> bool {
        let Some(mut expected) = self.0.expect(tuple) else { return false };
        self.0.deliver(&tuple, 1).is_ok() && expected.accepted().now_or_never() == Some(1)
    }
}
