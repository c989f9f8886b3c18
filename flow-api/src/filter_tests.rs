//! What each filter means, and that nobody can make one cost more than it should.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::flow::tests::{denied, flow_of, started};
use crate::proto::flow::flow_filter::Experimental;
use crate::proto::flow::{HttpHeader, NetworkInterface};

fn wanted(filter: FlowFilter) -> Wanted {
    Wanted::new(&GetFlowsRequest { whitelist: vec![filter], ..GetFlowsRequest::default() }).unwrap()
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

macro_rules! filter {
    ($($field:ident: $value:expr),*) => { FlowFilter { $($field: $value,)* ..FlowFilter::default() } };
}

#[test]
fn each_field_asks_for_its_part_of_a_flow() {
    let flow = flow_of(&started(3));
    let workload = |kind: &str, name: &str| Workload { name: name.to_owned(), kind: kind.to_owned() };
    let flags = |syn: bool, fin: bool| vec![TcpFlags { syn, fin, ..TcpFlags::default() }];
    let event = |kind: i32, sub_type: Option<i32>| {
        vec![EventTypeFilter {
            r#type: kind,
            match_sub_type: sub_type.is_some(),
            sub_type: sub_type.unwrap_or(0),
        }]
    };
    let identity = flow.source.as_ref().unwrap().identity;
    for (filter, expected) in [
        (filter!(uuid: texts(&["0123456789abcdef-3-3"])), true),
        (filter!(uuid: texts(&["other"])), false),
        (filter!(source_ip: texts(&["10.244.1.2"])), true),
        (filter!(source_ip: texts(&["10.244.1.0/24"])), true),
        (filter!(source_ip: texts(&["10.244.2.0/24", "192.0.2.1"])), false),
        (filter!(destination_ip: texts(&["10.244.2.3"])), true),
        (filter!(source_ip_xlated: texts(&["0.0.0.0/0"])), false),
        (filter!(source_pod: texts(&["front/"])), true),
        (filter!(source_pod: texts(&["front/client"])), true),
        (filter!(source_pod: texts(&["/client"])), true),
        (filter!(source_pod: texts(&["client"])), false),
        (filter!(destination_pod: texts(&["shop/web-0"])), true),
        (filter!(source_label: texts(&["app=client"])), true),
        (filter!(source_label: texts(&["app in (api,web)"])), false),
        (filter!(destination_label: texts(&["app=web,tier"])), true),
        (filter!(destination_service: texts(&["shop/web"])), true),
        (filter!(source_service: texts(&["shop/web"])), false),
        (filter!(source_workload: vec![workload("", "client")]), true),
        (filter!(source_workload: vec![workload("DaemonSet", "client")]), false),
        (filter!(destination_workload: vec![workload("Pod", "")]), true),
        (filter!(source_cluster_name: texts(&["default"])), true),
        (filter!(destination_cluster_name: texts(&["east"])), false),
        (filter!(traffic_direction: vec![1]), true),
        (filter!(traffic_direction: vec![2]), false),
        (filter!(verdict: vec![1, 2]), true),
        (filter!(verdict: vec![2]), false),
        (filter!(drop_reason_desc: vec![133]), false),
        (filter!(event_type: event(4, None)), true),
        (filter!(event_type: event(4, Some(3))), false),
        (filter!(event_type: event(0, Some(0))), true),
        (filter!(protocol: texts(&["TCP"])), true),
        (filter!(protocol: texts(&["udp", "dns"])), false),
        (filter!(source_port: texts(&["40000"])), true),
        (filter!(destination_port: texts(&["80"])), false),
        (filter!(reply: vec![false]), true),
        (filter!(reply: vec![true]), false),
        (filter!(encrypted: vec![true]), false),
        (filter!(source_identity: vec![identity]), true),
        (filter!(destination_identity: vec![identity]), false),
        (filter!(tcp_flags: flags(true, false)), true),
        (filter!(tcp_flags: flags(true, true)), false),
        (filter!(node_name: texts(&["node-a"])), true),
        (filter!(node_name: texts(&["default/node-*"])), true),
        (filter!(node_name: texts(&["east/"])), false),
        (filter!(node_labels: texts(&["zone=a"])), false),
        (filter!(ip_version: vec![1]), true),
        (filter!(ip_version: vec![2]), false),
        // What no flow here has.
        (filter!(source_fqdn: texts(&["*"])), false),
        (filter!(destination_fqdn: texts(&["*"])), false),
        (filter!(interface: vec![NetworkInterface::default()]), false),
        (filter!(http_status_code: texts(&["200"])), false),
        (filter!(dns_query: texts(&[".*"])), false),
        (filter!(http_method: texts(&["GET"])), false),
        (filter!(http_path: texts(&[".*"])), false),
        (filter!(http_url: texts(&[".*"])), false),
        (filter!(http_header: vec![HttpHeader::default()]), false),
        (filter!(trace_id: texts(&["1"])), false),
        (filter!(ip_trace_id: vec![1]), false),
        // All fields of one filter must match.
        (filter!(source_pod: texts(&["front/"]), verdict: vec![2]), false),
    ] {
        assert_eq!(wanted(filter.clone()).wants(&flow), expected, "{filter:?}");
    }
    let dropped = wanted(filter!(drop_reason_desc: vec![133], verdict: vec![2]));
    assert!(dropped.wants(&flow_of(&denied(1))));
}

#[test]
fn lists_are_alternatives_and_what_is_black_is_left_out() {
    let flow = flow_of(&started(3));
    let (yes, no) = (filter!(verdict: vec![1]), filter!(verdict: vec![2]));
    let wants = |white: &[&FlowFilter], black: &[&FlowFilter]| {
        let list = |filters: &[&FlowFilter]| filters.iter().map(|filter| (*filter).clone()).collect();
        let request =
            GetFlowsRequest { whitelist: list(white), blacklist: list(black), ..GetFlowsRequest::default() };
        Wanted::new(&request).unwrap().wants(&flow)
    };
    assert!(wants(&[], &[]) && wants(&[&no, &yes], &[]) && wants(&[&yes], &[&no]));
    assert!(!wants(&[&no], &[]) && !wants(&[&yes], &[&yes]) && !wants(&[], &[&no, &yes]));
    assert!(wants(&[&FlowFilter::default()], &[]), "an empty filter matches all");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let cel = Experimental { cel_expression: texts(&["true"]) };
    for filter in [
        filter!(source_ip: texts(&["10.0.0"])),
        filter!(destination_ip: texts(&["10.0.0.0/33"])),
        filter!(source_pod: texts(&[""])),
        filter!(source_label: texts(&["a in ("])),
        filter!(protocol: texts(&["quic"])),
        filter!(source_port: texts(&["65536"])),
        filter!(node_name: texts(&["a/b/c"])),
        filter!(node_name: texts(&["(a+)+$"])),
        filter!(experimental: Some(cel)),
        filter!(source_pod: vec!["x".repeat(LONGEST_VALUE + 1)]),
        filter!(uuid: texts(&["x"; MOST_VALUES])),
    ] {
        let request = GetFlowsRequest { whitelist: vec![filter.clone()], ..GetFlowsRequest::default() };
        assert!(Wanted::new(&request).is_err(), "{:.200}", format!("{filter:?}"));
    }
    let request = GetFlowsRequest {
        whitelist: vec![FlowFilter::default(); MOST_VALUES + 1],
        ..GetFlowsRequest::default()
    };
    assert!(Wanted::new(&request).is_err());
}

#[test]
fn the_costliest_filter_that_is_taken_costs_milliseconds_a_flow() {
    let flow = flow_of(&started(3));
    let nasty = format!("{}b", "*a".repeat(LONGEST_VALUE / 2 - 1));
    let wanted = wanted(filter!(node_name: vec![nasty; MOST_VALUES - 1]));
    let begun = Instant::now();
    assert!(!wanted.wants(&flow));
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
}

/// The same, slowly and plainly.
fn is_like_by_definition(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|from| is_like_by_definition(rest, &name[from..])),
        Some((letter, rest)) => name.first() == Some(letter) && is_like_by_definition(rest, &name[1..]),
    }
}

proptest! {
    #[test]
    fn a_star_stands_for_any_letters(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
        prop_assert_eq!(is_like(&pattern, &name), is_like_by_definition(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn no_selector_stops_the_reader(text in ".{0,60}") {
        if let Ok(selector) = Selector::parse(&text) {
            selector.matches(&["k8s:app=web".to_owned()]);
        }
    }
}
