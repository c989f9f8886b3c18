//! A kind and bytes → one object as the API's watch reads it, or what is wrong with it; what was read is followed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, json)) = bytes.split_first() {
        fuzz::read_and_follow(*kind, json);
    }
});
