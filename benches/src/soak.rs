//! Churn of every kind on one node for a bounded time, watched from outside: nothing may grow with the number of
//! connections that have been.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{Netns, wait_until};

use crate::load;
use crate::subject::Subject;
use crate::usage;

const LIMIT: Duration = Duration::from_secs(10);
/// Connections that only rest.
const RESTING: usize = 200;
/// Short connections at a time, of each kind.
const CLIENTS: usize = 4;
/// Conntrack keeps ended connections for two minutes; here seconds, so that its table reaches a steady size.
const CONNTRACK_RESTS_S: &str = "5";
/// Descriptors that come and go on their own.
const MOMENTARY: usize = 8;
/// What may be added between the first third of the run and its end.
const MEMORY_MAY_GROW: f64 = 2.0 * 1_048_576.0;

/// What is watched.
#[derive(Debug, Clone, Copy)]
struct Sample {
    descriptors: usize,
    pipes: usize,
    memory: f64,
    tracked: u64,
    connections: u64,
}

/// A connect() that takes this long has lost its SYN: the client's kernel sent it again.
const STALL: Duration = Duration::from_millis(900);

/// What the clients have done so far.
#[derive(Debug, Default)]
struct Done {
    /// Connections, refused ones included.
    connections: AtomicU64,
    /// The slowest connect(), in microseconds.
    slowest: AtomicU64,
    stalled: AtomicU64,
    /// The first that failed.
    failed: OnceLock<String>,
}

impl Done {
    fn note(&self, connect: Duration) {
        let micros = u64::try_from(connect.as_micros()).unwrap_or(u64::MAX);
        self.slowest.fetch_max(micros, Ordering::Relaxed);
        self.stalled.fetch_add(u64::from(connect >= STALL), Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs for `span` and fails when something has grown, or an attempt to connect has stalled.
pub(crate) fn run(binary: &Path, span: Duration) -> anyhow::Result<()> {
    let subject = Subject::sluice("sluice", binary)?;
    let node = subject.node()?;
    for state in ["time_wait", "close", "last_ack", "close_wait", "fin_wait"] {
        node.sysctl(&format!("net.netfilter.nf_conntrack_tcp_timeout_{state}"), CONNTRACK_RESTS_S)?;
    }
    let done = Done::default();
    let before = sample(&subject, &done)?;
    println!(
        "{:>6}  {:>12} {:>11} {:>6} {:>10} {:>8}",
        "s", "connections", "descriptors", "pipes", "MiB", "tracked"
    );
    let (early, late) =
        load::idle(subject.ends(subject.ports().2)?, RESTING, || churn(&subject, span, &done))??;
    if !wait_until(LIMIT, || live(&subject).is_ok_and(|live| live == 0.0)) {
        bail!("{} connections are live though all have ended", live(&subject)?);
    }
    let after = sample(&subject, &done)?;
    judge(before, early, late, after, &done)
}

/// Loads the node for `span`: the samples after a third of it and at its end.
fn churn(subject: &Subject, span: Duration, done: &Done) -> anyhow::Result<(Sample, Sample)> {
    let stop = AtomicBool::new(false);
    let (short, stream, _) = subject.ports();
    let (ends, bulk) = (subject.ends(short)?, subject.ends(stream)?);
    let stranger = subject.stranger()?;
    let listener = load::listen(ends)?;
    thread::scope(|scope| {
        let stop = &stop;
        load::serve(scope, &listener, |peer| drop(answer(peer)));
        for client in 0..CLIENTS {
            spawn_inside(scope, ends.client, stop, done, move |turn| one(ends.to, turn + client));
        }
        spawn_inside(scope, stranger, stop, done, move |_| {
            thread::sleep(Duration::from_millis(1));
            let begun = Instant::now();
            match TcpStream::connect_timeout(&ends.to, LIMIT) {
                Err(_) => Ok(begun.elapsed()),
                Ok(_) => Err(std::io::Error::other("a denied connection was let in")),
            }
        });
        let streams = scope.spawn(move || -> std::io::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                load::bulk(bulk, 4, Duration::from_millis(500))?;
            }
            Ok(())
        });
        let watched = watch(subject, span, done);
        stop.store(true, Ordering::Relaxed);
        load::end_serving(&listener);
        streams.join().map_err(|_| anyhow::anyhow!("the streams' thread panicked"))??;
        watched
    })
}

fn watch(subject: &Subject, span: Duration, done: &Done) -> anyhow::Result<(Sample, Sample)> {
    let (begun, mut early) = (Instant::now(), None);
    loop {
        thread::sleep((span / 12).min(span.saturating_sub(begun.elapsed())));
        if let Some(failed) = done.failed.get() {
            bail!("{failed}");
        }
        let now = sample(subject, done)?;
        println!(
            "{:>6.0}  {:>12} {:>11} {:>6} {:>10.1} {:>8}",
            begun.elapsed().as_secs_f64(),
            now.connections,
            now.descriptors,
            now.pipes,
            now.memory / 1_048_576.0,
            now.tracked
        );
        if early.is_none() && begun.elapsed() >= span / 3 {
            early = Some(now);
        }
        if begun.elapsed() >= span {
            return Ok((early.unwrap_or(now), now));
        }
    }
}

fn judge(before: Sample, early: Sample, late: Sample, after: Sample, done: &Done) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    if late.memory > early.memory * 1.1 + MEMORY_MAY_GROW {
        wrong.push(format!(
            "memory: {:.1} to {:.1} MiB",
            early.memory / 1_048_576.0,
            late.memory / 1_048_576.0
        ));
    }
    // Pooled pipes stay open, two descriptors each; a look at conntrack has a socket for a moment.
    if after.descriptors > before.descriptors + 2 * after.pipes + MOMENTARY {
        wrong.push(format!(
            "descriptors: {} to {}, {} pipes",
            before.descriptors, after.descriptors, after.pipes
        ));
    }
    if late.pipes > early.pipes.max(128) {
        wrong.push(format!("pipes: {} to {}", early.pipes, late.pipes));
    }
    if late.tracked > early.tracked * 3 / 2 + 1_000 {
        wrong.push(format!("conntrack: {} to {}", early.tracked, late.tracked));
    }
    if late.connections == early.connections {
        wrong.push("nothing but the time: no connection was made".to_owned());
    }
    let stalled = done.stalled.load(Ordering::Relaxed);
    println!("slowest connect(): {:.1} ms", done.slowest.load(Ordering::Relaxed) as f64 / 1e3);
    if stalled > 0 {
        wrong.push(format!("stalls: {stalled} attempts took longer than {STALL:?}"));
    }
    if wrong.is_empty() {
        println!("nothing has grown or stalled over {} connections", after.connections);
        return Ok(());
    }
    bail!("{}", wrong.join("; "))
}

