//! The admin API as clients meet it, over real sockets on the loopback address.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use audit::Metrics;

use super::*;

/// Longer than anything here may take; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(10);

fn started(conditions: &Conditions, limits: Limits) -> AdminHandle {
    let mut registry = Registry::default();
    let metrics = Metrics::default();
    metrics.connections_opened.inc_by(41);
    metrics.register(&mut registry);
    let any_port = "127.0.0.1:0".parse().unwrap();
    let board = Board::new("n1", conditions.clone(), metrics);
    start_limited(
        any_port,
        Api { conditions: conditions.clone(), board, registry: Arc::new(registry), limits },
    )
    .unwrap()
}

fn connected(admin: &AdminHandle) -> TcpStream {
    let stream = TcpStream::connect(admin.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `request` and returns all that comes back.
fn exchange(admin: &AdminHandle, request: &str) -> String {
    let mut stream = connected(admin);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Status and body of a GET.
fn get(admin: &AdminHandle, path: &str) -> (u16, String) {
    split(&exchange(admin, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")))
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn ready_means_every_condition_holds_and_each_that_does_not_is_named() {
    let conditions = Conditions::new(&["snapshot", "rules", "gate"]);
    let admin = started(&conditions, Limits::default());
    let (status, body) = get(&admin, "/readyz");
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "gate: not established yet\nrules: not established yet\nsnapshot: not established yet\n"
    );

    conditions.set("gate", Ok(()));
    conditions.set("rules", Ok(()));
    conditions.set("snapshot", Err("policies.yaml:\n3: bad".to_owned()));
    assert_eq!(get(&admin, "/readyz"), (503, "snapshot: policies.yaml: 3: bad\n".to_owned()));

    conditions.set("snapshot", Ok(()));
    assert_eq!(get(&admin, "/readyz"), (200, "ready\n".to_owned()));

    conditions.set("rules", Err("someone removed the table".to_owned()));
    assert_eq!(get(&admin, "/readyz"), (503, "rules: someone removed the table\n".to_owned()));
    assert_eq!(get(&admin, "/healthz").0, 200, "a condition is no matter of life and death");
}

#[test]
fn health_ends_with_a_thread_that_returns_or_panics() {
    let conditions = Conditions::new(&[]);
    let admin = started(&conditions, Limits::default());
    assert_eq!(get(&admin, "/healthz"), (200, "ok\n".to_owned()));

    let gate = conditions.alive("gate");
    let listener = conditions.alive("listener");
    assert_eq!(get(&admin, "/healthz").0, 200);

    let panicked = std::thread::spawn(move || {
        let _alive = gate;
        panic!("as the test wants it");
    });
    assert!(panicked.join().is_err());
    assert_eq!(get(&admin, "/healthz"), (503, "gate: thread ended\n".to_owned()));
    drop(listener);
    assert_eq!(get(&admin, "/healthz"), (503, "gate: thread ended\nlistener: thread ended\n".to_owned()));
    assert_eq!(get(&admin, "/readyz").0, 503, "what is dead is not ready");

    let _gate = conditions.alive("gate");
    assert_eq!(get(&admin, "/healthz"), (503, "listener: thread ended\n".to_owned()));
}

#[test]
fn metrics_come_as_openmetrics_to_those_who_accept_it_and_as_older_text_to_others() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    let answer = exchange(&admin, "GET /metrics HTTP/1.1\r\nHost: node\r\nAccept: */*\r\n\r\n");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    let (status, body) = split(&answer);
    assert_eq!(status, 200);
    let sample = "# TYPE sluice_connections_opened_total counter\nsluice_connections_opened_total 41\n";
    assert!(body.contains(sample) && !body.contains("# EOF"), "{body}");

    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let answer = exchange(&admin, &format!("GET /metrics?x=1 HTTP/1.1\r\nHost: node\r\n{accept}\r\n\r\n"));
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(answer.contains(kind), "{answer}");
    let (status, body) = split(&answer);
    assert_eq!(status, 200);
    assert!(body.contains("# TYPE sluice_connections_opened counter\nsluice_connections_opened_total 41\n"));
    assert!(body.ends_with("# EOF\n"));
}

#[test]
fn the_status_comes_as_json_and_tells_what_readiness_tells() {
    let conditions = Conditions::new(&["gate", "rules"]);
    let admin = started(&conditions, Limits::default());
    let answer = exchange(&admin, "GET /status HTTP/1.1\r\nHost: node\r\n\r\n");
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    let status = |text: &str| serde_json::from_str::<crate::status::Status>(text).unwrap();
    let told = status(&split(&answer).1);
    assert_eq!((told.node.as_str(), told.ready, told.connections.opened), ("n1", false, 41));
    let unready = told.conditions.iter().map(|c| format!("{}: {}\n", c.name, c.reason.as_deref().unwrap()));
    assert_eq!(unready.collect::<String>(), get(&admin, "/readyz").1);

    conditions.set("gate", Ok(()));
    conditions.set("rules", Ok(()));
    let thread = conditions.alive("datapath");
    assert!(status(&get(&admin, "/status").1).ready);
    drop(thread);
    let (code, body) = get(&admin, "/status");
    assert_eq!((code, status(&body).ready), (200, false), "a status is an answer, whatever it says");
    assert!(body.contains("thread ended"), "{body}");
}

#[test]
fn other_paths_and_methods_are_refused() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    for path in ["/", "/healthz/", "/metrics/x", "/../healthz", "*"] {
        assert_eq!(get(&admin, path).0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = format!("{method} /healthz HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n");
        let answer = exchange(&admin, &request);
        assert_eq!(split(&answer).0, 405, "{method}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{method}");
    }
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    let answer = exchange(&admin, "HEAD /healthz HTTP/1.1\r\nHost: node\r\n\r\n");
    assert_eq!(split(&answer), (200, String::new()));
    assert!(answer.contains("content-length: 3\r\n"), "{answer}");
}

#[test]
fn old_clients_are_served() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    assert_eq!(split(&exchange(&admin, "GET /healthz HTTP/1.0\r\n\r\n")), (200, "ok\n".to_owned()));
}

#[test]
fn a_client_that_sends_no_head_is_dropped_at_the_limit() {
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let admin = started(&Conditions::new(&[]), limits);
    for beginning in ["", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: node\r\n"] {
        let begun = Instant::now();
        let answer = exchange(&admin, beginning);
        assert!(begun.elapsed() < PATIENCE / 2, "{beginning:?} was waited for");
        assert!(!answer.contains("200 OK"), "{beginning:?}: {answer}");
    }
    assert_eq!(get(&admin, "/healthz").0, 200);
}

#[test]
fn a_client_that_never_ends_its_request_body_is_dropped_at_the_limit() {
    let limits = Limits { connection: Duration::from_millis(200), ..Limits::default() };
    let admin = started(&Conditions::new(&[]), limits);
    let begun = Instant::now();
    let request = "POST /healthz HTTP/1.1\r\nHost: node\r\nContent-Length: 1000000\r\n\r\nbeginning";
    let mut stream = connected(&admin);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // The server may reset what it does not want to read.
    let _ = stream.read_to_end(&mut answer);
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(get(&admin, "/healthz").0, 200);
}

#[test]
fn garbage_is_answered_or_dropped_and_harms_nobody() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        long.as_bytes(),
    ];
    for bytes in garbage {
        let mut stream = connected(&admin);
        // Either side may close first; what matters is that the exchange ends and no success is claimed.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let begun = Instant::now();
        let _ = stream.read_to_end(&mut answer);
        assert!(begun.elapsed() < PATIENCE / 2);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(get(&admin, "/healthz").0, 200);
}

#[test]
fn idle_clients_beyond_the_limit_push_out_the_oldest_and_nobody_waits() {
    let limits = Limits { connections: 4, head: PATIENCE * 3, connection: PATIENCE * 3 };
    let admin = started(&Conditions::new(&[]), limits);
    let mut idle: Vec<TcpStream> = (0..20).map(|_| connected(&admin)).collect();
    let begun = Instant::now();
    assert_eq!(get(&admin, "/healthz").0, 200);
    assert!(begun.elapsed() < PATIENCE / 2);
    let mut byte = [0];
    assert_eq!(idle[0].read(&mut byte).unwrap(), 0, "the oldest was closed");
    idle[19].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(idle[19].read(&mut byte).is_err(), "the newest is still open");
}

#[test]
fn a_port_in_use_is_said_to_be_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let start = |address| {
        let conditions = Conditions::new(&[]);
        let board = Board::new("n1", conditions.clone(), Metrics::default());
        start(address, conditions, board, Arc::new(Registry::default())).unwrap_err()
    };
    let error = start(address);
    assert!(error.to_string().starts_with(&format!("admin address {address} is already in use")), "{error}");

    let foreign = "192.0.2.1:1".parse().unwrap();
    let error = start(foreign);
    assert!(error.to_string().starts_with("listen on admin address 192.0.2.1:1: "), "{error}");
}

#[test]
fn dropping_the_handle_frees_the_port_without_waiting_for_clients() {
    let admin = started(&Conditions::new(&[]), Limits::default());
    let address = admin.address();
    let idle = connected(&admin);
    let begun = Instant::now();
    drop(admin);
    assert!(begun.elapsed() < PATIENCE / 2);
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}
