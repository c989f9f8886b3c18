//! Carries bytes between two established legs until both directions are closed, or either breaks.
//!
//! Small messages are copied through a buffer of the thread; a stream that fills it is spliced through a
//! pooled pipe. A FIN is passed on when everything before it was delivered; a reset ends both legs.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flow::EndCause;
use futures_util::FutureExt;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::pipes::{BorrowedPipe, PipePool};
use crate::registry::{Live, Stop};

/// One leg of a carried connection.
pub(crate) type LegSocket = AsyncFd<TcpStream>;

/// A spliced stream lets others run after this many bytes.
const YIELD_AFTER: usize = 256 << 10;
/// The largest splice threshold, and so the size of the copy buffer.
const MAX_COPY: usize = 64 << 10;

thread_local! {
    static COPY_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_COPY].into_boxed_slice());
}

/// How bytes are moved.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) pipes: PipePool,
    /// Bytes of one read from which on a stream is spliced.
    pub(crate) splice_threshold: usize,
    pub(crate) idle_limit: Option<Duration>,
}

/// A direction that cannot go on.
#[derive(Debug)]
enum Broken {
    /// The leg that bytes come from.
    From(io::Error),
    /// The leg that bytes go to.
    To(io::Error),
}

impl Carrier {
    /// Carries both directions and says why it ended. The legs are left open: a cause other than
    /// `ClientClosed` and `ServerClosed` asks for a reset of both.
    pub(crate) async fn relay(&self, client: &LegSocket, server: &LegSocket, live: &Live) -> EndCause {
        let mut up = pin!(self.pump(client, server, &live.client_bytes));
        let mut down = pin!(self.pump(server, client, &live.server_bytes));
        let (mut up_open, mut down_open) = (true, true);
        let mut first_to_close = EndCause::ClientClosed;
        loop {
            // The pumps come first: they deliver what arrived before a reset, then meet the reset themselves.
            tokio::select! {
                biased;
                outcome = &mut up, if up_open => match outcome {
                    Ok(()) if !down_open => return first_to_close,
                    Ok(()) => up_open = false,
                    Err(broken) => return broken.cause(EndCause::ClientReset, EndCause::ServerReset),
                },
                outcome = &mut down, if down_open => match outcome {
                    Ok(()) if !up_open => return first_to_close,
                    Ok(()) => {
                        down_open = false;
                        first_to_close = EndCause::ServerClosed;
                    }
                    Err(broken) => return broken.cause(EndCause::ServerReset, EndCause::ClientReset),
                },
                stop = live.stopped() => return match stop {
                    Stop::Revoked(_) => EndCause::PolicyRevoked,
                    Stop::Shutdown => EndCause::Shutdown,
                    Stop::ClientGone => EndCause::ClientGone,
                },
                cause = failed(client) => return leg_cause(&cause, EndCause::ClientReset),
                cause = failed(server) => return leg_cause(&cause, EndCause::ServerReset),
                () = self.idle(live) => return EndCause::IdleTimeout,
            }
        }
    }

    /// Moves one direction until the FIN, and passes the FIN on.
    async fn pump(&self, from: &LegSocket, to: &LegSocket, moved: &AtomicU64) -> Result<(), Broken> {
        let mut is_stream = false;
        loop {
            let pipe = if is_stream { self.pipes.borrow() } else { None };
            let step = match pipe {
                Some(pipe) => splice_burst(pipe, from, to, moved).await?,
                None => self.copy(from, to, moved).await?,
            };
            match step {
                Step::Eof => break,
                Step::Moved(bytes) => is_stream = bytes >= self.splice_threshold,
            }
        }
        match to.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(Broken::To(error)),
            _ => Ok(()),
        }
    }

    /// Moves one buffer full.
    async fn copy(&self, from: &LegSocket, to: &LegSocket, moved: &AtomicU64) -> Result<Step, Broken> {
        loop {
            let mut ready = from.readable().await.map_err(Broken::From)?;
            let wanted = self.splice_threshold.min(MAX_COPY);
            let copied = COPY_BUFFER.with_borrow_mut(|buffer| copy_once(from, to, &mut buffer[..wanted]))?;
            let Some(copied) = copied else {
                ready.clear_ready();
                continue;
            };
            if copied.read == 0 {
                return Ok(Step::Eof);
            }
            if copied.read < wanted && !has_urgent_data(from) {
                // A short read has drained the socket. What arrives later raises readiness anew, and a FIN
                // that has arrived already is kept: the runtime never clears the closed state.
                ready.clear_ready();
            }
            drop(ready);
            moved.fetch_add(copied.written as u64, Ordering::Relaxed);
            if let Some(rest) = copied.rest {
                write_rest(to, &rest, moved).await?;
            }
            return Ok(Step::Moved(copied.read));
        }
    }

    /// Resolves when no byte has moved for the configured limit; never without one.
    async fn idle(&self, live: &Live) {
        let Some(limit) = self.idle_limit else { return std::future::pending().await };
        let bytes = || live.client_bytes.load(Ordering::Relaxed) + live.server_bytes.load(Ordering::Relaxed);
        let (mut seen, mut since) = (bytes(), Instant::now());
        loop {
            tokio::time::sleep_until(since + limit).await;
            let now = bytes();
            if now == seen {
                return;
            }
            (seen, since) = (now, Instant::now());
        }
    }
}

