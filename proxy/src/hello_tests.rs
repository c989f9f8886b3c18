//! Hellos of a real client, whole, in pieces and damaged.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

fn hello_of(name: &str, protocols: &[&str]) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

fn looked_at(pieces: &[&[u8]]) -> Look {
    let mut reading = None;
    let mut last = Look::More;
    for piece in pieces {
        last = next(&mut reading, piece);
        if last != Look::More {
            break;
        }
    }
    last
}

fn shop() -> Look {
    Look::Hello(Tls {
        server_name: Some("shop.example".into()),
        protocols: ["h2".into(), "http/1.1".into()].into(),
    })
}

#[test]
fn a_hello_tells_its_server_name_and_what_protocols_it_offers() {
    assert_eq!(looked_at(&[&hello_of("shop.example", &["h2", "http/1.1"])]), shop());
    // An address is no server name (RFC 6066).
    let nameless = Look::Hello(Tls { server_name: None, protocols: [].into() });
    assert_eq!(looked_at(&[&hello_of("192.0.2.1", &[])]), nameless);
}

#[test]
fn a_hello_in_pieces_is_put_together_wherever_it_was_cut() {
    let hello = hello_of("shop.example", &["h2", "http/1.1"]);
    for cut in 1..hello.len() {
        let (one, other) = hello.split_at(cut);
        assert_eq!(looked_at(&[one, other]), shop(), "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = hello.chunks(1).collect();
    assert_eq!(looked_at(&bytes), shop());
    assert_eq!(looked_at(&bytes[..hello.len() - 1]), Look::More);
}

#[test]
fn what_comes_with_the_hello_and_behind_it_changes_nothing() {
    let mut bytes = hello_of("shop.example", &["h2", "http/1.1"]);
    bytes.extend([0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
    assert_eq!(looked_at(&[&bytes]), shop());
}

#[test]
fn what_is_no_tls_is_left_alone_after_its_first_bytes() {
    for other in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x\r\n", &[22], &[22, 2], &[0]] {
        let expected = if other == [22] { Look::More } else { Look::NoHello };
        assert_eq!(looked_at(&[other]), expected, "{other:?}");
    }
    assert_eq!(looked_at(&[&[22], b"x, and no TLS"]), Look::NoHello);
}

#[test]
fn a_hello_without_end_is_given_up_at_the_bound() {
    // A handshake message of 16 MiB, in records of 16 KiB.
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    endless.resize(64 << 10, 0);
    let mut reading = None;
    let looks: Vec<Look> = endless
        .chunks(1_000)
        .map_while(|piece| {
            let look = next(&mut reading, piece);
            (look == Look::More).then_some(look)
        })
        .collect();
    assert!(looks.len() <= LONGEST / 1_000, "{}", looks.len());
}

proptest! {
    #[test]
    fn no_damage_to_a_hello_makes_the_parser_panic(at in 0usize..300, value: u8, cut in 0usize..300, keep in 0usize..600) {
        let mut hello = hello_of("shop.example", &["h2", "http/1.1"]);
        if let Some(byte) = hello.get_mut(at) {
            *byte = value;
        }
        hello.truncate(keep);
        let (one, other) = hello.split_at(cut.min(hello.len()));
        let _ = looked_at(&[one, other]);
    }
}
