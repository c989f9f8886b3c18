//! Bytes of a client, cut anywhere → what its TLS hello asks for, or nothing; however they were cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, hello)) = bytes.split_first() else { return };
    let whole = proxy::stages::read_hello([hello]);
    let (one, other) = hello.split_at(usize::from(*cut).min(hello.len()));
    let pieces = [one, other].into_iter().filter(|piece| !piece.is_empty());
    assert_eq!(proxy::stages::read_hello(pieces), whole);
    assert_eq!(proxy::stages::read_hello(hello.chunks(1)), whole);
});
