//! Bytes → lines of probes: one answer each, in order, the same on the short way and on the long one.
#![no_main]

use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use flow::Generation;
use libfuzzer_sys::fuzz_target;
use policy_cache::{Options, Prober, answer_stream, compile, parse};

const MANIFESTS: &str = include_str!("../corpus/manifests/cluster.yaml");

static PROBER: LazyLock<Arc<Prober>> = LazyLock::new(|| {
    let Ok(objects) = parse([(Path::new("cluster.yaml"), MANIFESTS)]) else {
        panic!("the corpus is not valid");
    };
    let snapshot = compile(&objects, &Options::default(), Generation(1));
    Arc::new(Prober::new(&objects, Arc::new(snapshot)))
});

fuzz_target!(|bytes: &[u8]| {
    let mut expected = Vec::new();
    let mut all_decided = true;
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let answer = PROBER.answer(line);
        all_decided &= !answer.is_failed();
        let mut short = Vec::new();
        assert_eq!(PROBER.answer_into(line, None, &mut short), !answer.is_failed(), "{line}");
        // Compared as values: an id that is a number is written as it was read.
        let written = serde_json::from_slice::<serde_json::Value>(&short);
        assert_eq!(written.ok(), serde_json::to_value(&answer).ok(), "{line}");
        PROBER.answer_into(line, Some(number), &mut expected);
        expected.push(b'\n');
    }
    let mut output = Vec::new();
    let streamed = answer_stream(&PROBER, Cursor::new(bytes.to_vec()), &mut output, NonZeroUsize::MIN);
    assert_eq!(streamed.ok().map(|tally| tally.failed == 0), Some(all_decided));
    assert_eq!(String::from_utf8_lossy(&output), String::from_utf8_lossy(&expected));
});
