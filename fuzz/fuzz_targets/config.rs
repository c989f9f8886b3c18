//! Bytes → a configuration, accepted or refused with a reason; what is accepted reads the same once written.
#![no_main]

#[cfg_attr(not(test), expect(dead_code, reason = "the binary uses what is left unused here"))]
#[path = "../../sluice/src/config.rs"]
mod config;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    match config::Config::checked(std::path::Path::new("fuzzed.yaml"), &text) {
        Ok(accepted) => {
            let Ok(written) = serde_saphyr::to_string(&accepted) else { panic!("{accepted:?}") };
            match config::Config::checked(std::path::Path::new("written.yaml"), &written) {
                Ok(again) => assert_eq!(accepted, again, "{written}"),
                Err(error) => panic!("{error}\n{written}"),
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
