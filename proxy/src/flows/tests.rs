use std::net::SocketAddr;

use audit::{DeniedSide, RecorderConfig, Sink, Writer};
use flow::{ClientAddr, Endpoint, OrigDst, Reason, SideVerdict};
use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const NEVER: Option<[&IpAddr; 0]> = Some([]);

fn tuple(port: u16) -> Tuple {
    Tuple {
        protocol: Protocol::Udp,
        client: ClientAddr(SocketAddr::from(([10, 0, 0, 1], port))),
        destination: OrigDst("10.0.1.1:53".parse().unwrap()),
    }
}

fn judged(generation: u64) -> Judged {
    let decision = Decision {
        generation: Generation(generation),
        egress: SideVerdict::not_applicable(),
        ingress: SideVerdict::not_applicable(),
    };
    Judged { source: Endpoint::External, destination: Endpoint::External, decision }
}

fn entry(port: u16, packets: u64) -> Entry {
    let Tuple { protocol, client, destination } = tuple(port);
    let counted = Counted { packets, bytes: packets * 38 };
    Entry {
        protocol,
        original: (client.0, destination.0),
        reply: (destination.0, client.0),
        mark: 0x40,
        id: None,
        zone: 0,
        counted: Some((counted, Counted::default())),
        is_over: false,
    }
}

fn recorded(sink: Sink, max: usize) -> (Flows, Writer, Metrics) {
    let metrics = Metrics::default();
    let config = RecorderConfig::default();
    let (recorder, writer) = Recorder::start(config, sink, "node1", metrics.clone()).unwrap();
    (Flows::new(recorder, metrics.clone(), max, max), writer, metrics)
}

fn accept(flows: &Flows, port: u16, generation: u64) {
    let mut table = flows.lock();
    flows.accept(&mut table, tuple(port), judged(generation), Instant::now());
    flows.started(&mut table, &tuple(port), None, true);
}

fn look(flows: &Flows, present: &[u16]) -> Compared {
    let seen = present.iter().map(|port| (tuple(*port), entry(*port, 1))).collect();
    flows.compare(Instant::now(), seen, Look::Later)
}

fn known(flows: &Flows, port: u16, generation: u64) -> Known {
    let now = Instant::now();
    flows.lock().known(&tuple(port), Generation(generation), now, now)
}

#[test]
fn a_flow_that_conntrack_did_not_seem_to_see_is_followed_once_it_is_found_there() {
    let (flows, _writer, metrics) = recorded(Sink::Discard, 10);
    let mut table = flows.lock();
    flows.accept(&mut table, tuple(1), judged(1), Instant::now());
    flows.started(&mut table, &tuple(1), None, false);
    drop(table);
    let ended = || metrics.connections_live.get();
    look(&flows, &[1]);
    look(&flows, &[]);
    assert_eq!(ended(), 1, "it may have been passed over once");
    look(&flows, &[]);
    assert_eq!(ended(), 0, "conntrack has let go of it");
}

#[test]
fn a_flow_is_known_until_conntrack_lets_go_of_it() {
    let (flows, ..) = recorded(Sink::Discard, 10);
    assert_eq!(known(&flows, 1, 1), Known::Nothing);
    accept(&flows, 1, 1);
    assert_eq!(known(&flows, 1, 2), Known::Accepted);
    assert!(flows.ended(&entry(1, 3), |_| None), "packets came to the gate meanwhile: there may be another");
    assert_eq!(known(&flows, 1, 1), Known::Nothing);
    accept(&flows, 1, 1);
    assert!(!flows.ended(&entry(1, 3), |_| None));
    assert!(!flows.ended(&entry(1, 3), |_| None), "it was known no more");
}

#[test]
fn what_came_before_its_flow_was_accepted_begins_no_other() {
    let (flows, ..) = recorded(Sink::Discard, 10);
    let since = Instant::now();
    accept(&flows, 1, 1);
    let meanwhile = flows.lock().known(&tuple(1), Generation(1), since, Instant::now());
    assert_eq!(meanwhile, Known::AcceptedMeanwhile);
    assert!(!flows.ended(&entry(1, 3), |_| None), "nothing else is looked for");
}