enum Step {
    Moved(usize),
    Eof,
}

/// What one read and the write of it did. `rest` holds what the write did not take.
struct Copied {
    read: usize,
    written: usize,
    rest: Option<Box<[u8]>>,
}

/// Reads once and writes what was read. `None` when there is nothing to read now.
fn copy_once(from: &LegSocket, to: &LegSocket, buffer: &mut [u8]) -> Result<Option<Copied>, Broken> {
    let read = match again(|| from.get_ref().read(buffer)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        other => other.map_err(Broken::From)?,
    };
    if read == 0 {
        return Ok(Some(Copied { read, written: 0, rest: None }));
    }
    let written = match again(|| to.get_ref().write(&buffer[..read])) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        other => other.map_err(Broken::To)?,
    };
    let rest = (written < read).then(|| buffer[written..read].into());
    Ok(Some(Copied { read, written, rest }))
}

async fn write_rest(to: &LegSocket, mut rest: &[u8], moved: &AtomicU64) -> Result<(), Broken> {
    while !rest.is_empty() {
        let mut ready = to.writable().await.map_err(Broken::To)?;
        match again(|| to.get_ref().write(rest)) {
            Ok(written) => {
                moved.fetch_add(written as u64, Ordering::Relaxed);
                rest = &rest[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(Broken::To(error)),
        }
    }
    Ok(())
}

/// Splices until the source is drained, then gives the pipe back. `Moved` says how much the last fill held,
/// so that a stream turned into small messages is copied again.
async fn splice_burst(
    mut pipe: BorrowedPipe<'_>,
    from: &LegSocket,
    to: &LegSocket,
    moved: &AtomicU64,
) -> Result<Step, Broken> {
    let (mut since_yield, mut largest) = (0, None);
    loop {
        // The pipe is held only while bytes are there: the first wait is for data that was just seen.
        let filled = match from.try_io(Interest::READABLE, |socket| pipe.fill(socket)) {
            // The FIN, or the mark of urgent data: a read tells them apart.
            Ok(0) => return Ok(Step::Moved(0)),
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                drop(pipe);
                if largest.is_none() {
                    // Nothing was there at all: wait without a pipe, and stay a stream.
                    drop(from.readable().await.map_err(Broken::From)?);
                }
                return Ok(Step::Moved(largest.unwrap_or(MAX_COPY)));
            }
            Err(error) => return Err(Broken::From(error)),
        };
        largest = largest.max(Some(filled));
        while pipe.len() > 0 {
            match to.try_io(Interest::WRITABLE, |socket| pipe.drain(socket)) {
                Ok(drained) => {
                    moved.fetch_add(drained as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(to.writable().await.map_err(Broken::To)?);
                }
                Err(error) => return Err(Broken::To(error)),
            }
        }
        since_yield += filled;
        if since_yield >= YIELD_AFTER {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Resolves when a leg has failed, with the reason. A reset is noticed here when no pump reads the leg, or
/// when the pump that does is waiting for the other side to take bytes.
async fn failed(leg: &LegSocket) -> io::Error {
    match leg.ready(Interest::ERROR).await {
        Ok(_) => match leg.get_ref().take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Someone has taken the error already: it was reported as the end of a pump.
            Ok(None) => io::Error::from_raw_os_error(libc::ECONNRESET),
        },
        Err(error) => error,
    }
}

/// Whether urgent data has arrived. A read then stops at its mark, with more behind it (tcp(7)).
fn has_urgent_data(leg: &LegSocket) -> bool {
    leg.ready(Interest::PRIORITY).now_or_never().is_some()
}

fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Broken {
    fn cause(self, of_from: EndCause, of_to: EndCause) -> EndCause {
        match self {
            Self::From(error) => leg_cause(&error, of_from),
            Self::To(error) => leg_cause(&error, of_to),
        }
    }
}

fn leg_cause(error: &io::Error, reset: EndCause) -> EndCause {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => EndCause::PeerTimeout,
        _ => reset,
    }
}

#[cfg(test)]
mod tests;
