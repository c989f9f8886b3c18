//! What an established connection carries, and how it ends: as it would without Sluice, at both ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::wait_until;
use serde_json::Value;
use suite::ends::{Dialer, End, fill, read_to_end, reset, unread, write_some, write_to_end};
use suite::pattern::Pattern;
use suite::procfs::data_kib;
use suite::stage::{ALLOWED, LIMIT, Stage, action, bytes, cause, is_final, is_from};

/// Nothing is taken for this long by a path that is full.
const QUIET: Duration = Duration::from_millis(250);

/// What both ends saw, in order.
type Seen = Vec<String>;

/// One way for a connection to go, played once with the client as `first` and once with the server.
struct Scene {
    name: &'static str,
    play: fn(first: TcpStream, second: TcpStream) -> Seen,
    /// `sluice.end_cause` when the client is first, and when the server is.
    causes: [&'static str; 2],
    /// Bytes from the first and from the second, where they are certain.
    bytes: Option<(u64, u64)>,
}

fn ends(name: &str, end: (Vec<u8>, End)) -> String {
    format!("{name}: {} bytes, then {}", end.0.len(), end.1)
}

fn say(mut stream: &TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
}

fn hear(mut stream: &TcpStream, text: &[u8]) -> String {
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, text);
    format!("heard {}", String::from_utf8_lossy(text))
}

/// `first` stops speaking; `second` answers a good while later.
fn half_close_then_late_answer(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"question");
    first.shutdown(Shutdown::Write).unwrap();
    let asked = ends("second", read_to_end(&second));
    // The pause is what is tested: one direction is closed and nothing moves in the other.
    thread::sleep(Duration::from_millis(1_200));
    say(&second, b"late answer");
    drop(second);
    vec![asked, ends("first", read_to_end(&first))]
}

fn half_close_then_bulk_the_other_way(first: TcpStream, second: TcpStream) -> Seen {
    first.shutdown(Shutdown::Write).unwrap();
    let pattern = Pattern::new(3);
    let asked = ends("second", read_to_end(&second));
    let received = thread::scope(|scope| {
        let receiving =
            scope.spawn(|| pattern.receive(&first, 0, 3 << 20).map_err(|error| error.to_string()));
        pattern.send(&second, 0, 3 << 20).unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        receiving.join().unwrap()
    });
    vec![asked, format!("{received:?}"), ends("first", read_to_end(&first))]
}

fn close_at_once(first: TcpStream, second: TcpStream) -> Seen {
    drop(first);
    vec![ends("second", read_to_end(&second))]
}

fn reset_while_idle(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"hello");
    let heard = hear(&second, b"hello");
    reset(first);
    vec![
        heard,
        ends("second", read_to_end(&second)),
        format!("second writes: {}", write_to_end(&second, LIMIT)),
    ]
}

fn reset_unspoken(first: TcpStream, second: TcpStream) -> Seen {
    reset(first);
    vec![ends("second", read_to_end(&second))]
}

fn reset_noticed_by_writing(first: TcpStream, second: TcpStream) -> Seen {
    reset(first);
    vec![format!("second writes: {}", write_to_end(&second, LIMIT))]
}

fn last_words_then_reset(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"last words");
    // Delivered before the reset: what is still in flight when a reset overtakes it is nobody's promise.
    assert!(unread(&second, 10, LIMIT));
    reset(first);
    vec![ends("second", read_to_end(&second))]
}

fn half_close_then_reset_by_the_same(first: TcpStream, second: TcpStream) -> Seen {
    first.shutdown(Shutdown::Write).unwrap();
    let closed = ends("second", read_to_end(&second));
    reset(first);
    vec![closed, format!("second writes: {}", write_to_end(&second, LIMIT))]
}

fn half_close_then_reset_by_the_other(first: TcpStream, second: TcpStream) -> Seen {
    first.shutdown(Shutdown::Write).unwrap();
    let closed = ends("second", read_to_end(&second));
    reset(second);
    vec![closed, ends("first", read_to_end(&first))]
}

fn reset_by_the_one_that_is_held_back(first: TcpStream, second: TcpStream) -> Seen {
    let pattern = Pattern::new(1);
    let taken = fill(&first, 1 << 30, QUIET, |at| pattern.chunk_at(at)).unwrap();
    assert!(taken > 64 << 10);
    reset(first);
    // The second reads nothing before it learns of the reset.
    let noticed = format!("second writes: {}", write_to_end(&second, LIMIT));
    let (read, end) = read_to_end(&second);
    assert_eq!(read, sent(&pattern, read.len()));
    vec![noticed, format!("second: a beginning, then {end}")]
}

