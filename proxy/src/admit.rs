//! Releases a held SYN and turns the handshake that follows into the client's leg.

use std::time::Duration;

use flow::{EndCause, Tuple};

use crate::datapath::Datapath;
use crate::held::HeldSyn;
use crate::listener;
use crate::registry::{Phase, Registered, Stop};
use crate::relay::LegSocket;
use crate::sys::{diag, tcp};

/// When the kernel is first asked whether a handshake is still under way, and how often it is then at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Lets the client's kernel finish `connect()`. The connection is expected before the SYN is released, so
/// that the listener always knows whose it is. `server` is the leg that waits for it.
///
/// Errors: the cause for the record when the client does not finish the handshake in time, or the connection
/// is stopped meanwhile.
pub(crate) async fn admit(
    path: &Datapath,
    connection: &Registered,
    syn: HeldSyn,
    server: &LegSocket,
) -> Result<LegSocket, EndCause> {
    let live = connection.live();
    let Some(mut expected) = path.pairing.expect(live.tuple) else {
        return Err(EndCause::InternalError);
    };
    live.enter(Phase::Handshake);
    let _handshake = syn.release();
    if let Some(client) = listener::accept_arrived(path, &live.tuple) {
        if live.stop_order().is_none() {
            return Ok(client);
        }
        // Ordered to end before it was up: it never was.
        tcp::reset_on_close(client.get_ref());
    }
    let outcome = tokio::select! {
        biased;
        stop = live.stopped() => Err(match stop {
            Stop::Revoked(_) => EndCause::PolicyRevoked,
            Stop::ClientGone => EndCause::ClientGone,
            Stop::Shutdown => EndCause::Shutdown,
        }),
        client = expected.accepted() => Ok(client),
        client = broken_off(path, &live.tuple, server) => match client.or_else(|| expected.take()) {
            Some(client) => Ok(client),
            None => Err(EndCause::ClientGone),
        },
        () = tokio::time::sleep(path.handshake_limit) => Err(EndCause::ClientGone),
    };
    if outcome.is_err()
        && let Some(client) = expected.give_up()
    {
        // Accepted just now, and known to nobody else: a FIN would tell its client of a server that hung up.
        tcp::reset_on_close(client.get_ref());
    }
    outcome
}

/// Ready when the kernel no longer has a handshake: its client has reset it before it was done, which the kernel tells
/// no listener (`tcp_check_req` in net/ipv4/tcp_minisocks.c, "embryonic_reset"). Brings the connection if it was done
/// after all and waits to be accepted, reset or not. Cancel safe.
async fn broken_off(path: &Datapath, tuple: &Tuple, server: &LegSocket) -> Option<LegSocket> {
    let (mut pause, longest) = LOOKS;
    loop {
        tokio::time::sleep(pause).await;
        let is_gone = diag::has_connection(tuple.destination.0, tuple.client.0) == Some(false);
        // A kernel without tcp_diag knows of no connection at all, and says so with the same error.
        if is_gone && diag::leg_info(server.get_ref()).is_some() {
            return listener::accept_arrived(path, tuple);
        }
        pause = (2 * pause).min(longest);
    }
}
