//! What records tell of the legs of a connection, and of the TLS hello that passed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use lab::{Netns, wait_until};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::{Value, json};
use suite::ends::{Dialer, reset};
use suite::stage::{ALLOWED, LIMIT, Stage, action, is_from};

const ALWAYS: &str = "proxy: {tcp_info_after_ms: 0}\n";

/// A connection from `client` to `server`, both ends.
fn pair(stage: &Stage, port: u16) -> (TcpStream, TcpStream) {
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    Dialer::new(client, server, server.at(port), LIMIT).unwrap().pair().unwrap()
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).unwrap();
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes);
}

fn leg(record: &Value, side: &str) -> Option<(u64, u64)> {
    let leg = &record["tcp"][side];
    Some((leg["rtt_us"].as_u64()?, leg["retransmits"].as_u64()?))
}

/// Swallows every packet with payload to a port of the server, until dropped.
struct Loss<'a>(&'a Netns);

impl<'a> Loss<'a> {
    fn start(netns: &'a Netns, port: u16) -> Self {
        let table = format!(
            "table inet loss {{\n counter lost {{ }}\n chain arriving {{\n type filter hook prerouting priority -350\n \
             tcp dport {port} tcp flags & psh == psh counter name lost drop\n }}\n}}\n"
        );
        netns.nft(&table).unwrap();
        Self(netns)
    }

    fn count(&self) -> u64 {
        let output =
            self.0.command("nft").args(["-j", "list", "counter", "inet", "loss", "lost"]).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let counters = told["nftables"].as_array().unwrap();
        counters.iter().find_map(|object| object["counter"]["packets"].as_u64()).unwrap()
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        let _ = self.0.nft("delete table inet loss\n");
    }
}

#[test]
fn an_end_tells_round_trip_times_and_which_leg_lost_packets() {
    let stage = Stage::new(ALWAYS).unwrap();
    let (mut near, mut far) = pair(&stage, ALLOWED);
    let from = near.local_addr().unwrap();
    let loss = Loss::start(stage.pod("server"), ALLOWED);
    near.write_all(b"lost at first").unwrap();
    assert!(wait_until(LIMIT, || loss.count() >= 2));
    drop(loss);
    far.read_exact(&mut [0; 13]).unwrap();
    pass(&mut far, &mut near, b"answer");
    drop((near, far));
    let record = stage.final_record(from).unwrap();
    let (client, server) = (leg(&record, "client").unwrap(), leg(&record, "server").unwrap());
    assert!(client.0 > 0 && client.1 == 0, "{record:#}");
    assert!(server.0 > 0 && server.1 >= 1, "{record:#}");
    let started = |record: &Value| is_from(record, from) && action(record) == "connection-started";
    let started = stage.sluice().wait_record(started, LIMIT).unwrap();
    assert!(started["tcp"].is_null());
}

#[test]
fn both_legs_are_told_whichever_end_closes_first_and_the_other_one_after_a_reset() {
    let stage = Stage::new(ALWAYS).unwrap();
    for first in ["client", "server"] {
        let (mut near, mut far) = pair(&stage, ALLOWED);
        let from = near.local_addr().unwrap();
        pass(&mut near, &mut far, b"hello");
        let (one, mut other) = if first == "client" { (near, far) } else { (far, near) };
        one.shutdown(Shutdown::Write).unwrap();
        other.read_to_end(&mut Vec::new()).unwrap();
        drop((one, other));
        let record = stage.final_record(from).unwrap();
        assert_eq!(record["sluice"]["end_cause"], format!("{first}-closed"));
        assert!(leg(&record, "client").is_some() && leg(&record, "server").is_some(), "{record:#}");
    }
    let (mut near, mut far) = pair(&stage, ALLOWED);
    let from = near.local_addr().unwrap();
    pass(&mut near, &mut far, b"hello");
    reset(near);
    let record = stage.final_record(from).unwrap();
    assert!(leg(&record, "client").is_none() && leg(&record, "server").is_some(), "{record:#}");
}

#[test]
fn short_connections_cost_the_kernel_no_question_by_default_and_longer_ones_do() {
    let stage = Stage::new("").unwrap();
    for (lives, told) in [(Duration::ZERO, false), (Duration::from_millis(1_100), true)] {
        let (near, far) = pair(&stage, ALLOWED);
        let from = near.local_addr().unwrap();
        // Its age is what is asked about.
        std::thread::sleep(lives);
        drop((near, far));
        let record = stage.final_record(from).unwrap();
        assert_eq!(record["tcp"].is_object(), told, "{record:#}");
    }
}

/// The first flight of a real TLS client.
fn hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("shop.example").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_tls_hello_passes_unchanged_and_the_record_tells_what_it_asked_for() {
    let stage = Stage::new("").unwrap();
    let hello = hello();
    for pieces in [vec![&hello[..]], vec![&hello[..40], &hello[40..]], hello.chunks(7).collect()] {
        let (mut near, mut far) = pair(&stage, ALLOWED);
        let from = near.local_addr().unwrap();
        near.set_nodelay(true).unwrap();
        for piece in pieces {
            pass(&mut near, &mut far, piece);
        }
        pass(&mut far, &mut near, b"answer");
        drop((near, far));
        let record = stage.final_record(from).unwrap();
        let expected = json!({"client": {"server_name": "shop.example", "alpn": ["h2", "http/1.1"]}});
        assert_eq!(record["tls"], expected, "{record:#}");
    }
    let (mut near, mut far) = pair(&stage, ALLOWED);
    let from = near.local_addr().unwrap();
    pass(&mut near, &mut far, b"GET / HTTP/1.0\r\n\r\n");
    drop((near, far));
    assert!(stage.final_record(from).unwrap()["tls"].is_null());
}

#[test]
fn where_hellos_are_not_to_be_read_none_is_told() {
    let stage = Stage::new("proxy: {tls_hellos: false}\n").unwrap();
    let (mut near, mut far) = pair(&stage, ALLOWED);
    let from = near.local_addr().unwrap();
    pass(&mut near, &mut far, &hello());
    drop((near, far));
    assert!(stage.final_record(from).unwrap()["tls"].is_null());
}
