//! The first bytes of a client → the server name and the protocols that its TLS ClientHello asks for.
//!
//! Looks at bytes that pass anyway, after they were passed on: takes nothing, delays nothing, and asks the kernel
//! nothing. What does not begin as TLS is looked at once, at one byte. A hello in several pieces is put together, up
//! to a bound. The parser is that of rustls; what it refuses is no hello. Source: RFC 8446 section 4.1.2, RFC 6066
//! section 3, RFC 7301.

use std::fmt;

use audit::Tls;
use rustls::server::Acceptor;

use crate::registry::Live;

/// Bytes after which a hello that is not complete is given up. Those of browsers take 2 KiB.
const LONGEST: usize = 16 << 10;
/// A record that carries handshake messages, of any version of TLS (RFC 8446, section 5.1).
const HANDSHAKE: [u8; 2] = [22, 3];
/// Protocols that are kept of an offer, and the length of each.
const MOST_PROTOCOLS: usize = 16;

/// Waits for the hello of one connection.
#[derive(Debug, Default)]
pub(crate) struct FirstBytes {
    // Boxed, because most of the time there is none: an idle connection has not spoken, or has said its hello.
    reading: Option<Box<Reading>>,
}

struct Reading {
    acceptor: Acceptor,
    seen: usize,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What became of the next bytes.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// The hello goes on.
    More,
    /// Here it is.
    Hello(Tls),
    /// There is none, or none that can be read.
    NoHello,
}

impl FirstBytes {
    /// Looks at the next bytes of `live`. True while more are wanted.
    pub(crate) fn look(&mut self, live: &Live, bytes: &[u8]) -> bool {
        match next(&mut self.reading, bytes) {
            Look::More => true,
            Look::NoHello => false,
            Look::Hello(tls) => {
                live.note_tls(tls);
                false
            }
        }
    }
}

fn next(reading: &mut Option<Box<Reading>>, mut bytes: &[u8]) -> Look {
    if reading.is_none() && !begins_as_tls(bytes) {
        return Look::NoHello;
    }
    let reading = reading.get_or_insert_with(|| Box::new(Reading { acceptor: Acceptor::default(), seen: 0 }));
    while !bytes.is_empty() {
        reading.seen += bytes.len();
        if reading.seen > LONGEST || !matches!(reading.acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Look::NoHello;
        }
        reading.seen -= bytes.len();
        match reading.acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let offered = hello.alpn().into_iter().flatten().take(MOST_PROTOCOLS);
                return Look::Hello(Tls {
                    server_name: hello.server_name().map(Into::into),
                    // Names are bytes, registered ones text: RFC 7301, section 6.
                    protocols: offered.map(|name| String::from_utf8_lossy(name).into()).collect(),
                });
            }
            Err(_) => return Look::NoHello,
        }
    }
    Look::More
}

fn begins_as_tls(bytes: &[u8]) -> bool {
    bytes.len() <= HANDSHAKE.len() && HANDSHAKE.starts_with(bytes) || bytes.starts_with(&HANDSHAKE)
}

/// The hello in these pieces, for the fuzzer.
#[cfg(feature = "stages")]
pub(crate) fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Tls> {
    let mut reading = None;
    for piece in pieces {
        match next(&mut reading, piece) {
            Look::More => {}
            Look::Hello(tls) => return Some(tls),
            Look::NoHello => return None,
        }
    }
    None
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
