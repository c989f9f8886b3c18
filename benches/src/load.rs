//! The load: blocking sockets on threads inside the pods' namespaces, the same for every subject, bounded in
//! time, and sent only to addresses of namespaces made for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::Netns;

const CHUNK: usize = 256 << 10;
const LIMIT: Duration = Duration::from_secs(10);
/// Threads that accept.
const ACCEPTORS: usize = 8;

/// Latencies in microseconds, sorted.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<f64>);

impl Latencies {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index from a share of a length"
    )]
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let at = (share * self.0.len() as f64) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

/// Bytes that one stream brought to the server's application within `span`.
pub(crate) fn bulk(client: &Netns, server: &Netns, to: SocketAddr, span: Duration) -> io::Result<f64> {
    let listener = server.listen(to.port())?;
    thread::scope(|scope| {
        let received = scope.spawn(move || -> io::Result<f64> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(LIMIT))?;
            let (mut buffer, mut total, start) = (vec![0; CHUNK], 0.0, Instant::now());
            while start.elapsed() < span {
                match stream.read(&mut buffer)? {
                    0 => break,
                    read => total += read as f64,
                }
            }
            Ok(total)
        });
        client.run(|| -> io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
            let chunk = vec![7; CHUNK];
            // The server ends it by closing with data unread.
            while stream.write_all(&chunk).is_ok() {}
            Ok(())
        })?;
        received.join().map_err(|_| io::Error::other("the server panicked"))?
    })
}

/// Round trips of 64 bytes on one connection.
pub(crate) fn ping_pong(
    client: &Netns,
    server: &Netns,
    to: SocketAddr,
    span: Duration,
) -> io::Result<Latencies> {
    let listener = server.listen(to.port())?;
    thread::scope(|scope| {
        scope.spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut message = [0; 64];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
            Ok(())
        });
        client.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let (mut message, mut latencies, start) = ([1; 64], Vec::new(), Instant::now());
            while start.elapsed() < span {
                let sent = Instant::now();
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            Ok(Latencies::new(latencies))
        })
    })
}

/// Latencies of whole connections: from connect() to the peer's FIN.
pub(crate) fn connections(
    client: &Netns,
    server: &Netns,
    to: SocketAddr,
    clients: usize,
    span: Duration,
) -> io::Result<Latencies> {
    let listener = server.listen(to.port())?;
    thread::scope(|scope| {
        for _ in 0..ACCEPTORS {
            let listener = listener.try_clone()?;
            scope.spawn(move || serve_short(&listener));
        }
        let latencies = client.run(|| {
            thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..clients).map(|_| scope.spawn(|| open_and_close(to, span))).collect();
                threads
                    .into_iter()
                    .map(|thread| {
                        thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
                    })
                    .collect::<io::Result<Vec<Vec<f64>>>>()
            })
        });
        // Wakes the acceptors: accept(2) then fails with EINVAL.
        wake_acceptors(&listener);
        Ok(Latencies::new(latencies?.concat()))
    })
}

fn serve_short(listener: &TcpListener) {
    let mut byte = [0];
    while let Ok((mut stream, _)) = listener.accept() {
        // A client that gave up is its own error, not the server's.
        let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    }
}

fn open_and_close(to: SocketAddr, span: Duration) -> io::Result<Vec<f64>> {
    let (mut latencies, start, mut byte) = (Vec::new(), Instant::now(), [1]);
    while start.elapsed() < span {
        let begun = Instant::now();
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        // The server closes first: a client that did would run out of ports, which rest for a minute then.
        if stream.read(&mut byte)? != 0 {
            return Err(io::Error::other("bytes after the last one"));
        }
        latencies.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(latencies)
}

fn wake_acceptors(listener: &TcpListener) {
    let _ = socket2::SockRef::from(listener).shutdown(Shutdown::Both);
}
