//! The life of one connection, from its held SYN to its final record:
//! arrive → register → identify → authorize → connect → admit → splice → record.
//!
//! What can be refused at once is refused where its SYN was read, without a task of its own.
//!
//! Whatever returns early, panics or is cancelled drops [`Registered`], and that writes the record.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use flow::{EndCause, OrigDst};

use crate::admit::admit;
use crate::authorize::{Leg, Permit};
use crate::connect::ConnectError;
use crate::datapath::Datapath;
use crate::descriptors::Reservation;
use crate::held::HeldSyn;
use crate::registry::{Phase, Registered, Stop};
use crate::relay::{LegSocket, Legs, Place, Progress, Relayed};
use crate::revoke;
use crate::sys::readiness::watch_stream;
use crate::sys::tcp;
use crate::unknown::{self, Decided};

/// A connection of which both legs are up: sockets of type `T`.
struct Carried<T> {
    connection: Registered,
    legs: Legs<T>,
    _reservation: Reservation,
}

/// A registered attempt, and how far it has come when its task begins. It was registered before the snapshot is
/// read, so that no policy change can fall between the decision and the registration.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Nothing is decided.
    Held(Registered, HeldSyn),
    /// It may connect.
    Permitted(Permitted),
}

/// An attempt that was allowed. Its SYN is held still.
#[derive(Debug)]
pub(crate) struct Permitted {
    connection: Registered,
    syn: HeldSyn,
    permit: Permit,
}

/// Decides at once, and refuses or goes on in a task. What has to wait for a decision waits in its task.
pub(crate) fn begin(path: &Arc<Datapath>, connection: Registered, syn: HeldSyn) {
    let attempt = match unknown::decide_at_once(&path.policy, connection.live(), syn.behind()) {
        Some(decided) => decided.apply(path, connection, syn).map(Attempt::Permitted),
        None => Some(Attempt::Held(connection, syn)),
    };
    if let Some(attempt) = attempt {
        tokio::spawn(carry(Arc::clone(path), attempt));
    }
}

/// Carries one connection.
pub(crate) fn carry(path: Arc<Datapath>, attempt: Attempt) -> impl Future<Output = ()> + Send {
    // On its own piece of memory, which is given back when the legs are up: a connection may then rest for days.
    let opening = Box::pin(open(Arc::clone(&path), attempt));
    async move {
        let Some(carried) = opening.await else { return };
        let relayed = carried.relay(&path, Progress::begin(), Place::Shared).await;
        match relayed {
            Relayed::Ended(cause) => carried.end(cause),
            Relayed::Stream(progress) => {
                let streams = Arc::clone(&path);
                streams.streams.carry(carry_stream(path, carried.unwatched(), progress));
            }
        }
    }
}

/// Carries on with a connection that has become a stream, on a thread for streams.
async fn carry_stream(path: Arc<Datapath>, unwatched: Carried<TcpStream>, progress: Progress) {
    let Some(carried) = unwatched.watched() else { return };
    if let Relayed::Ended(cause) = carried.relay(&path, progress, Place::Streams).await {
        carried.end(cause);
    }
}

impl Carried<LegSocket> {
    fn relay<'a>(
        &'a self,
        path: &'a Datapath,
        progress: Progress,
        place: Place,
    ) -> impl Future<Output = Relayed> + use<'a> {
        path.carrier.relay(&self.legs, self.connection.live(), progress, place)
    }

    fn end(self, cause: EndCause) {
        let Self { connection, legs: Legs { client, server }, .. } = self;
        connection.live().enter(Phase::Closing);
        if !matches!(cause, EndCause::ClientClosed | EndCause::ServerClosed) {
            tcp::reset_on_close(client.get_ref());
            tcp::reset_on_close(server.get_ref());
        }
        connection.end(cause, None);
        // In this order: whoever finds the tuple free may use it for sockets of its own.
        drop((client, server));
        drop(connection);
    }

    /// Takes both legs from the runtime that watches them.
    fn unwatched(self) -> Carried<TcpStream> {
        let Self { connection, legs: Legs { client, server }, _reservation } = self;
        Carried {
            connection,
            legs: Legs { client: client.into_inner(), server: server.into_inner() },
            _reservation,
        }
    }
}

impl Carried<TcpStream> {
    /// Gives both legs to the runtime that this runs on. `None` when it takes no more: the connection has ended.
    fn watched(self) -> Option<Carried<LegSocket>> {
        let Self { connection, legs: Legs { client, server }, _reservation } = self;
        // Closed without a word, a leg would tell its end that everything was said.
        tcp::reset_on_close(&client);
        tcp::reset_on_close(&server);
        match (watch_stream(client), watch_stream(server)) {
            (Ok(client), Ok(server)) => {
                tcp::end_on_close(client.get_ref());
                tcp::end_on_close(server.get_ref());
                Some(Carried { connection, legs: Legs { client, server }, _reservation })
            }
            (Err(error), _) | (_, Err(error)) => {
                connection.end(EndCause::InternalError, Some(format!("watch a leg: {error}")));
                None
            }
        }
    }
}

