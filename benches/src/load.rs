//! The load: blocking sockets on threads inside the pods' namespaces, the same for every subject, bounded in
//! time, and sent only to addresses of namespaces made for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use lab::Netns;

const CHUNK: usize = 256 << 10;
const BACKLOG: i32 = 4_096;
const LIMIT: Duration = Duration::from_secs(10);
/// Threads that accept short connections, at most.
const ACCEPTORS: usize = 32;
/// Before the window of a stream's rate: slow start is not what is measured.
const RAMP: Duration = Duration::from_millis(100);

/// Where the load comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) client: &'a Netns,
    pub(crate) server: &'a Netns,
    pub(crate) to: SocketAddr,
}

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

/// What bulk streams moved.
#[derive(Debug)]
pub(crate) struct Moved {
    /// Bytes that reached the server's application, all streams together.
    pub(crate) bytes: f64,
    /// Bytes per second, measured once the streams were up.
    pub(crate) rate: f64,
}

/// Bulk streams from client to server, for `span`.
pub(crate) fn bulk(ends: Ends<'_>, streams: usize, span: Duration) -> io::Result<Moved> {
    let listener = listen(ends)?;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (received, stop) = (&received, &stop);
        serve(scope, &listener, move |stream| swallow(&stream, received, stop));
        let sent = scope.spawn(move || send_until_closed(ends, streams));
        thread::sleep(RAMP);
        let (from, started) = (received.load(Ordering::Relaxed), Instant::now());
        thread::sleep(span);
        let (until, took) = (received.load(Ordering::Relaxed), started.elapsed());
        // Servers that close with data unread end the clients' writes.
        stop.store(true, Ordering::Relaxed);
        let sent = sent.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")));
        end_serving(&listener);
        sent?;
        Ok(Moved {
            bytes: received.load(Ordering::Relaxed) as f64,
            rate: (until - from) as f64 / took.as_secs_f64(),
        })
    })
}

fn swallow(mut stream: &TcpStream, received: &AtomicU64, stop: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(LIMIT));
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => received.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}

fn send_until_closed(ends: Ends<'_>, streams: usize) -> io::Result<()> {
    let results = on_threads(ends.client, streams, |_| {
        let mut stream = TcpStream::connect_timeout(&ends.to, LIMIT)?;
        stream.set_write_timeout(Some(LIMIT))?;
        let chunk = vec![7; CHUNK];
        loop {
            match stream.write_all(&chunk) {
                Ok(()) => {}
                // A stream that nobody takes anything from would be measured for ever.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // Its server has heard enough.
                Err(_) => return Ok(()),
            }
        }
    });
    results.into_iter().collect()
}

/// Round trips: `bytes` there, and when all have arrived as many back, on each of `connections`.
pub(crate) fn exchange(
    ends: Ends<'_>,
    bytes: usize,
    connections: usize,
    span: Duration,
) -> io::Result<Latencies> {
    let listener = listen(ends)?;
    thread::scope(|scope| {
        serve(scope, &listener, move |stream| echo(stream, bytes));
        let results = on_threads(ends.client, connections, |_| round_trips(ends.to, bytes, span));
        end_serving(&listener);
        gather(results)
    })
}

fn echo(mut stream: TcpStream, bytes: usize) {
    let _ = stream.set_nodelay(true);
    // A proxy that stalls may pass on no FIN either.
    let _ = stream.set_read_timeout(Some(LIMIT));
    let _ = stream.set_write_timeout(Some(LIMIT));
    let mut message = vec![0; bytes];
    while stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_ok() {}
}

fn round_trips(to: SocketAddr, bytes: usize, span: Duration) -> io::Result<Vec<f64>> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let (mut message, mut latencies, start) = (vec![1; bytes], Vec::new(), Instant::now());
    while start.elapsed() < span {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        latencies.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(latencies)
}

/// Latencies of whole connections, from `connect()` to the peer's FIN with one byte each way between, and how
/// many there were per second.
pub(crate) fn connections(ends: Ends<'_>, clients: usize, span: Duration) -> io::Result<(Latencies, f64)> {
    with_short_server(ends, clients, || {
        let begun = Instant::now();
        let latencies = gather(on_threads(ends.client, clients, |_| {
            let (mut latencies, start) = (Vec::new(), Instant::now());
            while start.elapsed() < span {
                latencies.push(open_and_close(ends.to)?);
            }
            Ok(latencies)
        }))?;
        // Not `span`: the last connections end after it.
        let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
        Ok((latencies, rate))
    })
}

