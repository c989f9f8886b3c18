use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant as Clock;

use audit::{Metrics, Recorder, RecorderConfig, Sink};
use flow::{Decision, Generation, Reason, Tuple};
use proptest::prelude::*;
use socket2::SockRef;
use tokio::task::JoinHandle;

mod fin;

use super::*;
use crate::registry::{Registered, Registry};
use crate::sys::readiness::watch_stream;

const LIMIT: Duration = Duration::from_secs(10);

/// A relay under way, and the two ends that use it.
struct Carried {
    client: TcpStream,
    server: TcpStream,
    connection: Arc<Registered>,
    metrics: Metrics,
    task: JoinHandle<EndCause>,
    /// Set when it was handed on as a stream.
    handed_on: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    for end in [&one, &other] {
        end.set_read_timeout(Some(LIMIT)).unwrap();
        end.set_write_timeout(Some(LIMIT)).unwrap();
    }
    (one, other)
}

fn carrier(
    splice_threshold: usize,
    max_pipes: usize,
    idle_limit: Option<Duration>,
    metrics: &Metrics,
) -> Carrier {
    Carrier {
        pipes: PipePool::new(1 << 16, max_pipes, metrics.clone()),
        splice_threshold,
        idle_limit,
        reads_hellos: true,
        legs_after: Some(Duration::ZERO),
    }
}

fn relay(splice_threshold: usize, max_pipes: usize, idle_limit: Option<Duration>) -> Carried {
    relay_between(pair(), pair(), (splice_threshold, max_pipes, idle_limit), |_| {})
}

/// A relay between the legs of two pairs: of the client, and of the server. `before` is done to the connection before
/// it begins.
fn relay_between(
    (client, of_client): (TcpStream, TcpStream),
    (of_server, server): (TcpStream, TcpStream),
    (splice_threshold, max_pipes, idle_limit): (usize, usize, Option<Duration>),
    before: impl FnOnce(&Live),
) -> Carried {
    let metrics = Metrics::default();
    let (recorder, _) =
        Recorder::start(RecorderConfig::default(), Sink::Discard, "node1", metrics.clone()).unwrap();
    let registry = Arc::new(Registry::new(recorder, metrics.clone()));
    let tuple = Tuple::tcp(client.local_addr().unwrap(), server.local_addr().unwrap());
    let connection = Arc::new(registry.register(tuple).unwrap());
    before(connection.live());
    let carrier = carrier(splice_threshold, max_pipes, idle_limit, &metrics);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let live = Arc::clone(connection.live());
    let handed_on = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&handed_on);
    let task = runtime.spawn(async move {
        for leg in [&of_client, &of_server] {
            leg.set_nonblocking(true).unwrap();
        }
        let watch = |client, server| Legs {
            client: watch_stream(client).unwrap(),
            server: watch_stream(server).unwrap(),
        };
        let mut legs = watch(of_client, of_server);
        let (mut progress, mut place) = (Progress::begin(), Place::Shared);
        let cause = loop {
            match carrier.relay(&legs, &live, progress, place).await {
                Relayed::Ended(cause) => break cause,
                Relayed::Stream(so_far) => {
                    assert_eq!(place, Place::Shared, "once");
                    // Watched anew, as another thread's runtime would.
                    legs = watch(legs.client.into_inner(), legs.server.into_inner());
                    (progress, place) = (so_far, Place::Streams);
                    noted.store(true, Ordering::Relaxed);
                }
            }
        };
        if !matches!(cause, EndCause::ClientClosed | EndCause::ServerClosed) {
            crate::sys::tcp::reset_on_close(legs.client.get_ref());
            crate::sys::tcp::reset_on_close(legs.server.get_ref());
        }
        cause
    });
    Carried { client, server, connection, metrics, task, handed_on, runtime }
}

