//! Carries bytes between two established legs until both directions are closed, or either breaks.
//!
//! A FIN is passed on when everything before it was delivered; a reset ends both legs.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flow::EndCause;
use futures_util::FutureExt;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::hello::FirstBytes;
use crate::pipes::PipePool;
use crate::pump::{Broken, Pump, Way, yield_to_others};
use crate::registry::{Live, Stop};
use crate::sys::{diag, tcp};

/// Turns that a connection has used up when it counts as a stream: some MiB, moved faster than they were drained.
const TURNS_OF_A_STREAM: u16 = 8;

/// One leg of a carried connection.
pub(crate) type LegSocket = AsyncFd<TcpStream>;

/// Both legs of a carried connection.
#[derive(Debug)]
pub(crate) struct Legs<T> {
    /// To the client.
    pub(crate) client: T,
    /// To the server.
    pub(crate) server: T,
}

/// How bytes are moved.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) pipes: PipePool,
    /// Bytes of one read from which on a stream is spliced.
    pub(crate) splice_threshold: usize,
    pub(crate) idle_limit: Option<Duration>,
    /// Whether clients' ClientHellos are read.
    pub(crate) reads_hellos: bool,
    /// The kernel is asked about the legs of connections that have lived for this long.
    pub(crate) legs_after: Option<Duration>,
}

impl Carrier {
    /// Carries both directions and says why it ended. The legs are left open: closing them is the last FIN, and
    /// a cause other than `ClientClosed` and `ServerClosed` asks for a reset of both.
    ///
    /// With [`Place::Shared`] it may come back before the end, to be carried on by itself.
    pub(crate) fn relay<'a>(
        &'a self,
        legs: &'a Legs<LegSocket>,
        live: &'a Live,
        progress: Progress,
        place: Place,
    ) -> impl Future<Output = Relayed> + use<'a> {
        // Not an async fn: it would keep what it is given twice, in every connection's memory. What a connection does
        // not use takes no room in it, and what it waits for is a waker, not a future.
        let mut directions = Directions::new(self, legs, live, progress);
        let mut idle = self.idle_limit.map(|limit| Box::pin(until_idle(live, limit)));
        poll_fn(move |cx| {
            let cause = match directions.poll_end(cx) {
                Poll::Ready(cause) => cause,
                Poll::Pending if place == Place::Shared && directions.is_stream() => {
                    return Poll::Ready(Relayed::Stream(directions.progress));
                }
                Poll::Pending => match &mut idle {
                    Some(idle) => {
                        ready!(idle.as_mut().poll(cx));
                        EndCause::IdleTimeout
                    }
                    None => return Poll::Pending,
                },
            };
            // What ended otherwise than by FINs was not asked about yet, or one leg was not.
            directions.note_legs();
            Poll::Ready(Relayed::Ended(cause))
        })
    }

    /// Asks the kernel about both legs while it has them.
    fn note_legs(&self, legs: &Legs<LegSocket>, live: &Live) {
        let Some(after) = self.legs_after else { return };
        live.note_legs(after, |known| {
            known.client = known.client.or_else(|| diag::leg_info(legs.client.get_ref()));
            known.server = known.server.or_else(|| diag::leg_info(legs.server.get_ref()));
        });
    }
}

fn of_stop(stop: &Stop) -> EndCause {
    match stop {
        Stop::Revoked(_) => EndCause::PolicyRevoked,
        Stop::Shutdown => EndCause::Shutdown,
        Stop::ClientGone => EndCause::ClientGone,
    }
}

/// Where a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Among all others.
    Shared,
    /// Among streams.
    Streams,
}

/// What carrying came to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Relayed {
    /// The connection is over.
    Ended(EndCause),
    /// It uses up one turn after the other, and others would wait for it: to be carried on where streams are.
    /// Nothing that was taken from one leg is left to be delivered to the other.
    Stream(Progress),
}

/// How far a connection's directions have come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    opening: Opening,
    up_open: bool,
    down_open: bool,
    first_to_close: EndCause,
}

/// How far the end of the server's handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// It waits for what the client sends first.
    Waiting,
    /// The runtime was asked to look at the client's leg.
    Looking,
    /// It is under way.
    Done,
}

impl Progress {
    /// Both legs are up, and nothing was moved.
    pub(crate) fn begin() -> Self {
        Self {
            opening: Opening::Waiting,
            up_open: true,
            down_open: true,
            first_to_close: EndCause::ClientClosed,
        }
    }
}

/// Both directions of one connection.
struct Directions<'a> {
    carrier: &'a Carrier,
    legs: &'a Legs<LegSocket>,
    live: &'a Live,
    up: Pump<'a>,
    down: Pump<'a>,
    progress: Progress,
}

impl<'a> Directions<'a> {
    fn new(carrier: &'a Carrier, legs: &'a Legs<LegSocket>, live: &'a Live, progress: Progress) -> Self {
        let is_new = progress.opening == Opening::Waiting;
        let first = (carrier.reads_hellos && is_new).then(FirstBytes::default);
        Self { carrier, legs, live, up: Pump::new(first), down: Pump::new(None), progress }
    }