fn reset_by_the_one_that_holds_back(first: TcpStream, second: TcpStream) -> Seen {
    let pattern = Pattern::new(1);
    fill(&first, 1 << 30, QUIET, |at| pattern.chunk_at(at)).unwrap();
    reset(second);
    vec![format!("first writes: {}", write_to_end(&first, LIMIT)), ends("first", read_to_end(&first))]
}

fn close_with_unread_data(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"never read");
    assert!(unread(&second, 10, LIMIT));
    drop(second);
    vec![ends("first", read_to_end(&first))]
}

fn answer_then_close_with_unread_data(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"never read");
    assert!(unread(&second, 10, LIMIT));
    say(&second, b"answer");
    assert!(unread(&first, 6, LIMIT));
    drop(second);
    vec![ends("first", read_to_end(&first))]
}

fn close_while_the_other_goes_on_speaking(first: TcpStream, second: TcpStream) -> Seen {
    drop(first);
    let closed = ends("second", read_to_end(&second));
    vec![closed, format!("second writes: {}", write_to_end(&second, LIMIT))]
}

fn shut_down_both_ways_and_close(first: TcpStream, second: TcpStream) -> Seen {
    say(&first, b"ping");
    let heard = hear(&second, b"ping");
    first.shutdown(Shutdown::Both).unwrap();
    let closed = ends("second", read_to_end(&second));
    second.shutdown(Shutdown::Write).unwrap();
    vec![heard, closed, ends("first", read_to_end(&first))]
}

fn sent(pattern: &Pattern, length: usize) -> Vec<u8> {
    let mut sent = Vec::with_capacity(length);
    while sent.len() < length {
        let chunk = pattern.chunk_at(sent.len() as u64);
        sent.extend_from_slice(&chunk[..chunk.len().min(length - sent.len())]);
    }
    sent
}

const CLOSED: [&str; 2] = ["client-closed", "server-closed"];
const RESET_BY_FIRST: [&str; 2] = ["client-reset", "server-reset"];
const RESET_BY_SECOND: [&str; 2] = ["server-reset", "client-reset"];

const SCENES: &[Scene] = &[
    Scene {
        name: "half-close, then a late answer",
        play: half_close_then_late_answer,
        causes: CLOSED,
        bytes: Some((8, 11)),
    },
    Scene {
        name: "half-close, then bulk the other way",
        play: half_close_then_bulk_the_other_way,
        causes: CLOSED,
        bytes: Some((0, 3 << 20)),
    },
    Scene { name: "close at once", play: close_at_once, causes: CLOSED, bytes: Some((0, 0)) },
    Scene {
        name: "shut down both ways",
        play: shut_down_both_ways_and_close,
        causes: CLOSED,
        bytes: Some((4, 0)),
    },
    Scene { name: "reset while idle", play: reset_while_idle, causes: RESET_BY_FIRST, bytes: Some((5, 0)) },
    Scene { name: "reset unspoken", play: reset_unspoken, causes: RESET_BY_FIRST, bytes: Some((0, 0)) },
    Scene {
        name: "reset noticed by writing",
        play: reset_noticed_by_writing,
        causes: RESET_BY_FIRST,
        bytes: None,
    },
    Scene {
        name: "last words, then reset",
        play: last_words_then_reset,
        causes: RESET_BY_FIRST,
        bytes: Some((10, 0)),
    },
    Scene {
        name: "half-close, then reset by the same",
        play: half_close_then_reset_by_the_same,
        causes: RESET_BY_FIRST,
        bytes: None,
    },
    Scene {
        name: "half-close, then reset by the other",
        play: half_close_then_reset_by_the_other,
        causes: RESET_BY_SECOND,
        bytes: Some((0, 0)),
    },
    Scene {
        name: "reset by the one that is held back",
        play: reset_by_the_one_that_is_held_back,
        causes: RESET_BY_FIRST,
        bytes: None,
    },
    Scene {
        name: "reset by the one that holds back",
        play: reset_by_the_one_that_holds_back,
        causes: RESET_BY_SECOND,
        bytes: None,
    },
    Scene {
        name: "close with unread data",
        play: close_with_unread_data,
        causes: RESET_BY_SECOND,
        bytes: Some((10, 0)),
    },
    Scene {
        name: "answer, then close with unread data",
        play: answer_then_close_with_unread_data,
        causes: RESET_BY_SECOND,
        bytes: Some((10, 6)),
    },
    Scene {
        name: "close while the other goes on speaking",
        play: close_while_the_other_goes_on_speaking,
        causes: RESET_BY_FIRST,
        bytes: None,
    },
];