#[test]
fn what_conntrack_has_not_counted_is_added_to_its_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (flows, writer, _) = recorded(Sink::File(path.clone()), 10);
    accept(&flows, 1, 1);
    for port in [1, 2, 1] {
        flows.lock().count_beside(&tuple(port), 38);
    }
    flows.ended(&entry(1, 3), |_| None);
    writer.close(LIMIT);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("\"port\":1,\"bytes\":50,\"packets\":5"), "{text}");
}

#[test]
fn a_refusal_holds_for_the_snapshot_that_gave_it() {
    let (flows, _writer, metrics) = recorded(Sink::Discard, 2);
    let refuse = |port| {
        let judged = judged(1);
        let (cause, since) = (EndCause::PolicyDenied, Instant::now());
        let refusal = Refusal { tuple: tuple(port), judged, service: None, cause, since, detail: None };
        flows.refuse(&mut flows.lock(), refusal);
    };
    refuse(1);
    assert_eq!(known(&flows, 1, 1), Known::Refused);
    assert_eq!(known(&flows, 1, 2), Known::Nothing, "a newer snapshot may allow it");
    let later = Instant::now() + REFUSED + Duration::from_secs(1);
    assert_eq!(flows.lock().known(&tuple(1), Generation(1), later, later), Known::Nothing);
    (1..=3).for_each(refuse);
    assert_eq!(known(&flows, 1, 1), Known::Nothing, "the oldest made room");
    assert_eq!((known(&flows, 2, 1), known(&flows, 3, 1)), (Known::Refused, Known::Refused));
    assert_eq!(metrics.connections_denied.of(DeniedSide::None).get(), 4);
}

#[test]
fn a_client_has_its_share_until_one_of_its_flows_ends() {
    let (flows, ..) = recorded(Sink::Discard, 2);
    let [client, server] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 1, 1])];
    accept(&flows, 1, 1);
    assert!(!flows.has_its_share(&flows.lock(), client));
    accept(&flows, 2, 1);
    assert!(flows.has_its_share(&flows.lock(), client));
    assert!(!flows.has_its_share(&flows.lock(), server), "it is the client of none");
    flows.ended(&entry(1, 3), |_| None);
    assert!(!flows.has_its_share(&flows.lock(), client));
}

#[test]
fn a_flow_that_conntrack_lacks_twice_has_ended_and_a_stranger_seen_twice_is_taken_up() {
    let (flows, _writer, metrics) = recorded(Sink::Discard, 10);
    accept(&flows, 1, 1);
    assert!(look(&flows, &[1]).strangers.is_empty());
    look(&flows, &[]);
    look(&flows, &[1]);
    look(&flows, &[]);
    assert_eq!(flows.len(), 1, "it was there in between");
    look(&flows, &[]);
    assert_eq!(flows.len(), 0);
    assert_eq!(metrics.connections_closed.of(EndCause::FlowTimeout).get(), 1);
    assert!(look(&flows, &[2]).strangers.is_empty());
    assert_eq!(look(&flows, &[2]).strangers, [entry(2, 1)]);
}

#[test]
fn a_flow_accepted_while_the_table_was_read_is_not_missed() {
    let (flows, ..) = recorded(Sink::Discard, 10);
    let begun = Instant::now();
    accept(&flows, 1, 1);
    for _ in 0..3 {
        flows.compare(begun, HashMap::new(), Look::Later);
    }
    assert_eq!(flows.len(), 1);
}

#[test]
fn a_sweep_looks_at_those_concerned_and_those_it_never_saw() {
    let (flows, _writer, metrics) = recorded(Sink::Discard, 10);
    accept(&flows, 1, 1);
    let refused = |_: &Tuple, _: &Judged| Some(Decision::refused(Generation(2), Reason::PodGone));
    let allowed = |_: &Tuple, _: &Judged| None;
    assert!(flows.sweep(NEVER, allowed).is_empty());
    assert!(flows.sweep(NEVER, refused).is_empty(), "nobody concerned, and it was seen");
    accept(&flows, 2, 1);
    assert_eq!(flows.sweep(NEVER, refused), HashSet::from([tuple(2)]), "accepted since the last sweep");
    assert_eq!(known(&flows, 2, 2), Known::Refused, "its entry is on its way out");
    let concerned = IpAddr::from([10, 0, 0, 1]);
    assert_eq!(flows.sweep(Some([&concerned]), refused), HashSet::from([tuple(1)]));
    assert_eq!(metrics.policy_revocations.get(), 2);
    assert_eq!(look(&flows, &[1]).revoked, [entry(1, 1)], "still there: it is to be deleted again");
    assert_eq!(flows.len(), 1, "the other is gone");
    flows.ended(&entry(1, 1), |_| None);
    assert_eq!(metrics.connections_closed.of(EndCause::PolicyRevoked).get(), 2);
}