fn sample(subject: &Subject, done: &Done) -> anyhow::Result<Sample> {
    let pids = subject.pids()?.context("no proxy")?;
    let (mut descriptors, mut pipes) = (0, 0);
    for pid in &pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            descriptors += 1;
            let is_pipe =
                fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"));
            pipes += usize::from(is_pipe);
        }
    }
    Ok(Sample {
        descriptors,
        pipes: pipes / 2,
        memory: usage::memory(&pids)?.anonymous,
        tracked: subject.node()?.sysctl_value("net.netfilter.nf_conntrack_count")?.parse()?,
        connections: done.connections.load(Ordering::Relaxed),
    })
}

fn live(subject: &Subject) -> anyhow::Result<f64> {
    subject.metric("sluice_connections_live")
}

/// Repeats `attempt` on a thread inside until told to stop. What fails is not repeated: it fails the run.
fn spawn_inside<'scope>(
    scope: &'scope Scope<'scope, '_>,
    inside: &'scope Netns,
    stop: &'scope AtomicBool,
    done: &'scope Done,
    attempt: impl Fn(usize) -> std::io::Result<Duration> + Send + 'scope,
) {
    scope.spawn(move || {
        inside.run(move || {
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                match attempt(turn) {
                    Ok(connect) => done.note(connect),
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(error) => {
                        let _ = done.failed.set(format!("the connection {turn} of a client failed: {error}"));
                        return;
                    }
                };
            }
        });
    });
}

/// One short connection: closed by the server, half closed first, reset by the client, or given up at once.
///
/// Returns how long connect() took.
fn one(to: SocketAddr, turn: usize) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    let connect = begun.elapsed();
    stream.set_read_timeout(Some(LIMIT))?;
    let mut byte = [1];
    match turn % 4 {
        0 => {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
        1 => {
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
        2 => {
            stream.write_all(&byte)?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
        _ => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
    }?;
    Ok(connect)
}

fn answer(mut peer: TcpStream) -> std::io::Result<()> {
    peer.set_read_timeout(Some(LIMIT))?;
    let mut byte = [0];
    peer.read_exact(&mut byte)?;
    peer.write_all(&byte)
}