impl Carried {
    /// Why it ended, and the bytes that were counted each way.
    fn end(self) -> (EndCause, u64, u64) {
        let Self { task, runtime, connection, metrics, .. } = self;
        let cause = runtime.block_on(async { tokio::time::timeout(LIMIT, task).await }).unwrap().unwrap();
        assert_eq!(metrics.pipes_in_use.get(), 0, "no pipe outlives its connection");
        let live = connection.live();
        (cause, live.client_bytes.load(Ordering::Relaxed), live.server_bytes.load(Ordering::Relaxed))
    }
}

fn noise(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251 + seed) % 256).unwrap()).collect()
}

fn until(condition: impl Fn() -> bool) -> bool {
    let begin = Clock::now();
    while begin.elapsed() < LIMIT {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

fn all(mut stream: &TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).unwrap();
    read
}

#[test]
fn bytes_and_fins_pass_each_way_by_themselves() {
    for client_first in [true, false] {
        let relayed = relay(16_384, 4, None);
        let (first, second) = if client_first {
            (&relayed.client, &relayed.server)
        } else {
            (&relayed.server, &relayed.client)
        };
        (&*first).write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(all(second), b"question");
        assert!(!relayed.task.is_finished(), "the other direction is open");
        (&*second).write_all(b"the answer").unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(all(first), b"the answer");
        let expected =
            if client_first { (EndCause::ClientClosed, 8, 10) } else { (EndCause::ServerClosed, 10, 8) };
        assert_eq!(relayed.end(), expected);
    }
}

#[test]
fn a_message_of_any_size_around_the_threshold_is_followed_by_its_fin() {
    for threshold in [1_024, 16_384, 65_536, 1 << 20] {
        for size in [0, 1, threshold - 1, threshold, threshold + 1, 3 * threshold + 1] {
            let relayed = relay(threshold, 4, None);
            let message = noise(size, size);
            let writing = thread::spawn({
                let (client, message) = (relayed.client.try_clone().unwrap(), message.clone());
                move || {
                    (&client).write_all(&message).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                }
            });
            assert!(all(&relayed.server) == message, "{size} bytes with a threshold of {threshold}");
            writing.join().unwrap();
            relayed.server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(relayed.end(), (EndCause::ClientClosed, size as u64, 0));
        }
    }
}

#[test]
fn a_stream_without_a_pipe_is_copied_and_one_that_rests_holds_none() {
    for max_pipes in [0, 4] {
        let relayed = relay(1_024, max_pipes, None);
        let message = noise(1, 3 << 20);
        let writing = thread::spawn({
            let (client, message) = (relayed.client.try_clone().unwrap(), message.clone());
            move || (&client).write_all(&message).unwrap()
        });
        let mut read = vec![0; message.len()];
        (&relayed.server).read_exact(&mut read).unwrap();
        assert!(read == message);
        writing.join().unwrap();
        assert!(until(|| relayed.metrics.pipes_in_use.get() == 0), "open, and at rest");
        assert_eq!(relayed.metrics.pipes_pooled.get() > 0, max_pipes > 0);
        (&relayed.client).write_all(b"small again").unwrap();
        let mut small = [0; 11];
        (&relayed.server).read_exact(&mut small).unwrap();
        assert_eq!(&small, b"small again");
        relayed.client.shutdown(Shutdown::Write).unwrap();
        relayed.server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(relayed.end(), (EndCause::ClientClosed, (3 << 20) + 11, 0));
    }
}

/// Writes a MiB over and over, until the relay was handed on and another two MiB after that, then the FIN. Returns
/// how many there were.
fn write_stream(relayed: &Carried, to: &TcpStream, message: &[u8]) -> usize {
    let (begin, mut written, mut left) = (Clock::now(), 0, 2);
    while left > 0 && begin.elapsed() < LIMIT {
        (&*to).write_all(message).unwrap();
        written += 1;
        left -= usize::from(relayed.handed_on.load(Ordering::Relaxed));
    }
    to.shutdown(Shutdown::Write).unwrap();
    written
}

/// Reads to the FIN. Returns how often it was this message.
fn read_stream(mut from: &TcpStream, message: &[u8]) -> usize {
    let (mut read, mut count) = (vec![0; message.len()], 0);
    while from.peek(&mut [0]).unwrap() > 0 {
        from.read_exact(&mut read).unwrap();
        assert!(read == message, "number {count}");
        count += 1;
    }
    count
}

#[test]
fn a_stream_is_handed_on_and_goes_on_unchanged_also_when_one_direction_has_ended() {
    let (up, down) = (noise(1, 1 << 20), noise(2, 1 << 20));
    for half_closed in [false, true] {
        let relayed = relay(16_384, 4, None);
        if half_closed {
            relayed.server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(all(&relayed.client), b"");
        }
        let (sent_up, sent_down) = thread::scope(|scope| {
            let sending = scope.spawn(|| write_stream(&relayed, &relayed.client, &up));
            let at_server = scope.spawn(|| read_stream(&relayed.server, &up));
            let answered = (!half_closed).then(|| {
                let answering = scope.spawn(|| write_stream(&relayed, &relayed.server, &down));
                (read_stream(&relayed.client, &down), answering.join().unwrap())
            });
            let (seen_down, sent_down) = answered.unwrap_or_default();
            assert_eq!(seen_down, sent_down);
            let sent_up = sending.join().unwrap();
            assert_eq!(at_server.join().unwrap(), sent_up);
            (sent_up, sent_down)
        });
        assert!(relayed.handed_on.load(Ordering::Relaxed), "half closed: {half_closed}");
        let (cause, client_bytes, server_bytes) = relayed.end();
        assert_eq!((client_bytes, server_bytes), ((sent_up << 20) as u64, (sent_down << 20) as u64));
        match half_closed {
            true => assert_eq!(cause, EndCause::ServerClosed, "the first FIN is remembered"),
            false => assert!(matches!(cause, EndCause::ClientClosed | EndCause::ServerClosed)),
        }
    }
}

#[test]
fn many_small_messages_are_no_stream() {
    let relayed = relay(16_384, 4, None);
    let (message, mut echo) = (noise(1, 8_192), vec![0; 8_192]);
    for _ in 0..2_000 {
        (&relayed.client).write_all(&message).unwrap();
        (&relayed.server).read_exact(&mut echo).unwrap();
    }
    assert!(!relayed.handed_on.load(Ordering::Relaxed), "16 MB in small messages");
    relayed.client.shutdown(Shutdown::Write).unwrap();
    relayed.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(relayed.end().0, EndCause::ClientClosed);
}

#[test]
fn an_order_to_stop_that_came_before_the_legs_were_up_lets_no_byte_through() {
    let (of_client, of_server) = (pair(), pair());
    (&of_client.0).write_all(b"question").unwrap();
    (&of_server.1).write_all(b"banner").unwrap();
    let revoked = Stop::Revoked(Box::new(Decision::refused(Generation(2), Reason::PodGone)));
    let relayed = relay_between(of_client, of_server, (16_384, 4, None), |live| live.stop(revoked));
    for end in [&relayed.client, &relayed.server] {
        let error = (&*end).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(relayed.end(), (EndCause::PolicyRevoked, 0, 0));
}

#[test]
fn a_reset_ends_both_legs_also_after_a_fin_and_while_the_other_side_takes_nothing() {
    for by_client in [true, false] {
        for stage in ["idle", "after a FIN", "held back"] {
            let relayed = relay(16_384, 4, None);
            let (first, second) = if by_client {
                (&relayed.client, &relayed.server)
            } else {
                (&relayed.server, &relayed.client)
            };
            match stage {
                "after a FIN" => {
                    first.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(all(second), b"");
                }
                "held back" => {
                    first.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                    let chunk = noise(1, 1 << 18);
                    // Until nothing is taken any more: the bytes wait in a pipe, or in the rest of a copy.
                    while (&*first).write(&chunk).is_ok() {}
                }
                _ => {}
            }
            let Carried { client, server, connection, metrics, task, runtime, .. } = relayed;
            let (first, second) = if by_client { (client, server) } else { (server, client) };
            SockRef::from(&first).set_linger(Some(Duration::ZERO)).unwrap();
            drop(first);
            let cause = runtime.block_on(async { tokio::time::timeout(LIMIT, task).await }).unwrap().unwrap();
            let expected = if by_client { EndCause::ClientReset } else { EndCause::ServerReset };
            assert_eq!(cause, expected, "{stage}");
            assert_eq!(metrics.pipes_in_use.get(), 0, "{stage}");
            let failed = until(|| (&second).write(b".").is_err());
            assert!(failed, "{stage}: the other end learns of it");
            drop(connection);
        }
    }
}

#[test]
fn an_order_to_stop_ends_it_with_its_cause() {
    let decision = Decision::refused(Generation(2), Reason::PodGone);
    for (stop, cause) in [
        (Stop::Revoked(Box::new(decision)), EndCause::PolicyRevoked),
        (Stop::Shutdown, EndCause::Shutdown),
        (Stop::ClientGone, EndCause::ClientGone),
    ] {
        let relayed = relay(16_384, 4, None);
        (&relayed.client).write_all(b"busy").unwrap();
        let mut busy = [0; 4];
        (&relayed.server).read_exact(&mut busy).unwrap();
        relayed.connection.live().stop(stop);
        for end in [&relayed.client, &relayed.server] {
            let error = (&*end).read(&mut busy).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(relayed.end(), (cause, 4, 0));
    }
}

#[test]
fn silence_for_the_idle_limit_ends_it_and_a_byte_in_either_direction_begins_the_limit_anew() {
    const IDLE: Duration = Duration::from_millis(300);
    let relayed = relay(16_384, 4, Some(IDLE));
    let mut byte = [0];
    let begin = Clock::now();
    while begin.elapsed() < 3 * IDLE {
        (&relayed.server).write_all(b"x").unwrap();
        (&relayed.client).read_exact(&mut byte).unwrap();
        thread::sleep(IDLE / 4);
    }
    assert!(!relayed.task.is_finished());
    let last = Clock::now();
    let error = (&relayed.client).read(&mut byte).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(last.elapsed() > IDLE / 2, "{:?}", last.elapsed());
    assert_eq!(relayed.end().0, EndCause::IdleTimeout);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_written_in_whatever_pieces_arrives_unchanged_both_ways(
        threshold in prop_oneof![Just(1_024usize), Just(16_384), Just(1 << 20)],
        max_pipes in 0usize..3,
        up in proptest::collection::vec(0usize..40_000, 0..12),
        down in proptest::collection::vec(0usize..40_000, 0..12),
    ) {
        let relayed = relay(threshold, max_pipes, None);
        let total = |pieces: &[usize]| pieces.iter().sum::<usize>();
        let write = |to: &TcpStream, pieces: &[usize], message: &[u8]| {
            let mut at = 0;
            for piece in pieces {
                (&*to).write_all(&message[at..at + piece]).unwrap();
                at += piece;
            }
            to.shutdown(Shutdown::Write).unwrap();
        };
        let (sent_up, sent_down) = (noise(1, total(&up)), noise(2, total(&down)));
        let (seen_up, seen_down) = thread::scope(|scope| {
            scope.spawn(|| write(&relayed.client, &up, &sent_up));
            scope.spawn(|| write(&relayed.server, &down, &sent_down));
            let at_server = scope.spawn(|| all(&relayed.server));
            (at_server.join().unwrap_or_default(), all(&relayed.client))
        });
        prop_assert!(seen_up == sent_up);
        prop_assert!(seen_down == sent_down);
        let (cause, client_bytes, server_bytes) = relayed.end();
        prop_assert!(matches!(cause, EndCause::ClientClosed | EndCause::ServerClosed));
        prop_assert_eq!((client_bytes, server_bytes), (sent_up.len() as u64, sent_down.len() as u64));
    }
}
