//! Which record each filter lets through.

use clap::Parser;
use serde_json::json;

use super::*;
use std::ffi::OsString;
use std::net::IpAddr;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    filters: Filters,
}

fn parsed<'a>(words: impl Iterator<Item = &'a str>) -> Result<Cli, clap::Error> {
    let turned = with_not(["sluice", "observe"].into_iter().chain(words).map(Into::into));
    Cli::try_parse_from(turned.into_iter().skip(1))
}

fn filters(words: &str) -> Filters {
    parsed(words.split_whitespace()).unwrap_or_else(|error| panic!("{error}")).filters
}

fn ended() -> Value {
    json!({
        "@timestamp": "2026-08-01T12:00:01.500000123Z",
        "event": {"action": "connection-ended", "duration": 1_500_000_000_u64},
        "network": {"transport": "tcp", "direction": "egress"},
        "observer": {"name": "node-a"},
        "source": {
            "ip": "10.244.1.2", "port": 40000, "bytes": 1000,
            "k8s": {"namespace": "front", "pod": "client-1", "owner": {"kind": "Deployment", "name": "client"},
                    "labels": {"app": "client"}},
        },
        "destination": {
            "ip": "fd00::3", "port": 8080, "bytes": 24,
            "k8s": {"namespace": "shop", "pod": "web-0", "owner": {"kind": "StatefulSet", "name": "web"}},
            "service": {"namespace": "shop", "name": "web"},
        },
        "sluice": {
            "egress": {"verdict": "allow", "policies": []},
            "ingress": {"verdict": "allow", "policies": ["NetworkPolicy/shop/web-in#2"]},
            "end_cause": "server-reset",
        },
    })
}

#[test]
fn each_filter_lets_through_what_it_names_and_nothing_else() {
    let table = [
        ("", true),
        ("--namespace shop", true),
        ("-n front", true),
        ("-n bank", false),
        ("-n bank -n shop", true),
        ("--from-namespace shop", false),
        ("--to-namespace shop", true),
        ("--pod web", true),
        ("--pod shop/web-0", true),
        ("--pod front/web", false),
        ("--from-pod web", false),
        ("--to-pod web", true),
        ("--workload web", true),
        ("--workload statefulset/web", true),
        ("--workload Deployment/web", false),
        ("--label app=client", true),
        ("--label app", true),
        ("--label app=web", false),
        ("--service web", true),
        ("--service bank/web", false),
        ("--ip 10.244.0.0/16", true),
        ("--ip fd00::/8", true),
        ("--ip 0.0.0.0/0", true),
        ("--to-ip 10.0.0.0/8", false),
        ("--from-ip 10.244.1.2", true),
        ("--from-ip 10.244.1.3", false),
        ("--port 8080", true),
        ("--port 40000", false),
        ("--protocol TCP", true),
        ("--protocol udp", false),
        ("--verdict allow", true),
        ("--verdict deny", false),
        ("--policy web-in", true),
        ("--policy shop/web-in", true),
        ("--policy NetworkPolicy/shop/web-in", true),
        ("--policy networkpolicy/shop/web-in#2", true),
        ("--policy web-in#2", true),
        ("--policy web-in#1", false),
        ("--policy AdminNetworkPolicy/shop/web-in", false),
        ("--policy in", false),
        ("--direction egress", true),
        ("--direction ingress", false),
        ("--cause server-reset", true),
        ("--cause refused", false),
        ("--type ended", true),
        ("-t started -t denied", false),
        ("--node node-a", true),
        ("--node node-b", false),
        ("--min-duration 1500ms", true),
        ("--min-duration 2s", false),
        ("--min-bytes 1K", true),
        ("--min-bytes 1025", false),
        ("--not --port 8080", false),
        ("--not --port=80", true),
        ("-n !bank", true),
        ("-n shop --not -n front", false),
        ("-n shop --port 8080 --verdict allow --from-namespace front", true),
        ("-n shop --port 81", false),
    ];
    for (words, expected) in table {
        assert_eq!(filters(words).matches(&Glance::from(&ended())), expected, "{words}");
        assert_eq!(filters(words).are_none(), words.is_empty(), "{words}");
        // As an agent gets them.
        let passed = filters(words).words();
        let passed = Filters::from_words(&passed).unwrap();
        assert_eq!(passed.matches(&Glance::from(&ended())), expected, "{words}");
        assert_eq!(passed.words(), filters(words).words(), "{words}");
    }
}

