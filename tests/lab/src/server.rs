//! A small TCP server that tells every client the address it was seen with.
//!
//! The client speaks first. `SINK\n`: everything that follows is read and thrown away, then the number of
//! bytes is answered. A line that begins with `GET `: the greeting as an HTTP/1.0 answer. Anything else, or
//! nothing at all before the client's FIN: the greeting line itself.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use crate::netns::Netns;
use crate::wait::patiently;

/// What the greeting line begins with; the client's address and port follow.
pub const GREETING: &str = "you are ";

/// A client that says nothing does not hold its thread for longer.
const SILENCE: Duration = Duration::from_secs(30);
const SINK_BUFFER: usize = 256 * 1024;

/// A server that answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on a listener, on threads of its own.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let peers = Arc::new(Mutex::new(Vec::new()));
        let (accepting, seen) = (Arc::clone(&listener), Arc::clone(&peers));
        let thread = thread::Builder::new().name("lab-server".into()).spawn(move || {
            // Ends when the drop shuts the listener down: accept(2) then gives EINVAL.
            while let Ok((stream, peer)) = accepting.accept() {
                // A socket of both families takes an IPv4 client for ::ffff:a.b.c.d.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
                thread::spawn(move || answer(stream, peer));
            }
        })?;
        Ok(Self { address, listener, peers, thread: Some(thread) })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of every client accepted so far, in order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Netns {
    /// Starts a [`Server`] inside on every IPv4 address.
    pub fn serve(&self, port: u16) -> io::Result<Server> {
        Server::start(self.listen(port)?)
    }
}

/// Asks a [`Server`] on the other end which address it sees. The connection is used up.
pub fn greeting_peer(stream: &mut TcpStream, limit: Duration) -> io::Result<SocketAddr> {
    stream.set_read_timeout(Some(patiently(limit)))?;
    stream.write_all(b"HELLO\n")?;
    let mut line = String::new();
    stream.take(128).read_to_string(&mut line)?;
    line.trim_end()
        .strip_prefix(GREETING)
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not a greeting: {line:?}")))
}

fn answer(stream: TcpStream, peer: SocketAddr) {
    // The client sees what went wrong from its own end.
    let _ = converse(&stream, peer);
    let _ = stream.shutdown(Shutdown::Write);
}

fn converse(stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    (&mut reader).take(1024).read_line(&mut line)?;
    if line == "SINK\n" {
        let count = drain(&mut reader)?;
        return writeln!(&*stream, "{count}");
    }
    let greeting = format!("{GREETING}{peer}\n");
    if line.starts_with("GET ") {
        while line.trim_end() != "" {
            line.clear();
            (&mut reader).take(8192).read_line(&mut line)?;
        }
        let length = greeting.len();
        return write!(
            &*stream,
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{greeting}"
        );
    }
    (&*stream).write_all(greeting.as_bytes())
}

fn drain(reader: &mut BufReader<&TcpStream>) -> io::Result<u64> {
    let mut count = reader.buffer().len() as u64;
    let buffered = reader.buffer().len();
    reader.consume(buffered);
    let mut buffer = vec![0; SINK_BUFFER];
    loop {
        match reader.get_mut().read(&mut buffer) {
            Ok(0) => return Ok(count),
            Ok(read) => count += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn every_way_to_ask_is_answered_with_the_client_s_own_address_or_its_byte_count() {
        let namespace = Netns::create("server").unwrap();
        namespace.ip("link set lo up\n").unwrap();
        let server = namespace.serve(80).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        namespace.run(|| {
            let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
            let local = stream.local_addr().unwrap();
            assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), local);
            assert_eq!(server.peers(), [local]);
            assert!(ask(address, b"").starts_with(GREETING));
            assert!(
                ask(address, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").contains("\r\n\r\nyou are 127.0.0.1:")
            );
            let mut sink = b"SINK\n".to_vec();
            sink.extend(std::iter::repeat_n(7, 1_000_000));
            assert_eq!(ask(address, &sink), "1000000\n");
        });
        drop(server);
        assert!(namespace.connect(address, LIMIT).is_err());
    }
}