/// A scene that was played: which, who was first (0: the client), from where and to which port, and what was seen.
/// The client may use a port twice, towards different ports.
type Played = (usize, usize, (SocketAddr, u16), Seen);

/// Plays every scene from either side, all at the same time, each on a port of its own.
fn play_all(stage: &Stage) -> Vec<Played> {
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let play = |number: usize, first: usize| {
        let to = server.at(ALLOWED + u16::try_from(2 * number + first).unwrap());
        let (near, far) = Dialer::new(client, server, to, LIMIT).unwrap().pair().unwrap();
        let address = near.local_addr().unwrap();
        let play = SCENES[number].play;
        (number, first, (address, to.port()), if first == 0 { play(near, far) } else { play(far, near) })
    };
    thread::scope(|scope| {
        let playing: Vec<_> = (0..SCENES.len())
            .flat_map(|number| [(number, 0), (number, 1)])
            .map(|(number, first)| scope.spawn(move || play(number, first)))
            .collect();
        playing.into_iter().map(|scene| scene.join().unwrap()).collect()
    })
}

#[test]
fn both_ends_see_what_they_would_see_without_sluice() {
    let mut stage = Stage::without_sluice("").unwrap();
    let direct = play_all(&stage);
    stage.start_sluice().unwrap();
    let through = play_all(&stage);
    for (direct, through) in direct.iter().zip(&through) {
        let (scene, first) = (&SCENES[through.0], ["client", "server"][through.1]);
        assert_eq!(
            direct.3, through.3,
            "{}, {first} first: left is direct, right through Sluice",
            scene.name
        );
    }
    for (number, first, (client, port), _) in &through {
        let (scene, role) = (&SCENES[*number], ["client", "server"][*first]);
        let is_it = |record: &Value| {
            is_final(record) && is_from(record, *client) && record["destination"]["port"] == *port
        };
        let record = stage.sluice().wait_record(is_it, LIMIT).unwrap();
        assert_eq!(action(&record), "connection-ended", "{}, {role} first: {record}", scene.name);
        assert_eq!(cause(&record), scene.causes[*first], "{}, {role} first: {record}", scene.name);
        if let Some((of_first, of_second)) = scene.bytes {
            let expected = if *first == 0 { (of_first, of_second) } else { (of_second, of_first) };
            assert_eq!(bytes(&record), expected, "{}, {role} first: {record}", scene.name);
        }
    }
    assert!(stage.settled());
    let records = stage.sluice().records().unwrap();
    let started = records.iter().filter(|record| action(record) == "connection-started").count();
    let ended = records.iter().filter(|record| is_final(record)).count();
    assert_eq!((started, ended), (through.len(), through.len()), "one of each for every connection");
    for cause_of_scenes in ["client-closed", "server-closed", "client-reset", "server-reset"] {
        let expected =
            through.iter().filter(|played| SCENES[played.0].causes[played.1] == cause_of_scenes).count();
        let series = format!("sluice_connections_closed_total{{cause=\"{cause_of_scenes}\"}}");
        assert_eq!(stage.sluice().metric(&series).unwrap(), expected as f64, "{series}");
    }
}

#[test]
fn messages_of_every_size_around_the_splice_threshold_pass_unchanged_in_turn() {
    let stage = Stage::new("").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let (near, far) = dialer.pair().unwrap();
    let from = near.local_addr().unwrap();
    let (question, answer) = (Pattern::new(1), Pattern::new(2));
    let sizes =
        [1, 2, 1_447, 1_448, 1_449, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1 << 20, 1, 16_384, 1];
    let mut moved = 0;
    for _ in 0..2 {
        for size in sizes {
            thread::scope(|scope| {
                // A message larger than all buffers needs its reader at the same time.
                let asking = scope.spawn(|| question.send(&near, moved, size));
                question.receive(&far, moved, size).unwrap();
                asking.join().unwrap().unwrap();
                let answering = scope.spawn(|| answer.send(&far, moved, size));
                answer.receive(&near, moved, size).unwrap();
                answering.join().unwrap().unwrap();
            });
            moved += size;
        }
    }
    drop(near);
    assert_eq!(read_to_end(&far), (vec![], End::Closed));
    drop(far);
    let record = stage.final_record(from).unwrap();
    assert_eq!((cause(&record), bytes(&record)), ("client-closed", (moved, moved)), "{record}");
}

