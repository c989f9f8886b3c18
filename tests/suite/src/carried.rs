//! One connection, seen from both ends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lab::{Netns, patiently, wait_for};
use socket2::SockRef;

use crate::enforced::LIMIT;

/// An established connection: the client's socket and the server's.
#[derive(Debug)]
pub struct Carried {
    /// The client's end.
    pub client: TcpStream,
    /// The server's end.
    pub server: TcpStream,
    /// The client's address and port.
    pub local: SocketAddr,
    /// Who the server takes the client for.
    pub peer: SocketAddr,
}

impl Carried {
    /// Connects and accepts.
    pub fn open(client: &Netns, listener: &TcpListener, to: SocketAddr) -> Self {
        let stream = client.connect(to, LIMIT).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        Self::accept(stream, listener)
    }

    /// Accepts what has connected.
    pub fn accept(client: TcpStream, listener: &TcpListener) -> Self {
        let (server, peer) = accept(listener, LIMIT).expect("the server accepts");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(patiently(LIMIT))).expect("a read limit");
            stream.set_nodelay(true).expect("no delay");
        }
        let local = client.local_addr().expect("the client's address");
        Self { client, server, local, peer }
    }

    /// Sends `request` bytes to the server and `response` bytes back, and checks their content.
    pub fn exchange(&mut self, request: usize, response: usize) -> io::Result<()> {
        transfer(&mut self.client, &mut self.server, request)?;
        transfer(&mut self.server, &mut self.client, response)
    }

    /// True when bytes still come through, both ways.
    pub fn is_alive(&mut self) -> bool {
        self.exchange(1, 1).is_ok()
    }

    /// Waits until both ends have seen a reset. False when either sees anything else.
    pub fn is_reset(&mut self) -> bool {
        let mut byte = [0];
        let mut reset = |stream: &mut TcpStream| matches!(stream.read(&mut byte), Err(error) if error.kind() == ErrorKind::ConnectionReset);
        let client = reset(&mut self.client);
        reset(&mut self.server) && client
    }

    /// Closes both ends, the client first.
    pub fn close(self) {
        let Self { client, mut server, .. } = self;
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).expect("the client's FIN");
    }
}

/// Accepts one connection; `None` when none comes within `limit`.
pub fn accept(listener: &TcpListener, limit: Duration) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).expect("a listener that does not block");
    let accepted = wait_for(limit, || match listener.accept() {
        Ok(accepted) => Some(accepted),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("accept: {error}"),
    });
    if let Some((stream, _)) = &accepted {
        stream.set_nonblocking(false).expect("a stream that blocks");
    }
    accepted
}

/// Makes the coming close of this socket a reset.
pub fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("linger");
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, count: usize) -> io::Result<()> {
    let sent: Vec<u8> = (0..count).map(|index| index.wrapping_mul(31).to_le_bytes()[0]).collect();
    let writer = from.try_clone()?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| (&writer).write_all(&sent));
        let mut received = vec![0; count];
        let read = to.read_exact(&mut received);
        if read.is_err() {
            // Whoever waits for room waits for nothing.
            let _ = writer.shutdown(std::net::Shutdown::Write);
        }
        writing.join().expect("the writer")?;
        read?;
        assert!(received == sent, "{count} bytes arrived changed");
        Ok(())
    })
}
