//! Bytes → manifests, read or refused; what was read compiles, decides the same twice, and is linted.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let name = if text.trim_start().starts_with('{') { "fuzzed.json" } else { "fuzzed.yaml" };
    fuzz::read_and_decide(name, &text);
});