#[test]
fn load_a_gibibyte_one_way_and_a_quarter_the_other_at_once_pass_unchanged() {
    const UP: u64 = 1 << 30;
    const DOWN: u64 = 256 << 20;
    let stage = Stage::new("").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let (near, far) = dialer.pair().unwrap();
    let from = near.local_addr().unwrap();
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let begin = Instant::now();
    thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| up.send(&near, 0, UP).and_then(|()| near.shutdown(Shutdown::Write))),
            scope.spawn(|| up.receive(&far, 0, UP)),
            scope.spawn(|| down.send(&far, 0, DOWN).and_then(|()| far.shutdown(Shutdown::Write))),
            scope.spawn(|| down.receive(&near, 0, DOWN)),
        ];
        for task in tasks {
            task.join().unwrap().unwrap();
        }
    });
    let gigabits = ((UP + DOWN) * 8) as f64 / 1e9 / begin.elapsed().as_secs_f64();
    println!("{gigabits:.2} Gb/s, both ways together, content compared");
    assert_eq!(read_to_end(&near), (vec![], End::Closed));
    assert_eq!(read_to_end(&far), (vec![], End::Closed));
    drop((near, far));
    assert_eq!(bytes(&stage.final_record(from).unwrap()), (UP, DOWN));
    assert!(stage.settled());
}

/// Small buffers on the node, so that a path is soon full.
fn with_small_buffers(config: &str) -> Stage {
    let mut stage = Stage::without_sluice(config).unwrap();
    for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        stage.cluster.node("node1").unwrap().sysctl(key, "4096 65536 131072").unwrap();
        for pod in stage.cluster.pods() {
            pod.sysctl(key, "4096 65536 131072").unwrap();
        }
    }
    stage.start_sluice().unwrap();
    stage
}

#[test]
fn a_slow_reader_holds_its_writer_back_and_loses_nothing() {
    const TOTAL: u64 = 4 << 20;
    let stage = with_small_buffers("proxy: {pipe_bytes: 65536}\n");
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let (near, far) = dialer.pair().unwrap();
    let from = near.local_addr().unwrap();
    let pattern = Pattern::new(7);
    let resident = data_kib(stage.sluice().pid()).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            pattern.send(&near, 0, TOTAL).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        let (begin, mut read) = (Instant::now(), 0);
        // The pace is what is tested: 64 KiB a second.
        while begin.elapsed() < Duration::from_secs(2) {
            pattern.receive(&far, read, 16 << 10).unwrap();
            read += 16 << 10;
            thread::sleep(Duration::from_millis(250));
            assert!(!sending.is_finished(), "the writer is held back");
            assert!(stage.sluice().metric("sluice_pipes_in_use").unwrap() <= 2.0);
        }
        pattern.receive(&far, read, TOTAL - read).unwrap();
    });
    let grown = data_kib(stage.sluice().pid()).unwrap().saturating_sub(resident);
    assert!(grown < 4 << 10, "{grown} KiB more for one held back stream");
    assert_eq!(read_to_end(&far), (vec![], End::Closed));
    drop((near, far));
    let record = stage.final_record(from).unwrap();
    assert_eq!((cause(&record), bytes(&record)), ("client-closed", (TOTAL, 0)), "{record}");
    assert!(stage.settled());
}

#[test]
fn load_two_hundred_slow_readers_do_not_stop_a_fast_connection_and_lose_nothing() {
    const SLOW: usize = 200;
    const FAST: u64 = 64 << 20;
    let stage = with_small_buffers("proxy: {pipe_bytes: 65536, max_pipes: 128}\n");
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let pattern = Pattern::new(9);
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let mut slow: Vec<(TcpStream, TcpStream, u64)> = Vec::new();
    for _ in 0..SLOW {
        let (near, far) = dialer.pair().unwrap();
        slow.push((near, far, 0));
    }
    // All at once, until none of them takes any more.
    let mut last = Instant::now();
    while last.elapsed() < QUIET {
        for (near, _, taken) in &mut slow {
            let more = write_some(near, pattern.chunk_at(*taken)).unwrap();
            *taken += more;
            if more > 0 {
                last = Instant::now();
            }
        }
    }
    assert!(slow.iter().all(|(_, _, taken)| *taken > 64 << 10));
    assert!(stage.sluice().metric("sluice_pipes_in_use").unwrap() <= 128.0);

    let (near, far) = dialer.pair().unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(|| pattern.send(&near, 0, FAST));
        pattern.receive(&far, 0, FAST).unwrap();
        sending.join().unwrap().unwrap();
    });
    let bulk = begin.elapsed();
    let mut worst = Duration::ZERO;
    for turn in 0..200u64 {
        let begin = Instant::now();
        pattern.send(&near, turn, 1).unwrap();
        pattern.receive(&far, turn, 1).unwrap();
        worst = worst.max(begin.elapsed());
    }
    println!("64 MiB beside {SLOW} held back streams: {bulk:?}; slowest of 200 single bytes: {worst:?}");
    assert!(bulk < Duration::from_secs(10), "{bulk:?}");
    assert!(worst < Duration::from_millis(500), "{worst:?}");

    for (near, far, taken) in &slow {
        near.shutdown(Shutdown::Write).unwrap();
        pattern.receive(far, 0, *taken).unwrap();
        assert_eq!(read_to_end(far), (vec![], End::Closed));
    }
    let sent: u64 = slow.iter().map(|(_, _, taken)| *taken).sum();
    drop((slow, near, far));
    assert!(stage.settled());
    assert!(wait_until(LIMIT, || {
        let records = stage.sluice().records().unwrap();
        records.iter().filter(|record| is_final(record)).count() == SLOW + 1
    }));
    let records = stage.sluice().records().unwrap();
    let recorded: u64 = records.iter().filter(|record| is_final(record)).map(|record| bytes(record).0).sum();
    assert_eq!(recorded, sent + FAST + 200);
}