#[test]
fn a_revoked_connection_is_denied_and_a_record_of_losses_is_no_connection() {
    let mut revoked = ended();
    revoked["sluice"]["end_cause"] = json!("policy-revoked");
    assert!(filters("--verdict deny").matches(&Glance::from(&revoked)));
    let lost = json!({"event": {"action": "records-lost"}, "observer": {"name": "node-a"}});
    assert!(filters("").matches(&Glance::from(&lost)));
    assert!(filters("--type lost").matches(&Glance::from(&lost)));
    for verdict in ["--verdict allow", "--verdict deny"] {
        assert!(!filters(verdict).matches(&Glance::from(&lost)));
    }
    assert!(!filters("-n shop").matches(&Glance::from(&lost)));
}

#[test]
fn a_block_has_exactly_the_addresses_that_share_its_bits() {
    for length in 0..=32_u8 {
        let block: Block = format!("10.1.2.3/{length}").parse().unwrap();
        for flipped in 0..32_u32 {
            let ip = IpAddr::from((u32::from_be_bytes([10, 1, 2, 3]) ^ (1 << flipped)).to_be_bytes());
            assert_eq!(block.0.contains(ip), flipped < 32 - u32::from(length), "{block:?} {ip}");
        }
    }
    let everything: Block = "::/0".parse().unwrap();
    assert!(
        everything.0.contains("fd00::1".parse().unwrap())
            && !everything.0.contains("10.0.0.1".parse().unwrap())
    );
}

#[test]
fn what_is_no_value_is_refused() {
    for words in [
        "--ip 10.0.0.0/33",
        "--ip ten",
        "--port 70000",
        "--port !",
        "--verdict maybe",
        "--type begun",
        "--min-duration fast",
        "--min-duration 99999999999999999999s",
        "--min-bytes 1X",
        "-n !",
        "--not",
        "--not --follow",
        "--not --min-bytes 1K",
        "--port 99999",
        "--port -1",
        "--protocol tpc",
        "--cause closed",
        "--direction outwards",
        "--policy NetworkPolcy/shop/web",
        "--policy a/b/c/d",
        "--policy web#first",
        "--policy shop/",
        "--label =web",
    ] {
        let parsed = parsed(words.split(' '));
        let is_refused = parsed.is_err() || parsed.is_ok_and(|cli| cli.filters.check().is_err());
        assert!(is_refused, "{words}");
    }
}

#[test]
fn what_other_commands_are_given_and_what_follows_two_dashes_is_left_alone() {
    let left = |words: &str| {
        let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
        with_not(words.clone()) == words
    };
    assert!(left("sluice lab shell node1 -- hubble observe --not --port 80"));
    assert!(left("sluice observe --port 80 -- --not --port 80"));
    assert!(left("sluice") && left("sluice --not --port 80") && !left("sluice top --not --port 80"));
}

#[test]
fn every_filter_is_passed_to_an_agent_and_what_is_none_is_refused_there() {
    let command = <Filters as clap::Args>::augment_args(clap::Command::new("filters"));
    for argument in command.get_arguments().filter_map(|argument| argument.get_long()) {
        let value = match argument {
            "not" => continue,
            "ip" | "from-ip" | "to-ip" => "10.0.0.1",
            "port" => "80",
            "protocol" => "tcp",
            "verdict" => "deny",
            "direction" => "egress",
            "cause" => "refused",
            "type" => "ended",
            "min-duration" => "1500ms",
            "min-bytes" => "1000",
            _ => "some-name",
        };
        let word = format!("--{argument}={value}");
        assert_eq!(filters(&word).words(), [word]);
    }
    for words in ["--port=x", "--follow", "word"] {
        assert!(Filters::from_words(&[words.to_owned()]).is_err(), "{words}");
    }
}
