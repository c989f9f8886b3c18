//! The life of one connection, from its held SYN to its final record:
//! arrive → register → identify → authorize → connect → admit → splice → record.
//!
//! Whatever returns early, panics or is cancelled drops [`Registered`], and that writes the record.

use std::sync::Arc;
use std::time::Instant;

use flow::{EndCause, OrigDst};

use crate::admit::admit;
use crate::authorize::Leg;
use crate::connect::ConnectError;
use crate::datapath::Datapath;
use crate::held::HeldSyn;
use crate::registry::{Phase, Registered, Stop};
use crate::relay::LegSocket;
use crate::revoke;
use crate::sys::tcp;
use crate::unknown::{self, Decided};

/// Carries one connection. It was registered before this reads the snapshot, so that no policy change can
/// fall between the decision and the registration.
pub(crate) async fn carry(path: Arc<Datapath>, connection: Registered, syn: HeldSyn) {
    let live = Arc::clone(connection.live());

    let decided = unknown::decide(&path.policy, &path.waiting, &live, syn.behind()).await;
    let Decided { snapshot, judged, permit } = match decided {
        Ok(decided) => decided,
        Err(stop) => return stopped_while_held(&path, &connection, syn, stop),
    };
    let dialed = syn.dialed();
    let service = dialed.and_then(|dialed| snapshot.as_deref()?.service_at(dialed.0, live.tuple.protocol));
    connection.report(|report| report.service = service);
    connection.judged(judged);
    revoke::check(&path, &live);
    let Some(permit) = permit else {
        connection.end(EndCause::PolicyDenied, None);
        return path.refuse(syn);
    };
    drop(snapshot);

    if !path.registry.accepts() {
        connection.end(EndCause::RecordsFull, Some("records cannot be kept".into()));
        return syn.reset();
    }
    let Some(_reservation) = path.descriptors.reserve() else {
        connection.end(EndCause::Overload, Some("no descriptors left".into()));
        return syn.reset();
    };
    connection.report(|report| report.hairpin = permit.leg() == Leg::Hairpin);
    let started = Instant::now();
    let upstream = tokio::select! {
        biased;
        stop = live.stopped() => return stopped_while_held(&path, &connection, syn, stop),
        upstream = path.connector.connect(&permit) => upstream,
    };
    connection.report(|report| report.connect = Some(started.elapsed()));
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => return cannot_connect(&connection, syn, &error, permit.tuple().destination),
    };
    path.metrics.connect_latency.observe(started.elapsed().as_secs_f64());
    if upstream.port_fallback {
        path.metrics.upstream_port_fallbacks.inc();
    }
    connection.report(|report| report.upstream_source = upstream.source);

    let server = upstream.socket;
    let client = match admit(&path, &connection, syn).await {
        Ok(client) => client,
        Err(cause) => {
            tcp::reset_on_close(server.get_ref());
            return connection.end(cause, None);
        }
    };
    if dialed.is_none() {
        report_dialed_service(&path, &connection, &client);
    }
    connection.established();

    let cause = path.carrier.relay(&client, &server, &live).await;
    live.enter(Phase::Closing);
    if !matches!(cause, EndCause::ClientClosed | EndCause::ServerClosed) {
        tcp::reset_on_close(client.get_ref());
        tcp::reset_on_close(server.get_ref());
    }
    connection.end(cause, None);
    drop((client, server));
}

/// Where the kernel tells the dialled address of accepted sockets only.
fn report_dialed_service(path: &Datapath, connection: &Registered, client: &LegSocket) {
    let tuple = connection.live().tuple;
    let Some(dialed) = tcp::dialed(client.get_ref(), tuple.destination.0) else { return };
    let service = path.policy.current().and_then(|snapshot| snapshot.service_at(dialed, tuple.protocol));
    connection.report(|report| report.service = service);
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