impl Decided {
    /// Notes the decision, and refuses what it denies: `None` then. Else what may connect.
    fn apply(self, path: &Arc<Datapath>, connection: Registered, syn: HeldSyn) -> Option<Permitted> {
        let Self { snapshot, judged, permit } = self;
        let tuple = connection.live().tuple;
        // An address of a Service that is still the destination here was dialled: another node translates it.
        let asked = syn.dialed().map_or(tuple.destination.0, |dialed| dialed.0);
        let service = snapshot.and_then(|snapshot| snapshot.service_at(asked, tuple.protocol));
        connection.report(|report| report.service = service.map(Box::new));
        connection.judged(judged);
        revoke::check(path, connection.live());
        let Some(permit) = permit else {
            connection.end(EndCause::PolicyDenied, None);
            path.refuse(syn);
            return None;
        };
        Some(Permitted { connection, syn, permit })
    }
}

/// Waits for the decision of an attempt that has none. `None` when it was refused or stopped.
async fn permitted(path: &Arc<Datapath>, attempt: Attempt) -> Option<Permitted> {
    let (connection, syn) = match attempt {
        Attempt::Permitted(permitted) => return Some(permitted),
        Attempt::Held(connection, syn) => (connection, syn),
    };
    let live = Arc::clone(connection.live());
    match unknown::decide(&path.policy, &path.waiting, &live, syn.behind()).await {
        Ok(decided) => decided.apply(path, connection, syn),
        Err(stop) => {
            stopped_while_held(path, &connection, syn, stop);
            None
        }
    }
}

/// Decides, connects and admits. `None` when the connection ended before both legs were up.
async fn open(path: Arc<Datapath>, attempt: Attempt) -> Option<Carried<LegSocket>> {
    let Permitted { connection, syn, permit } = permitted(&path, attempt).await?;
    let dialed = syn.dialed();
    if !path.registry.accepts() {
        connection.end(EndCause::RecordsFull, Some("records cannot be kept".into()));
        syn.reset();
        return None;
    }
    let Some(reservation) = path.descriptors.reserve() else {
        connection.end(EndCause::Overload, Some("no descriptors left".into()));
        syn.reset();
        return None;
    };
    let (server, syn) = dial(&path, &connection, &permit, syn).await?;
    let client = match admit(&path, &connection, syn, &server).await {
        Ok(client) => client,
        Err(cause) => {
            tcp::reset_on_close(server.get_ref());
            connection.end(cause, None);
            return None;
        }
    };
    if dialed.is_none() {
        report_dialed_service(&path, &connection, &client);
    }
    connection.established();
    Some(Carried { connection, legs: Legs { client, server }, _reservation: reservation })
}

/// Connects to the server while the client's SYN is held. `None` when the attempt has ended, the SYN answered.
async fn dial(
    path: &Datapath,
    connection: &Registered,
    permit: &Permit,
    syn: HeldSyn,
) -> Option<(LegSocket, HeldSyn)> {
    connection.report(|report| report.hairpin = permit.leg() == Leg::Hairpin);
    let started = Instant::now();
    let upstream = tokio::select! {
        biased;
        stop = connection.live().stopped() => {
            stopped_while_held(path, connection, syn, stop);
            return None;
        }
        upstream = path.connector.connect(permit) => upstream,
    };
    connection.report(|report| report.connect = Some(started.elapsed()));
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => {
            cannot_connect(connection, syn, &error, permit.tuple().destination);
            return None;
        }
    };
    path.metrics.connect_latency.observe(started.elapsed().as_secs_f64());
    if upstream.port_fallback {
        path.metrics.upstream_port_fallbacks.inc();
    }
    connection.report(|report| report.upstream_source = upstream.source.map(Box::new));
    Some((upstream.socket, syn))
}

/// Where the kernel tells the dialled address of accepted sockets only.
fn report_dialed_service(path: &Datapath, connection: &Registered, client: &LegSocket) {
    let tuple = connection.live().tuple;
    let Some(dialed) = tcp::dialed(client.get_ref(), tuple.destination.0) else { return };
    let service = path.policy.current().and_then(|snapshot| snapshot.service_at(dialed, tuple.protocol));
    connection.report(|report| report.service = service.map(Box::new));
}

/// Ends a connection whose SYN is still held, as ordered from outside.
fn stopped_while_held(path: &Datapath, connection: &Registered, syn: HeldSyn, stop: &Stop) {
    match stop {
        Stop::Revoked(_) => {
            connection.end(EndCause::PolicyRevoked, None);
            path.refuse(syn);
        }
        Stop::ClientGone => {
            connection.end(EndCause::ClientGone, None);
            syn.silence();
        }
        // Unanswered, so that the client tries again and meets the next process.
        Stop::Shutdown => connection.end(EndCause::Shutdown, None),
    }
}

/// Tells the client what it would have seen without a proxy.
fn cannot_connect(connection: &Registered, syn: HeldSyn, error: &ConnectError, upstream: OrigDst) {
    let cause = match error {
        ConnectError::Refused { .. } => {
            syn.reset();
            EndCause::Refused
        }
        ConnectError::Unreachable { .. } => {
            syn.unreachable();
            EndCause::Unreachable
        }
        ConnectError::TimedOut { .. } => {
            syn.silence();
            EndCause::ConnectTimeout
        }
        ConnectError::Exhausted { .. } | ConnectError::NoPort { .. } => {
            syn.reset();
            EndCause::Overload
        }
        ConnectError::BindSource { .. } | ConnectError::Failed { .. } => {
            tracing::error!(%error, %upstream, "cannot connect");
            syn.reset();
            EndCause::InternalError
        }
    };
    connection.end(cause, Some(error.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_at_rest_keeps_little() {
        // Beside its own 112 bytes, the runtime rounds a task up to a multiple of 128.
        let future = size_of_future(carry);
        assert!(future <= 272, "{future} bytes");
    }
}
