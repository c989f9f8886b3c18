//! A way to a server that can be cut and opened again: bytes go through as they are.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock;

/// A listening port of 127.0.0.1 behind which a server is.
#[derive(Debug)]
pub struct Tunnel {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    ended: AtomicBool,
    /// Both ends of every connection.
    streams: Mutex<Vec<TcpStream>>,
}

impl Tunnel {
    pub(crate) fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let accepting = Arc::clone(&state);
        std::thread::Builder::new().name("tunnel".to_owned()).spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client
                    && !accepting.cut.load(Ordering::SeqCst)
                {
                    // A server that is away is a connection that ends.
                    let _ = accepting.carry(client, server);
                }
            }
        })?;
        Ok(Self { address, state })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and lets no new one through.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        self.state.end_all();
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes who accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn carry(&self, client: TcpStream, server: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(server)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            lock(&self.streams).push(stream.try_clone()?);
        }
        if self.cut.load(Ordering::SeqCst) {
            self.end_all();
        }
        for (mut from, mut to) in
            [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)]
        {
            std::thread::Builder::new().name("tunnel".to_owned()).spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            })?;
        }
        Ok(())
    }

    fn end_all(&self) {
        for stream in lock(&self.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
