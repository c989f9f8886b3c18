//! One direction of a carried connection: takes bytes from one leg to the other until the FIN.
//!
//! A state machine that is polled, so that an idle direction is a few words of memory. Small messages are
//! copied through a buffer of the thread; a stream that fills it is spliced through a pooled pipe. A pipe is
//! held only while bytes are in it.

use std::cell::RefCell;
use std::io::{self, Read};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFdReadyGuard;

use crate::hello::FirstBytes;
use crate::pipes::BorrowedPipe;
use crate::registry::Live;
use crate::relay::{Carrier, LegSocket, was_reset};
use crate::sys::tcp;

/// A direction lets others run after this many bytes.
const YIELD_AFTER: usize = 256 << 10;
/// The largest splice threshold, and so the size of the copy buffer.
const MAX_COPY: usize = 64 << 10;
/// Behind short reads within the first so many bytes of a direction, its FIN is looked for.
const LOOKS_FOR_FIN: u64 = 4 << 10;

thread_local! {
    static COPY_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_COPY].into_boxed_slice());
}

/// A direction that cannot go on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The leg that bytes come from.
    From(io::Error),
    /// The leg that bytes go to.
    To(io::Error),
}

/// From where to where a direction goes, and what it uses on its way. Both directions of a connection are made of the
/// same few references, so they are put together when they are needed and take no room in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) carrier: &'a Carrier,
    pub(crate) from: &'a LegSocket,
    pub(crate) to: &'a LegSocket,
    /// The count of delivered bytes.
    pub(crate) moved: &'a AtomicU64,
    /// Whose first bytes are looked at.
    pub(crate) live: &'a Live,
    /// Whether a FIN is looked for behind what comes first.
    pub(crate) looks_for_fin: bool,
}

/// How far one direction is.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    held: Held<'a>,
    /// Looks at what comes first, while that is wanted.
    first: Option<FirstBytes>,
    /// The most that one fill of a pipe took since the source was last drained.
    largest_fill: u32,
    is_stream: bool,
    /// Nothing comes after what is held.
    at_end: bool,
    turns_used_up: u8,
    /// A splice has stopped at the mark of urgent data: there may be more to read than the runtime knows of.
    at_mark: bool,
}

/// Bytes that were taken and not yet delivered.
#[derive(Debug)]
enum Held<'a> {
    Nothing,
    Rest(Box<Rest>),
    Piped(BorrowedPipe<'a>),
}

#[derive(Debug)]
struct Rest {
    bytes: Box<[u8]>,
    delivered: usize,
}

/// What one read, and the write of it, came to.
enum Copied {
    /// There is nothing to read now.
    Nothing,
    /// So many bytes, all of them or some delivered.
    Bytes(usize),
    /// The FIN, perhaps after bytes.
    Fin,
}

impl<'a> Pump<'a> {
    /// At its beginning. `first` looks at what comes first.
    pub(crate) fn new(first: Option<FirstBytes>) -> Self {
        Self {
            held: Held::Nothing,
            first,
            largest_fill: 0,
            is_stream: false,
            at_end: false,
            turns_used_up: 0,
            at_mark: false,
        }
    }

    /// Turns that it has used up: so often it moved as much as it may before others run, and there was more.
    pub(crate) fn turns_used_up(&self) -> u16 {
        self.turns_used_up.into()
    }

    /// True unless bytes were taken and are not delivered yet.
    pub(crate) fn holds_nothing(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }

    /// Takes what has arrived, whatever the runtime knows: what it knows is older. False when there is nothing.
    pub(crate) fn take_arrived(&mut self, way: Way<'_>) -> Result<bool, Broken> {
        match self.copy_once(way, false)? {
            Copied::Nothing => return Ok(false),
            Copied::Fin => self.at_end = true,
            Copied::Bytes(_) => {}
        }
        Ok(true)
    }

    /// Moves what can be moved. Ready when the FIN was reached and everything before it is delivered.
    pub(crate) fn poll(&mut self, way: Way<'a>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut since_yield = 0;
        loop {
            ready!(self.poll_deliver(way, cx))?;
            if self.at_end {
                return Poll::Ready(Ok(()));
            }
            if since_yield >= YIELD_AFTER {
                self.turns_used_up = self.turns_used_up.saturating_add(1);
                ready!(yield_to_others(cx));
            }
            since_yield += ready!(self.poll_take(way, cx))?;
        }
    }

    /// Waits for bytes and takes them; how many.
    fn poll_take(&mut self, way: Way<'a>, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        if self.is_stream
            && let Some(pipe) = way.carrier.pipes.borrow()
        {
            self.poll_fill(way, cx, pipe)
        } else {
            self.poll_copy(way, cx)
        }
    }

