//! What is read on the short way and on the long one, and what is refused.

use std::path::Path;

use flow::Generation;
use serde_json::Value;

use super::*;
use crate::{Options, compile, parse};

fn prober() -> Prober {
    let pods = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"status":{"podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}},
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"status":{"podIP":"10.0.0.2"}},
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"nowhere"}}]}"#;
    let objects = parse([(Path::new("pods.json"), pods)]).unwrap();
    Prober::new(&objects, Arc::new(compile(&objects, &Options::default(), Generation(1))))
}

#[test]
fn a_probe_reads_the_same_on_the_short_way_or_is_left_to_the_long_one() {
    let prober = prober();
    let a = r#"{"pod":"default/a"}"#;
    let ends = [
        a,
        r#"{"pod":"default/b"}"#,
        r#"{"pod":"default/nowhere"}"#,
        r#"{"pod":"default/c"}"#,
        r#"{"pod":"default\u002fa"}"#,
        r#"{"pod":null,"ip":"10.0.0.1"}"#,
        r#"{"ip":"10.0.0.1","pod":"default/b"}"#,
        r#"{"ip":"10.0.0.1","pod":null}"#,
        r#"{"ip":"fd00::1"}"#,
        r#"{"ip":"::ffff:10.0.0.1"}"#,
        r#"{"ip":"10.0.0.256"}"#,
        r#"{"ip":"10.0.0.9","note":1}"#,
        r#"{"Ip":"10.0.0.9"}"#,
        r#""pod""#,
        "{}",
        "null",
        "7",
    ];
    let rests = [
        r#""port":80"#,
        r#""port":80,"id":{"deep":[1]}"#,
        r#""port":80,"id":null,"more":{}"#,
        r#""port":80,"id":18446744073709551615"#,
        r#""port":80,"id":18446744073709551616"#,
        r#""port":80,"id":-7"#,
        r#""port":80,"id":1.50"#,
        r#""port":80,"id":true"#,
        r#""port":80,"id":"ä/\ud83d\ude00\"\\\u0001""#,
        r#""port":80,"id":"ä/~""#,
        r#""port":80,"protocol":"UDP","id":"x""#,
        r#""port":80,"protocol":null"#,
        r#""port":80,"protocol":"udp""#,
        r#""port":80,"protocol":6"#,
        r#""port":80,"port":81"#,
        r#""port":0"#,
        r#""port":65536"#,
        r#""port":-1"#,
        r#""port":80.0"#,
        r#""port":"80""#,
        r#""port":null"#,
        r#""id":1"#,
        r#""port":80}"#,
    ];
    let mut short = 0;
    let mut check = |line: String| {
        if let Some((_, probe)) = read_short(&prober, &line) {
            assert_eq!(Some(probe), prober.read(&line).1.ok(), "{line}");
            short += 1;
        }
        let mut written = Vec::new();
        let decided = prober.answer_into(&line, None, &mut written);
        let answer = prober.answer(&line);
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written, serde_json::to_value(&answer).unwrap(), "{line}");
        assert_eq!(decided, !answer.is_failed(), "{line}");
    };
    for end in ends {
        for rest in rests {
            check(format!(r#"{{"src":{end},"dst":{a},{rest}}}"#));
            check(format!(r#"{{{rest},"dst":{end},"src":{a}}}"#));
        }
    }
    check(format!(r#"[null,{a},{a},80,"TCP"]"#));
    assert_eq!(short, 40, "lines that took the short way");
}

fn read_short<'l>(prober: &Prober, line: &'l str) -> Option<(plain::PlainId<'l>, Probe)> {
    plain::resolve(prober, plain::parse(line)?)
}

#[test]
fn a_key_that_a_probe_does_not_have_is_refused_and_the_id_kept() {
    let a = r#"{"pod":"default/a"}"#;
    let table = [
        (format!(r#""src":{a},"dst":{a},"port":80,"protcol":"UDP""#), "protcol"),
        (format!(r#""src":{a},"dst":{a},"port":80,"Protocol":"UDP""#), "Protocol"),
        (format!(r#""src":{a},"dst":{a},"port":80,"more":null"#), "more"),
        (format!(r#""src":{{"pod":"default/a","port":1}},"dst":{a},"port":80"#), "src.port"),
        (format!(r#""src":{a},"dst":{{"ip":"10.0.0.2","ipv6":"fd00::1"}},"port":80"#), "dst.ipv6"),
        (format!(r#""src":{a},"dst":{{"Ip":"10.0.0.2"}},"port":80"#), "dst.Ip"),
    ];
    for (keys, key) in table {
        let line = format!(r#"{{"id":7,{keys}}}"#);
        assert!(read_short(&prober(), &line).is_none(), "{line}");
        let Answer::Failed { id, error, .. } = prober().answer(&line) else { panic!("decided: {line}") };
        assert_eq!(id, 7, "{line}");
        assert!(error.starts_with(&format!("{key}: unknown key, ")), "{line}: {error}");
    }
}

#[test]
fn an_id_that_is_a_number_is_written_as_it_was_read() {
    let prober = prober();
    let ids = [
        "0",
        "7",
        "-7",
        "1.50",
        "1e3",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890",
        "-0.10",
    ];
    let ends = r#""src":{"pod":"default/a"},"dst":{"pod":"default/b"}"#;
    for id in ids {
        for (rest, decided) in [(r#","port":80"#, true), ("", false)] {
            for line in
                [format!(r#"{{"id":{id},{ends}{rest}}}"#), format!(r#"{{{ends}{rest} , "id" : {id} }}"#)]
            {
                let mut out = b"before ".to_vec();
                assert_eq!(prober.answer_into(&line, None, &mut out), decided, "{line}");
                let text = String::from_utf8(out).unwrap();
                assert!(text.starts_with(&format!("before {{\"id\":{id},\"")), "{line}: {text}");
            }
        }
    }
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    let a = r#"{"pod":"default/a"}"#;
    for (line, key) in [
        (format!(r#"{{"src":{a},"dst":{a},"port":80,"port":81}}"#), "port"),
        (format!(r#"{{"id":1,"src":{a},"dst":{a},"port":80,"id":1}}"#), "id"),
        (format!(r#"{{"src":{a},"dst":{a},"src":{a},"port":80}}"#), "src"),
        (format!(r#"{{"src":{a},"dst":{a},"port":80,"p\u006frt":80}}"#), "port"),
        (format!(r#"{{"src":{{"pod":"default/b","pod":"default/a"}},"dst":{a},"port":80}}"#), "src.pod"),
        (format!(r#"{{"src":{a},"dst":{{"ip":"10.0.0.2","ip":"10.0.0.2"}},"port":80}}"#), "dst.ip"),
        (format!(r#"{{"src":{a},"dst":{{"service":"a/b","service":"a/b"}},"port":80}}"#), "dst.service"),
    ] {
        assert!(read_short(&prober(), &line).is_none(), "{line}");
        let Answer::Failed { error, .. } = prober().answer(&line) else { panic!("decided: {line}") };
        assert_eq!(error, format!("{key}: stands twice"), "{line}");
    }
    let deep = format!(r#"{{"id":{{"a":1,"a":2}},"src":{a},"dst":{a},"port":80}}"#);
    assert!(!prober().answer(&deep).is_failed(), "an id is nobody's question");
}

#[test]
fn a_list_is_no_probe() {
    let end = r#"{"pod":"default/a"}"#;
    assert!(prober().answer(&format!(r#"[1,{end},{end},80,"TCP"]"#)).is_failed());
}
