//! Which blocks are read: each of three has something of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow::{Endpoint, Labels, Owner, Pod, PolicyKind, PolicyRef, Protocol, Service, Workload};

use super::super::layout::BLOCK;
use super::super::{Store, StoreConfig, StoreQuery, read_store};
use super::Hints;
use crate::batch::Batch;
use crate::lane::Deliver;
use crate::line::LineWriter;
use crate::line::tests::{everything, pod};
use crate::{Action, ConnectionId, Record, Traffic};

const KINDS: [&str; 3] = ["red", "green", "blue"];

/// A record of a block: everything in it is of that block alone.
fn record(block: usize) -> Record {
    let kind = KINDS[block];
    let whole = everything();
    let workload = Workload {
        namespace: "shop".into(),
        labels: Labels::from_iter([("kind", kind), ("app", "web")]),
        owner: Some(Owner { kind: "Deployment".into(), name: kind.into() }),
    };
    let mut tuple = whole.tuple;
    tuple.protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][block];
    tuple.destination.0.set_port(8_000 + u16::try_from(block).unwrap());
    let mut decision = whole.decision.clone();
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: kind.into(),
        rule: Some(1),
    };
    decision.ingress.policies = Some(Arc::<[PolicyRef]>::from([policy]).into());
    let number = u64::try_from(block).unwrap();
    // Both known: internal. One known: towards it, or from it.
    let known =
        || Endpoint::Pod(Arc::new(Pod { workload: Arc::new(workload.clone()), ..pod("shop", kind, true) }));
    let (source, destination) = match block {
        0 => (known(), known()),
        1 => (known(), Endpoint::External),
        _ => (Endpoint::External, known()),
    };
    Record {
        action: Action::Ended,
        id: ConnectionId::next(),
        tuple,
        source,
        destination,
        service: Some(Service { name: kind.into(), ..whole.service.clone().unwrap() }),
        decision,
        revoked_by: None,
        duration: Some(Duration::from_secs(10 * number + 1)),
        traffic: Traffic { client_bytes: 1_000 * number, server_bytes: 1, ..Traffic::default() },
        ..whole
    }
}

fn store(folder: &Path, blocks: &[usize], oddity: Option<Record>) {
    let mut store = Store::open(&StoreConfig::default(), folder, "node-a").unwrap();
    let mut writer = LineWriter::new("node-a");
    let mut number = 0;
    for block in blocks {
        let mut batch = Batch::default();
        let last = oddity.iter().filter(|_| *block == 0).cloned();
        let ordinary = std::iter::repeat_with(|| record(*block)).take(BLOCK - last.clone().count());
        for record in ordinary.chain(last) {
            number += 1;
            batch.add_record(number, &mut writer, Box::new(record));
        }
        store.deliver(&batch).unwrap();
    }
    store.finish();
}

/// How many lines of each block come.
fn read(folder: &Path, hints: Hints) -> [usize; 3] {
    let mut counts = [0; 3];
    read_store(folder, &StoreQuery { hints, ..StoreQuery::default() }, |line| {
        let has_port = |block: &usize| line.contains(&format!("\"port\":{}", 8_000 + block));
        counts[(0..3).find(has_port).unwrap()] += 1;
        true
    })
    .unwrap();
    counts
}

fn each_hint() -> Vec<(Hints, [bool; 3])> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let none = Hints::default;
    let label = |value: Option<&str>| vec![("kind".to_owned(), value.map(str::to_owned))];
    vec![
        (none(), [true; 3]),
        (Hints { ports: vec![8_001], ..none() }, [false, true, false]),
        (Hints { ports: vec![8_000, 8_002], ..none() }, [true, false, true]),
        (Hints { protocols: words(&["udp"]), ..none() }, [false, true, false]),
        (Hints { directions: words(&["internal"]), ..none() }, [true, false, false]),
        (Hints { labels: label(Some("blue")), ..none() }, [false, false, true]),
        (Hints { labels: label(None), ..none() }, [true; 3]),
        (Hints { workloads: words(&["red", "blue"]), ..none() }, [true, false, true]),
        (Hints { policies: words(&["shop/green"]), ..none() }, [false, true, false]),
        (Hints { policies: words(&["green#2"]), ..none() }, [false; 3]),
        (Hints { services: words(&["blue"]), ..none() }, [false, false, true]),
        (Hints { services: words(&["blue"]), ports: vec![8_000], ..none() }, [false; 3]),
        (Hints { nodes: words(&["node-b"]), ..none() }, [false; 3]),
        (Hints { nodes: words(&["node-b", "node-a"]), ..none() }, [true; 3]),
        (Hints { least_ns: 11_000_000_000, ..none() }, [false, true, true]),
        (Hints { least_ns: 21_000_000_001, ..none() }, [false; 3]),
        (Hints { least_bytes: 1_002, ..none() }, [false, false, true]),
    ]
}

#[test]
fn blocks_that_have_nothing_of_what_is_named_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), &[0, 1, 2], None);
    for (hints, expected) in each_hint() {
        let expected = expected.map(|is_read| if is_read { BLOCK } else { 0 });
        assert_eq!(read(folder.path(), hints.clone()), expected, "{hints:?}");
    }
}

#[test]
fn a_block_with_a_record_that_columns_cannot_tell_is_read_whatever_is_named_of_columns() {
    let folder = tempfile::tempdir().unwrap();
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    let oddity = Record { start: before, end: Some(before), ..record(0) };
    store(folder.path(), &[0], Some(oddity));
    for hints in [
        Hints { ports: vec![1], ..Hints::default() },
        Hints { protocols: vec!["sctp".to_owned()], ..Hints::default() },
        Hints { policies: vec!["none".to_owned()], ..Hints::default() },
        Hints { least_bytes: u64::MAX, ..Hints::default() },
    ] {
        assert_eq!(read(folder.path(), hints.clone()), [BLOCK, 0, 0], "{hints:?}");
    }
}

#[test]
fn rows_that_no_block_tells_of_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&StoreConfig::default(), folder.path(), "node-a").unwrap();
    let mut batch = Batch::default();
    batch.add_record(1, &mut LineWriter::new("node-a"), Box::new(record(1)));
    store.deliver(&batch).unwrap();
    assert_eq!(read(folder.path(), Hints { ports: vec![1], ..Hints::default() }), [0, 1, 0]);
}
