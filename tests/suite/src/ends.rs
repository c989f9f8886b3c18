//! The two ends of one connection, and what each of them sees happen to it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::{Netns, patiently, wait_for, wait_until};
use nix::libc;
use socket2::SockRef;

/// A listener in one namespace and a client in another.
#[derive(Debug)]
pub struct Dialer<'a> {
    client: &'a Netns,
    listener: TcpListener,
    to: SocketAddr,
    limit: Duration,
}

impl<'a> Dialer<'a> {
    /// Listens in `server`; the port is that of `to`.
    pub fn new(client: &'a Netns, server: &Netns, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        let (listener, limit) = (server.listen(to.port())?, patiently(limit));
        // Linux takes it for accept(2), too: socket(7).
        SockRef::from(&listener).set_read_timeout(Some(limit))?;
        Ok(Self { client, listener, to, limit })
    }

    /// A new connection: the client's end, and the server's.
    pub fn pair(&self) -> io::Result<(TcpStream, TcpStream)> {
        self.prepared_pair(|_| Ok(()), |_| Ok(()))
    }

    /// A new connection whose client's end was `prepared` before it was connected, and whose server's end
    /// inherits what `listening` sets on the listener.
    pub fn prepared_pair(
        &self,
        prepared: impl FnOnce(&SockRef<'_>) -> io::Result<()>,
        listening: impl FnOnce(&SockRef<'_>) -> io::Result<()>,
    ) -> io::Result<(TcpStream, TcpStream)> {
        listening(&SockRef::from(&self.listener))?;
        let socket = self.client.bound(SocketAddr::from(([0, 0, 0, 0], 0)))?;
        prepared(&SockRef::from(&socket))?;
        socket.connect_timeout(&self.to.into(), self.limit)?;
        let (server, _) = self.listener.accept()?;
        for end in [SockRef::from(&socket), SockRef::from(&server)] {
            end.set_read_timeout(Some(self.limit))?;
            end.set_write_timeout(Some(self.limit))?;
        }
        Ok((socket.into(), server))
    }
}

/// How a connection looks at one end, once nothing more can be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Closed,
    /// ECONNRESET.
    Reset,
    /// EPIPE.
    BrokenPipe,
    /// Nothing happened within the limit.
    Silence,
    /// Another error, by its number.
    Error(i32),
}

impl End {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNRESET) => Self::Reset,
            Some(libc::EPIPE) => Self::BrokenPipe,
            Some(libc::EAGAIN) => Self::Silence,
            number => Self::Error(number.unwrap_or_default()),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("FIN"),
            Self::Reset => f.write_str("ECONNRESET"),
            Self::BrokenPipe => f.write_str("EPIPE"),
            Self::Silence => f.write_str("silence"),
            Self::Error(number) => write!(f, "errno {number}"),
        }
    }
}

/// Reads until nothing more comes. Returns the bytes and why there are no more.
pub fn read_to_end(mut stream: &TcpStream) -> (Vec<u8>, End) {
    let (mut read, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (read, End::Closed),
            Ok(count) => read.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (read, End::of(&error)),
        }
    }
}

/// Writes a byte now and then until that fails, and says how.
pub fn write_to_end(stream: &TcpStream, limit: Duration) -> End {
    let failed = wait_for(limit, || {
        stream.set_nonblocking(true).ok()?;
        (&*stream).write(b".").err().filter(|error| error.kind() != io::ErrorKind::WouldBlock)
    });
    let _ = stream.set_nonblocking(false);
    failed.map_or(End::Silence, |error| End::of(&error))
}

/// Writes until nothing has been taken for `quiet`. Returns how much was taken. The content is that of
/// `chunk_at`, which is asked for what comes after so many bytes.
pub fn fill<'a>(
    stream: &TcpStream,
    at_most: u64,
    quiet: Duration,
    chunk_at: impl Fn(u64) -> &'a [u8],
) -> io::Result<u64> {
    let (mut taken, mut since) = (0, Instant::now());
    while taken < at_most && since.elapsed() < quiet {
        let chunk = chunk_at(taken);
        let wanted = usize::try_from(at_most - taken).unwrap_or(usize::MAX).min(chunk.len());
        match write_some(stream, &chunk[..wanted])? {
            0 => std::thread::sleep(Duration::from_millis(1)),
            more => {
                taken += more;
                since = Instant::now();
            }
        }
    }
    Ok(taken)
}

/// Writes as much of `chunk` as is taken at once, which may be nothing.
pub fn write_some(mut stream: &TcpStream, chunk: &[u8]) -> io::Result<u64> {
    stream.set_nonblocking(true)?;
    let written = match stream.write(chunk) {
        Ok(count) => Ok(count as u64),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    };
    stream.set_nonblocking(false)?;
    written
}

/// Waits until `count` bytes lie unread at this end.
#[must_use]
pub fn unread(stream: &TcpStream, count: usize, limit: Duration) -> bool {
    let mut buffer = vec![0; count];
    wait_until(limit, || stream.peek(&mut buffer).is_ok_and(|seen| seen >= count))
}

/// Closes with a reset instead of a FIN: socket(7), `SO_LINGER` of zero.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket that can linger");
}