#[test]
fn an_idle_connection_is_reset_at_its_limit_and_a_busy_one_is_not() {
    let stage = Stage::new("proxy: {idle_timeout_ms: 700}\n").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let (busy, (idle, idle_far)) = (dialer.pair().unwrap(), dialer.pair().unwrap());
    let (busy_from, idle_from) = (busy.0.local_addr().unwrap(), idle.local_addr().unwrap());
    let begin = Instant::now();
    let ended = thread::scope(|scope| {
        let idling = scope.spawn(|| (read_to_end(&idle), begin.elapsed()));
        // Longer than the limit, a byte at a time and only in one direction.
        while begin.elapsed() < Duration::from_millis(2_100) {
            say(&busy.1, b"x");
            hear(&busy.0, b"x");
            thread::sleep(Duration::from_millis(150));
        }
        idling.join().unwrap()
    });
    assert_eq!(ended.0, (vec![], End::Reset));
    assert!(ended.1 >= Duration::from_millis(650) && ended.1 < Duration::from_millis(2_000), "{:?}", ended.1);
    assert_eq!(read_to_end(&idle_far), (vec![], End::Reset));
    assert_eq!(cause(&stage.final_record(idle_from).unwrap()), "idle-timeout");
    assert_eq!(
        stage.sluice().metric("sluice_connections_closed_total{cause=\"idle-timeout\"}").unwrap(),
        1.0
    );
    let records = stage.sluice().records().unwrap();
    assert!(!records.iter().any(|record| is_final(record) && is_from(record, busy_from)));
    drop(busy);
    let cause_of_busy = stage.final_record(busy_from).unwrap();
    assert_ne!(cause(&cause_of_busy), "idle-timeout");
}

#[test]
fn urgent_data_arrives_in_its_place_in_the_stream_and_stalls_nothing() {
    const BULK: usize = 1 << 20;
    const ROUNDS: usize = 20;
    let stage = Stage::new("").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let (near, far) = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap().pair().unwrap();
    let from = near.local_addr().unwrap();
    near.set_write_timeout(Some(LIMIT)).unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    let urgent = |byte: &[u8]| assert_eq!(socket2::SockRef::from(&near).send_out_of_band(byte).unwrap(), 1);
    let take = |bytes: usize| {
        let mut taken = vec![0; bytes];
        (&far).read_exact(&mut taken).map(|()| taken)
    };
    say(&near, b"abc");
    urgent(b"!");
    say(&near, b"defghi");
    assert_eq!(take(10).unwrap(), b"abc!defghi");
    // Everything arrives while nothing comes after it, not even the FIN: whoever stops at the mark stalls for good.
    for round in 0..ROUNDS {
        let taken = thread::scope(|scope| {
            let taking = scope.spawn(|| take(2 * BULK + 1));
            say(&near, &vec![b'.'; BULK]);
            urgent(b"?");
            say(&near, &vec![b'.'; BULK]);
            taking.join().unwrap()
        });
        let taken = taken.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(taken[BULK] == b'?' && taken.iter().filter(|byte| **byte == b'.').count() == 2 * BULK);
    }
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&far), (vec![], End::Closed));
    let sent = 10 + ROUNDS as u64 * (2 * BULK as u64 + 1);
    drop((near, far));
    assert_eq!(bytes(&stage.final_record(from).unwrap()), (sent, 0));
}