/// Makes `count` short connections with `clients` threads.
pub(crate) fn connections_counted(ends: Ends<'_>, clients: usize, count: usize) -> io::Result<()> {
    with_short_server(ends, clients, || {
        let each = count / clients;
        let results = on_threads(ends.client, clients, |_| {
            (0..each).try_for_each(|_| open_and_close(ends.to).map(drop))
        });
        results.into_iter().collect()
    })
}

fn with_short_server<T>(
    ends: Ends<'_>,
    clients: usize,
    load: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let listener = listen(ends)?;
    thread::scope(|scope| {
        for _ in 0..clients.clamp(1, ACCEPTORS) {
            let listener = listener.try_clone()?;
            scope.spawn(move || serve_short(&listener));
        }
        let outcome = load();
        end_serving(&listener);
        outcome
    })
}

fn serve_short(listener: &TcpListener) {
    let mut byte = [0];
    while let Ok((mut stream, _)) = listener.accept() {
        // A client that gave up is its own error, not the server's.
        let _ = stream.set_read_timeout(Some(LIMIT));
        let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    }
}

/// The server closes first: a client that did would run out of ports, which rest for a minute then.
fn open_and_close(to: SocketAddr) -> io::Result<f64> {
    let (begun, mut byte) = (Instant::now(), [1]);
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    if stream.read(&mut byte)? != 0 {
        return Err(io::Error::other("bytes after the last one"));
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

/// Opens `count` connections, passes a byte each way on each, and leaves them idle while `body` runs.
pub(crate) fn idle<T>(ends: Ends<'_>, count: usize, body: impl FnOnce() -> T) -> io::Result<T> {
    let listener = listen(ends)?;
    // Linux takes it for accept(2), too: socket(7).
    socket2::SockRef::from(&listener).set_read_timeout(Some(LIMIT))?;
    let mut kept = Vec::with_capacity(2 * count);
    for _ in 0..count {
        let mut client = ends.client.run(|| TcpStream::connect_timeout(&ends.to, LIMIT))?;
        let (mut server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(LIMIT))?;
        }
        let mut byte = [1];
        client.write_all(&byte)?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        kept.push(client);
        kept.push(server);
    }
    let outcome = body();
    // Servers first: their ports need no rest.
    kept.iter().rev().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    Ok(outcome)
}

/// Attempts that are refused, paced to `rate` per second. Returns the latencies of `connect()`'s refusal.
///
/// Errors: an attempt that was let in.
pub(crate) fn refused(from: &Netns, to: SocketAddr, rate: f64, span: Duration) -> io::Result<Latencies> {
    const THREADS: usize = 4;
    let pause = Duration::from_secs_f64(THREADS as f64 / rate);
    gather(on_threads(from, THREADS, |_| {
        let (mut latencies, start, mut next) = (Vec::new(), Instant::now(), Instant::now());
        while start.elapsed() < span {
            let begun = Instant::now();
            match TcpStream::connect_timeout(&to, LIMIT) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::other("a connection that a policy denies was let in")),
            }
            latencies.push(begun.elapsed().as_secs_f64() * 1e6);
            next += pause;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(latencies)
    }))
}

/// Runs `load` on threads inside a namespace and waits for all of them.
fn on_threads<T: Send>(
    inside: &Netns,
    threads: usize,
    load: impl Fn(usize) -> io::Result<T> + Sync,
) -> Vec<io::Result<T>> {
    let load = &load;
    inside.run(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|at| scope.spawn(move || load(at))).collect();
            let panicked = |_| Err(io::Error::other("a client panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        })
    })
}

fn gather(results: Vec<io::Result<Vec<f64>>>) -> io::Result<Latencies> {
    Ok(Latencies::new(results.into_iter().collect::<io::Result<Vec<_>>>()?.concat()))
}

/// A listener whose queue holds every client at once: SYNs that find it full are sent again after a second.
pub(crate) fn listen(ends: Ends<'_>) -> io::Result<TcpListener> {
    let listener = ends.server.listen(ends.to.port())?;
    // A second listen(2) changes the length of the queue.
    socket2::SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// Accepts until [`end_serving`], each connection on a thread of its own.
pub(crate) fn serve<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &'scope TcpListener,
    handle: impl Fn(TcpStream) + Send + Copy + 'scope,
) {
    scope.spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            scope.spawn(move || handle(stream));
        }
    });
}

/// Wakes whoever accepts: accept(2) then fails with EINVAL.
pub(crate) fn end_serving(listener: &TcpListener) {
    let _ = socket2::SockRef::from(listener).shutdown(Shutdown::Both);
}