    fn poll_copy(&mut self, way: Way<'a>, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        if self.at_mark {
            match self.copy_once(way, false)? {
                Copied::Nothing => self.at_mark = false,
                Copied::Fin => {
                    self.at_end = true;
                    return Poll::Ready(Ok(0));
                }
                Copied::Bytes(read) => return Poll::Ready(Ok(read)),
            }
        }
        loop {
            let mut ready = ready!(way.from.poll_read_ready(cx)).map_err(Broken::From)?;
            let fin_arrived = ready.ready().is_read_closed() && !was_reset(way.from);
            let wanted = way.carrier.copy_size();
            match self.copy_once(way, fin_arrived)? {
                Copied::Nothing => ready.clear_ready(),
                Copied::Fin => {
                    self.at_end = true;
                    return Poll::Ready(Ok(0));
                }
                Copied::Bytes(read) => {
                    self.is_stream = read >= way.carrier.splice_threshold;
                    if read < wanted && !has_urgent_data(way.from) {
                        // A short read has drained the socket. What arrives later raises readiness anew, and a
                        // FIN that has arrived already is kept: the runtime never clears the closed state.
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(read));
                }
            }
        }
    }

    /// Reads once and writes what was read. After the FIN has arrived a short read is the last one, and the FIN
    /// that is passed on next shares its segment.
    fn copy_once(&mut self, way: Way<'_>, fin_arrived: bool) -> Result<Copied, Broken> {
        let (from, to, wanted) = (way.from, way.to, way.carrier.copy_size());
        COPY_BUFFER.with_borrow_mut(|buffer| {
            let buffer = &mut buffer[..wanted];
            let mut read = match again(|| from.get_ref().read(buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Copied::Nothing),
                other => other.map_err(Broken::From)?,
            };
            if read == 0 {
                return Ok(Copied::Fin);
            }
            let mut last = fin_arrived && read < wanted && !has_urgent_data(from);
            let mut broken = None;
            // An answer is often all that a server says, and its FIN has arrived since the runtime looked. It then
            // travels with the answer: one packet, and one wake-up of the client.
            let looks = way.looks_for_fin && way.moved.load(Ordering::Relaxed) < LOOKS_FOR_FIN;
            if looks && !last && read < wanted {
                match again(|| from.get_ref().read(&mut buffer[read..])) {
                    Ok(0) => last = true,
                    Ok(more) => read += more,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // What came before it is delivered first.
                    Err(error) => broken = Some(Broken::From(error)),
                }
            }
            let written = match again(|| tcp::send(to.get_ref(), &buffer[..read], last)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                other => other.map_err(Broken::To)?,
            };
            way.moved.fetch_add(written as u64, Ordering::Relaxed);
            if written < read {
                self.held = Held::Rest(Box::new(Rest { bytes: buffer[written..read].into(), delivered: 0 }));
            }
            if let Some(broken) = broken {
                return Err(broken);
            }
            self.at_end = last;
            // They are on their way: nothing waits for this look.
            if let Some(first) = &mut self.first
                && !first.look(way.live, &buffer[..read])
            {
                self.first = None;
            }
            Ok(Copied::Bytes(read))
        })
    }

    fn poll_fill(
        &mut self,
        way: Way<'a>,
        cx: &mut Context<'_>,
        mut pipe: BorrowedPipe<'a>,
    ) -> Poll<Result<usize, Broken>> {
        // No hello is that long.
        self.first = None;
        match way.from.try_io(Interest::READABLE, |socket| pipe.fill(socket)) {
            // The FIN, or the mark of urgent data: a read tells them apart.
            Ok(0) => {
                self.is_stream = false;
                Poll::Ready(Ok(0))
            }
            Ok(filled) => {
                self.largest_fill = self.largest_fill.max(u32::try_from(filled).unwrap_or(u32::MAX));
                self.held = Held::Piped(pipe);
                Poll::Ready(Ok(filled))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Waits without a pipe. A stream turned into small messages is copied from then on.
                drop(pipe);
                if has_urgent_data(way.from) {
                    // At the mark too a splice finds nothing (tcp_splice_read in net/ipv4/tcp.c), and the runtime
                    // takes that for a socket that is drained.
                    (self.is_stream, self.at_mark) = (false, true);
                    return Poll::Ready(Ok(0));
                }
                let largest = usize::try_from(std::mem::take(&mut self.largest_fill)).unwrap_or(usize::MAX);
                self.is_stream = largest == 0 || largest >= way.carrier.splice_threshold;
                drop(ready!(way.from.poll_read_ready(cx)).map_err(Broken::From)?);
                Poll::Ready(Ok(0))
            }
            Err(error) => Poll::Ready(Err(Broken::From(error))),
        }
    }

    /// Delivers what is held. Writes first and asks for room when there was none: the runtime's idea of room is
    /// not kept between writes.
    fn poll_deliver(&mut self, way: Way<'a>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let to = way.to;
        let mut room = None;
        loop {
            let delivered = match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Rest(rest) => again(|| tcp::send(to.get_ref(), &rest.bytes[rest.delivered..], false)),
                Held::Piped(pipe) => pipe.drain(to.get_ref()),
            };
            match delivered {
                Ok(bytes) => {
                    way.moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    self.held.delivered(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Of room that was announced before this attempt, nothing is left. Room announced since is
                    // kept: then there is another attempt.
                    if let Some(mut room) = room.take() {
                        AsyncFdReadyGuard::clear_ready(&mut room);
                    }
                    room = Some(ready!(to.poll_write_ready(cx)).map_err(Broken::To)?);
                }
                Err(error) => return Poll::Ready(Err(Broken::To(error))),
            }
        }
    }
}

impl Held<'_> {
    fn delivered(&mut self, bytes: usize) {
        let is_empty = match self {
            Self::Nothing => true,
            Self::Rest(rest) => {
                rest.delivered += bytes;
                rest.delivered == rest.bytes.len()
            }
            Self::Piped(pipe) => pipe.len() == 0,
        };
        if is_empty {
            *self = Self::Nothing;
        }
    }
}

impl Carrier {
    fn copy_size(&self) -> usize {
        self.splice_threshold.min(MAX_COPY)
    }
}

/// Pending until every other task that is ready had its turn, and the runtime has looked at its sockets.
pub(crate) fn yield_to_others(cx: &mut Context<'_>) -> Poll<()> {
    // Its first poll leaves the waker with the runtime.
    pin!(tokio::task::yield_now()).poll(cx)
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
