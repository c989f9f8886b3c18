//! Releases a held SYN and turns the handshake that follows into the client's leg.

use flow::EndCause;

use crate::datapath::Datapath;
use crate::held::HeldSyn;
use crate::listener;
use crate::registry::{Phase, Registered, Stop};
use crate::relay::LegSocket;
use crate::sys::tcp;

/// Lets the client's kernel finish `connect()`. The connection is expected before the SYN is released, so
/// that the listener always knows whose it is.
///
/// Errors: the cause for the record when the client does not finish the handshake in time, or the connection
/// is stopped meanwhile.
pub(crate) async fn admit(
    path: &Datapath,
    connection: &Registered,
    syn: HeldSyn,
) -> Result<LegSocket, EndCause> {
    let live = connection.live();
    let Some(mut expected) = path.pairing.expect(live.tuple) else {
        return Err(EndCause::InternalError);
    };
    live.enter(Phase::Handshake);
    let _handshake = syn.release();
    if let Some(client) = listener::accept_arrived(path, &live.tuple) {
        return Ok(client);
    }
    let outcome = tokio::select! {
        biased;
        stop = live.stopped() => Err(match stop {
            Stop::Revoked(_) => EndCause::PolicyRevoked,
            Stop::ClientGone => EndCause::ClientGone,
            Stop::Shutdown => EndCause::Shutdown,
        }),
        client = expected.accepted() => Ok(client),
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