#[test]
fn what_a_former_process_counted_is_not_counted_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (flows, writer, _) = recorded(Sink::File(path.clone()), 10);
    flows.adopt(&entry(1, 5), judged(1), None, true);
    flows.adopt(&entry(2, 5), judged(1), None, false);
    flows.ended(&entry(1, 7), |_| None);
    flows.ended(&entry(2, 7), |_| None);
    writer.close(LIMIT);
    let text = std::fs::read_to_string(path).unwrap();
    let sent: Vec<bool> = [(1, 2), (2, 7)]
        .iter()
        .map(|(port, packets)| {
            let side = format!("\"port\":{port},\"bytes\":{},\"packets\":{packets}", packets * 10);
            text.contains(&side)
        })
        .collect();
    assert_eq!(sent, [true, true], "{text}");
}

#[test]
fn a_flow_of_others_that_is_not_allowed_has_one_record_and_was_never_live() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    let (flows, writer, metrics) = recorded(Sink::File(path.clone()), 10);
    flows.end_stranger(&entry(1, 5), judged(1), None, true);
    flows.end_stranger(&entry(2, 5), judged(1), None, false);
    assert_eq!((flows.len(), metrics.connections_live.get(), metrics.policy_revocations.get()), (0, 0, 2));
    writer.close(LIMIT);
    let text = std::fs::read_to_string(path).unwrap();
    let told: Vec<(bool, bool)> = text
        .lines()
        .map(|line| (line.contains("\"end_cause\":\"policy-revoked\""), line.contains("\"packets\":5")))
        .collect();
    assert_eq!(told, [(true, false), (true, true)], "{text}");
}

#[derive(Debug, Clone)]
enum Step {
    Accept(u16),
    Packet(u16),
    Ended(u16),
    Beside(u16),
    Look(Vec<u16>),
    Adopt(u16),
    Sweep(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let port = 1u16..5;
    prop_oneof![
        port.clone().prop_map(Step::Accept),
        port.clone().prop_map(Step::Packet),
        port.clone().prop_map(Step::Ended),
        port.clone().prop_map(Step::Beside),
        port.clone().prop_map(Step::Adopt),
        proptest::collection::vec(port, 0..4).prop_map(Step::Look),
        any::<bool>().prop_map(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_flow_has_one_first_and_one_final_record(steps in proptest::collection::vec(step(), 0..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let (flows, writer, metrics) = recorded(Sink::File(path.clone()), 10);
        for step in steps {
            match step {
                Step::Accept(port) if known(&flows, port, 1) == Known::Nothing => accept(&flows, port, 1),
                Step::Accept(port) | Step::Packet(port) => drop(known(&flows, port, 1)),
                Step::Ended(port) => drop(flows.ended(&entry(port, 1), |_| None)),
                Step::Beside(port) => flows.lock().count_beside(&tuple(port), 38),
                Step::Adopt(port) => flows.adopt(&entry(port, 1), judged(1), None, true),
                Step::Look(ports) => drop(look(&flows, &ports)),
                Step::Sweep(revoke) => drop(flows.sweep(NEVER, |_, _| {
                    revoke.then(|| Decision::refused(Generation(2), Reason::PodGone))
                })),
            }
        }
        flows.end_all(EndCause::Shutdown);
        prop_assert_eq!(flows.len(), 0);
        prop_assert_eq!(metrics.connections_live.get(), 0);
        writer.close(LIMIT);
        let text = std::fs::read_to_string(path).unwrap();
        let ids = |action: &str| -> Vec<String> {
            let of_action = text.lines().filter(|line| line.contains(&format!("\"action\":\"{action}\"")));
            let id = |line: &str| line.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
            let mut ids: Vec<String> = of_action.map(id).collect();
            ids.sort();
            ids
        };
        let (started, ended) = (ids("connection-started"), ids("connection-ended"));
        prop_assert_eq!(&started, &ended);
        prop_assert_eq!(started.iter().collect::<HashSet<_>>().len(), started.len());
    }
}
