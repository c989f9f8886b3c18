use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use audit::{RecorderConfig, Sink, Writer};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn tuple(client: u8, port: u16) -> Tuple {
    Tuple::tcp(SocketAddr::from(([10, 0, 0, client], port)), "10.0.1.1:80".parse().unwrap())
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn recorded(sink: Sink) -> (Arc<Registry>, Writer, Metrics) {
    let metrics = Metrics::default();
    let (recorder, writer) =
        Recorder::start(RecorderConfig::default(), sink, "node1", metrics.clone()).unwrap();
    (Arc::new(Registry::new(recorder, metrics.clone())), writer, metrics)
}

fn unrecorded() -> Arc<Registry> {
    recorded(Sink::Discard).0
}

/// `event.action` and `sluice.end_cause` of each line, without a reader of JSON.
fn lines(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let field = |line: &str, key: &str| {
        let rest = line.split(&format!("\"{key}\":\"")).nth(1).unwrap_or_default();
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    text.lines().map(|line| (field(line, "action"), field(line, "end_cause"))).collect()
}

fn line(action: &str, cause: &str) -> (String, String) {
    (action.to_owned(), cause.to_owned())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_long_connection_is_told_of_once_an_interval_and_never_after_its_end() {
    const EVERY: Duration = Duration::from_millis(20);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (registry, writer, _) = recorded(Sink::File(path.clone()));
    let attempt = registry.register(tuple(1, 1)).unwrap();
    let long = registry.register(tuple(1, 2)).unwrap();
    long.established();
    registry.update(Some(Duration::from_secs(60)));
    std::thread::sleep(EVERY);
    registry.update(Some(EVERY));
    registry.update(Some(Duration::from_secs(60)));
    long.live().client_bytes.store(7, Ordering::Relaxed);
    long.end(EndCause::ClientClosed, None);
    long.live().report().ended = true;
    std::thread::sleep(EVERY);
    registry.update(Some(EVERY));
    drop((attempt, long));
    writer.close(LIMIT);
    let actions: Vec<String> = lines(&path).into_iter().map(|(action, _)| action).collect();
    assert_eq!(
        actions,
        ["connection-started", "connection-updated", "connection-failed", "connection-ended"],
        "an attempt is not told of, nor is what has ended"
    );
}

#[test]
fn a_tuple_is_registered_once_and_free_again_when_its_place_is_dropped() {
    let registry = unrecorded();
    let first = registry.register(tuple(1, 1)).unwrap();
    let taken = registry.register(tuple(1, 1)).unwrap_err();
    assert_eq!(taken.id, first.live().id);
    let other = registry.register(tuple(1, 2)).unwrap();
    assert_eq!(registry.len(), 2);
    drop(first);
    assert!(registry.get(&tuple(1, 1)).is_none() && registry.get(&tuple(1, 2)).is_some());
    let again = registry.register(tuple(1, 1)).unwrap();
    assert_ne!(again.live().id, taken.id);
    drop((again, other));
    assert_eq!(registry.len(), 0);
}

#[test]
fn a_connection_is_found_by_either_address_and_forgotten_with_its_place() {
    let registry = unrecorded();
    let places: Vec<_> =
        [(1, 1), (1, 2), (2, 1)].map(|(c, p)| registry.register(tuple(c, p)).unwrap()).into();
    let found = |addresses: &[IpAddr]| -> BTreeSet<u16> {
        registry.of_addresses(addresses).iter().map(|live| live.tuple.client.0.port()).collect()
    };
    assert_eq!(found(&[address(1)]), BTreeSet::from([1, 2]));
    assert_eq!(registry.of_addresses(&[address(1), address(2)]).len(), 3);
    let destination = IpAddr::from([10, 0, 1, 1]);
    assert_eq!(registry.of_addresses(&[destination, address(1)]).len(), 3, "each of them once");
    assert!(registry.of_addresses(&[address(9)]).is_empty());
    drop(places);
    assert!(registry.of_addresses(&[address(1), address(2), destination]).is_empty());
    assert!(registry.by_address.is_empty(), "no address is kept without a connection");
}

#[test]
fn the_first_order_to_stop_and_the_first_cause_stay() {
    let registry = unrecorded();
    let place = registry.register(tuple(1, 1)).unwrap();
    runtime().block_on(async {
        place.live().stop(Stop::Shutdown);
        place.live().stop(Stop::ClientGone);
        // Ordered before anybody waited, and heard all the same, as often as it is asked for.
        for _ in 0..2 {
            let stop = tokio::time::timeout(LIMIT, place.live().stopped()).await.unwrap();
            assert!(matches!(stop, Stop::Shutdown));
        }
    });
    place.end(EndCause::Shutdown, Some("first".into()));
    place.end(EndCause::ClientReset, Some("second".into()));
    let report = place.live.report().clone();
    assert_eq!((report.cause, report.detail.as_deref()), (Some(EndCause::Shutdown), Some("first")));
}

#[test]
fn a_panic_or_a_cancelled_task_writes_the_one_final_record_and_leaves_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (registry, writer, metrics) = recorded(Sink::File(path.clone()));
    runtime().block_on(async {
        let established = registry.register(tuple(1, 1)).unwrap();
        let panicked = tokio::spawn(async move {
            established.established();
            established.live().client_bytes.store(7, Ordering::Relaxed);
            // While it holds what the record is made from.
            established.report(|_| panic!("in the middle of a connection"));
        });
        assert!(panicked.await.unwrap_err().is_panic());

        let held = registry.register(tuple(1, 2)).unwrap();
        let panicked = tokio::spawn(async move {
            let _held = held;
            panic!("before the decision");
        });
        assert!(panicked.await.unwrap_err().is_panic());

        let cancelled = registry.register(tuple(1, 3)).unwrap();
        let waiting = tokio::spawn(async move { drop(cancelled.live().stopped().await.clone()) });
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        tokio::time::timeout(LIMIT, registry.emptied()).await.unwrap();
    });
    assert!(registry.by_address.is_empty());
    assert_eq!(metrics.connections_live.get(), 0);
    assert_eq!(metrics.connections_closed.of(EndCause::InternalError).get(), 1);
    assert_eq!(metrics.connections_failed.of(EndCause::InternalError).get(), 2);
    let closed = writer.close(LIMIT);
    assert_eq!((closed.written, closed.lost), (4, 0));
    assert_eq!(
        lines(&path),
        [
            line("connection-started", ""),
            line("connection-ended", "internal-error"),
            line("connection-failed", "internal-error"),
            line("connection-failed", "internal-error"),
        ]
    );
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"bytes\":7"));
}

#[test]
fn an_empty_registry_has_every_record() {
    let runtime = runtime();
    for _ in 0..200 {
        let (registry, writer, _) = recorded(Sink::Discard);
        let place = registry.register(tuple(1, 1)).unwrap();
        let ending = runtime.spawn(async move { drop(place) });
        runtime.block_on(registry.emptied());
        // What a stopping process does next.
        assert_eq!(writer.close(LIMIT).written, 1);
        runtime.block_on(ending).unwrap();
    }
}

#[test]
fn connections_that_come_and_go_on_many_threads_leave_nothing() {
    let (registry, writer, _) = recorded(Sink::Discard);
    let registered: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u16)
            .map(|thread| {
                let registry = Arc::clone(&registry);
                scope.spawn(move || {
                    let mut registered = 0;
                    for turn in 0..2_000u16 {
                        // Few tuples, so that threads meet on them.
                        let place =
                            registry.register(tuple(1 + u8::from(turn % 3 == 0), (turn * 7 + thread) % 5));
                        registered += u64::from(place.is_ok());
                    }
                    registered
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(registry.len(), 0);
    assert!(registry.by_address.is_empty());
    assert_eq!(writer.close(LIMIT).written, registered, "a record for each that was registered");
}
