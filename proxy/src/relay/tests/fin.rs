//! The look for the FIN behind what comes first.

use super::*;

/// What one look at the server's leg takes, though the runtime knows of nothing yet, after `says` was done to its end.
fn taken_at_once(says: impl FnOnce(TcpStream)) -> (Result<bool, Broken>, bool, Vec<u8>) {
    let metrics = Metrics::default();
    let (recorder, _) =
        Recorder::start(RecorderConfig::default(), Sink::Discard, "node1", metrics.clone()).unwrap();
    let registry = Arc::new(Registry::new(recorder, metrics.clone()));
    let connection =
        registry.register(Tuple::tcp(([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into())).unwrap();
    let carrier = carrier(16_384, 1, None, &metrics);
    let ((client, of_client), (of_server, server)) = (pair(), pair());
    for leg in [&of_client, &of_server] {
        leg.set_nonblocking(true).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let legs = Legs { client: watch_stream(of_client).unwrap(), server: watch_stream(of_server).unwrap() };
    says(server);
    let live = connection.live();
    let mut directions = Directions::new(&carrier, &legs, live, Progress::begin());
    let way = directions.downwards();
    let taken = directions.down.take_arrived(way);
    let ended = directions.down.poll(way, &mut Context::from_waker(std::task::Waker::noop())).is_ready();
    drop(directions);
    drop(legs);
    (taken, ended, all(&client))
}

#[test]
fn the_fin_behind_an_answer_is_taken_with_it() {
    let (taken, ended, answer) = taken_at_once(|mut server| server.write_all(b"answer").unwrap());
    assert!(taken.unwrap() && ended, "answer and FIN in one look");
    assert_eq!(answer, b"answer");
    let mut open = None;
    let (taken, ended, answer) = taken_at_once(|mut server| {
        server.write_all(b"more follows").unwrap();
        open = Some(server);
    });
    assert!(taken.unwrap() && !ended, "the server has not ended");
    assert_eq!(answer, b"more follows");
}

#[test]
fn what_came_before_a_reset_is_delivered() {
    let (taken, _, answer) = taken_at_once(|mut server| {
        server.write_all(b"answer").unwrap();
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    });
    assert!(
        matches!(&taken, Err(Broken::From(error)) if error.raw_os_error() == Some(libc::ECONNRESET)),
        "{taken:?}"
    );
    assert_eq!(answer, b"answer");
}

#[test]
fn an_answer_that_its_client_s_leg_has_no_room_for_is_followed_by_its_fin() {
    for size in [1, 4_095, 4_096, 16_383, 16_384, 40_000] {
        let ((client, of_client), (of_server, server)) = (pair(), pair());
        SockRef::from(&of_client).set_send_buffer_size(1).unwrap();
        let answer = noise(size, size);
        // All is there before the first look: answer and FIN are taken together.
        (&server).write_all(&answer).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let relayed = relay_between((client, of_client), (of_server, server), (16_384, 4, None), |_| {});
        assert!(all(&relayed.client) == answer, "{size} bytes");
        assert!(!relayed.task.is_finished(), "the other direction is open");
        relayed.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(all(&relayed.server), b"");
        assert_eq!(relayed.end(), (EndCause::ServerClosed, 0, size as u64));
    }
}

/// Writes messages, the last byte of some of them as urgent data. Returns all that was written.
fn write_messages(to: &TcpStream, messages: &[(usize, bool)]) -> Vec<u8> {
    let mut written = Vec::new();
    for (length, is_urgent) in messages {
        let message = noise(written.len(), *length);
        let (last, before) = message.split_last().unwrap();
        if *is_urgent {
            (&*to).write_all(before).unwrap();
            SockRef::from(to).send_out_of_band(&[*last]).unwrap();
        } else {
            (&*to).write_all(&message).unwrap();
        }
        written.extend(message);
    }
    written
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn small_messages_with_urgent_data_among_them_arrive_whole_before_their_end(
        threshold in prop_oneof![Just(1_024usize), Just(16_384)],
        up in proptest::collection::vec((1usize..3_000, any::<bool>()), 0..8),
        down in proptest::collection::vec((1usize..3_000, any::<bool>()), 0..8),
    ) {
        let (of_client, of_server) = (pair(), pair());
        for leg in [&of_client.1, &of_server.0] {
            // As the datapath's own sockets.
            SockRef::from(leg).set_out_of_band_inline(true).unwrap();
        }
        let relayed = relay_between(of_client, of_server, (threshold, 2, None), |_| {});
        let Carried { client, server, .. } = &relayed;
        let (sent_up, seen_up, sent_down, seen_down) = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let sent = write_messages(client, &up);
                client.shutdown(Shutdown::Write).unwrap();
                sent
            });
            let answering = scope.spawn(|| {
                let sent = write_messages(server, &down);
                let asked = all(server);
                server.shutdown(Shutdown::Write).unwrap();
                (sent, asked)
            });
            let seen_down = all(client);
            let (sent_down, seen_up) = answering.join().unwrap();
            (asking.join().unwrap(), seen_up, sent_down, seen_down)
        });
        prop_assert!(seen_up == sent_up);
        prop_assert!(seen_down == sent_down);
        let expected = (EndCause::ClientClosed, sent_up.len() as u64, sent_down.len() as u64);
        prop_assert_eq!(relayed.end(), expected);
    }
}