    /// From the client to the server.
    fn upwards(&self) -> Way<'a> {
        let Self { carrier, legs: Legs { client, server }, live, .. } = *self;
        Way { carrier, from: client, to: server, moved: &live.client_bytes, live, looks_for_fin: false }
    }

    /// From the server to the client.
    fn downwards(&self) -> Way<'a> {
        let Self { carrier, legs: Legs { client, server }, live, .. } = *self;
        Way { carrier, from: server, to: client, moved: &live.server_bytes, live, looks_for_fin: true }
    }

    /// Lets what the client has sent by now travel along with the end of the server's handshake: its server then
    /// wakes up once. A client that waits for the server has sent nothing when every other task had its turn: the
    /// handshake ends without.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.progress.opening {
            Opening::Waiting => {
                self.progress.opening = Opening::Looking;
                yield_to_others(cx).map(Ok)
            }
            Opening::Looking => {
                self.progress.opening = Opening::Done;
                let is_readable = self.legs.client.poll_read_ready(cx).is_ready();
                if !is_readable && !self.up.take_arrived(self.upwards())? {
                    tcp::acknowledge(self.legs.server.get_ref());
                }
                Poll::Ready(Ok(()))
            }
            Opening::Done => Poll::Ready(Ok(())),
        }
    }

    /// Ready when both directions have ended, one has broken, or the connection was ordered to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<EndCause> {
        // The directions come first: they deliver what arrived before a reset, then meet it themselves.
        if let Poll::Ready(cause) = self.poll(cx) {
            return Poll::Ready(cause);
        }
        if let Poll::Ready(stop) = self.live.poll_stopped(cx) {
            return Poll::Ready(of_stop(stop));
        }
        for (leg, reset) in
            [(&self.legs.client, EndCause::ClientReset), (&self.legs.server, EndCause::ServerReset)]
        {
            if let Poll::Ready(error) = poll_failed(leg, cx) {
                return Poll::Ready(leg_cause(&error, reset));
            }
        }
        Poll::Pending
    }

    /// Whether this is a stream that others would wait for, at a moment at which it can be handed on.
    fn is_stream(&self) -> bool {
        self.up.turns_used_up() + self.down.turns_used_up() >= TURNS_OF_A_STREAM
            && self.up.holds_nothing()
            && self.down.holds_nothing()
    }

    /// Moves what can be moved. Ready when both directions have ended, or one has broken.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndCause> {
        if let Err(broken) = ready!(self.poll_opened(cx)) {
            return Poll::Ready(of_up(broken));
        }
        if self.progress.up_open
            && let Poll::Ready(outcome) = self.up.poll(self.upwards(), cx)
        {
            self.progress.up_open = false;
            // Of the direction that ends last, the caller passes the FIN on by closing.
            let passed = outcome.and_then(|()| {
                if self.progress.down_open { self.pass_fin(&self.legs.server) } else { Ok(()) }
            });
            if let Err(broken) = passed {
                return Poll::Ready(of_up(broken));
            }
        }
        if self.progress.down_open
            && let Poll::Ready(outcome) = self.down.poll(self.downwards(), cx)
        {
            self.progress.down_open = false;
            if self.progress.up_open {
                self.progress.first_to_close = EndCause::ServerClosed;
            }
            let passed = outcome
                .and_then(|()| if self.progress.up_open { self.pass_fin(&self.legs.client) } else { Ok(()) });
            if let Err(broken) = passed {
                return Poll::Ready(of_down(broken));
            }
        }
        if self.progress.up_open || self.progress.down_open {
            Poll::Pending
        } else {
            Poll::Ready(self.progress.first_to_close)
        }
    }

    /// Passes on the first FIN. The leg it goes to is gone for the kernel's questions when the other FIN comes.
    fn pass_fin(&self, to: &LegSocket) -> Result<(), Broken> {
        self.note_legs();
        pass_fin(to)
    }

    fn note_legs(&self) {
        self.carrier.note_legs(self.legs, self.live);
    }
}

fn of_up(broken: Broken) -> EndCause {
    broken.cause(EndCause::ClientReset, EndCause::ServerReset)
}

fn of_down(broken: Broken) -> EndCause {
    broken.cause(EndCause::ServerReset, EndCause::ClientReset)
}

/// Resolves when no byte has moved for `limit`.
async fn until_idle(live: &Live, limit: Duration) {
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

/// Ready when a leg has failed, with the reason. A reset is noticed here when no pump reads the leg, or when
/// the pump that does is waiting for the other side to take bytes.
///
/// Waits as for room to write, which is there nearly always and so tells nothing but the end: pumps write first
/// and ask for room only when there was none.
fn poll_failed(leg: &LegSocket, cx: &mut Context<'_>) -> Poll<io::Error> {
    loop {
        let mut room = match ready!(leg.poll_write_ready(cx)) {
            Ok(room) => room,
            Err(error) => return Poll::Ready(error),
        };
        if room.ready().is_write_closed() {
            // Closed without an error: FINs have passed both ways, and nothing can fail any more.
            return if has_error(leg) { Poll::Ready(reason_of(leg)) } else { Poll::Pending };
        }
        room.clear_ready();
    }
}

fn has_error(leg: &LegSocket) -> bool {
    leg.ready(Interest::ERROR).now_or_never().is_some()
}

fn reason_of(leg: &LegSocket) -> io::Error {
    match leg.get_ref().take_error() {
        Ok(Some(error)) | Err(error) => error,
        // Someone has taken the error already: it was reported as the end of a pump.
        Ok(None) => io::Error::from_raw_os_error(libc::ECONNRESET),
    }
}

/// Passes a FIN on.
fn pass_fin(to: &LegSocket) -> Result<(), Broken> {
    match to.get_ref().shutdown(Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(Broken::To(error)),
        _ => Ok(()),
    }
}

/// Whether a leg whose reading side is closed was closed by a reset: then its writing side is closed as well,
/// or failed. It also is when both FINs have passed; a read tells the two apart.
pub(crate) fn was_reset(leg: &LegSocket) -> bool {
    let ready = leg.ready(Interest::WRITABLE | Interest::ERROR).now_or_never();
    ready.is_some_and(|ready| {
        ready.map_or(true, |ready| ready.ready().is_write_closed() || ready.ready().is_error())
    })
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
