//! What is added up, when it is told, and that a sink that fails loses nothing of it.

use std::io;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::Traffic;
use crate::batch::{LossCause, Lost};
use crate::line::tests::{pod, record};
use crate::schema_tests::assert_valid;

const LONG: Duration = Duration::from_secs(3_600);

/// What reached the sink, and whether it works.
#[derive(Clone, Default)]
struct Kept {
    lines: Arc<Mutex<Vec<Value>>>,
    broken: Arc<Mutex<bool>>,
}

impl Deliver for Kept {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        if *self.broken.lock().unwrap() {
            let cause = SinkError::Thread(io::Error::other("broken"));
            return Err(Undelivered { delivered: 0, cause });
        }
        let lines = String::from_utf8(batch.lines().to_vec()).unwrap();
        self.lines.lock().unwrap().extend(lines.lines().map(|line| serde_json::from_str(line).unwrap()));
        Ok(())
    }
}

impl Kept {
    fn take(&self) -> Vec<Value> {
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        lines.iter().for_each(assert_valid);
        lines
    }
}

fn summary(every: Duration) -> (Summary, Kept) {
    let kept = Kept::default();
    (Summary::new(Box::new(kept.clone()), "sums", "node-a", every), kept)
}

fn batch(records: impl IntoIterator<Item = Record>) -> Batch {
    let mut batch = Batch::default();
    let mut writer = crate::line::LineWriter::new("node-a");
    for (number, record) in records.into_iter().enumerate() {
        batch.add_record(number as u64 + 1, &mut writer, Box::new(record));
    }
    batch
}

fn event(action: Action, id: ConnectionId, bytes: (u64, u64)) -> Record {
    Record {
        action,
        id,
        traffic: Traffic { client_bytes: bytes.0, server_bytes: bytes.1, ..Traffic::default() },
        ..record(action)
    }
}

fn summed(line: &Value) -> (Vec<u64>, u64, u64) {
    let counts = ["opened", "ended", "denied", "failed"];
    let count = |name: &str| line["sluice"]["summed"][name].as_u64().unwrap();
    let bytes = |side: &str| line[side]["bytes"].as_u64().unwrap();
    (counts.map(count).to_vec(), bytes("source"), bytes("destination"))
}

#[test]
fn an_interval_is_one_line_for_each_pair_and_port_and_bytes_of_a_connection_are_added_once() {
    let (mut summary, kept) = summary(LONG);
    let (one, other) = (ConnectionId::next(), ConnectionId::next());
    let records = [
        event(Action::Started, one, (0, 0)),
        event(Action::Updated, one, (100, 1_000)),
        event(Action::Started, other, (0, 0)),
        event(Action::Ended, other, (5, 7)),
        event(Action::Denied, ConnectionId::next(), (0, 0)),
        event(Action::Failed, ConnectionId::next(), (0, 0)),
    ];
    summary.deliver(&batch(records)).unwrap();
    assert_eq!(kept.take(), Vec::<Value>::new(), "the interval is not over");
    summary.deliver_rows();
    let lines = kept.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!(summed(&lines[0]), (vec![2, 1, 1, 1], 105, 1_007));
    assert_eq!(lines[0]["event"]["action"], "connections-summed");
    // The next interval has what is new since.
    summary.deliver(&batch([event(Action::Ended, one, (150, 1_000))])).unwrap();
    summary.deliver_rows();
    let lines = kept.take();
    assert_eq!(summed(&lines[0]), (vec![0, 1, 0, 0], 50, 0));
    summary.finish();
    assert_eq!(kept.take(), Vec::<Value>::new(), "nothing happened since");
    assert!(summary.told.is_empty());
}

#[test]
fn ends_are_named_as_records_name_them_without_addresses() {
    let (mut summary, kept) = summary(LONG);
    let lone = Endpoint::Pod(Arc::new(flow::Pod {
        workload: Arc::new(flow::Workload {
            namespace: "lab".into(),
            labels: flow::Labels::default(),
            owner: None,
        }),
        ..pod("lab", "lone", true)
    }));
    let node = Endpoint::Node { name: "node-b".into(), own: false };
    for (source, destination) in [(lone, Endpoint::External), (node, Endpoint::UnknownLocal)] {
        let record = Record { source, destination, ..event(Action::Denied, ConnectionId::next(), (0, 0)) };
        summary.deliver(&batch([record])).unwrap();
    }
    summary.finish();
    let mut lines = kept.take();
    lines.sort_by_key(|line| line["sluice"]["summed"]["from"].to_string());
    let ends =
        |line: &Value| (line["sluice"]["summed"]["from"].clone(), line["sluice"]["summed"]["to"].clone());
    assert_eq!(ends(&lines[0]), (json!("lab/lone"), json!("external")));
    assert_eq!(lines[0]["source"]["k8s"], json!({"namespace": "lab", "pod": "lone"}));
    assert_eq!(ends(&lines[1]), (json!("node node-b"), json!("unknown")));
    assert!(lines.iter().all(|line| line["source"]["ip"].is_null() && line["destination"]["k8s"].is_null()));
}

#[test]
fn what_a_broken_sink_does_not_take_is_part_of_the_next_interval() {
    let (mut summary, kept) = summary(Duration::ZERO);
    *kept.broken.lock().unwrap() = true;
    for _ in 0..3 {
        summary.deliver(&batch([event(Action::Ended, ConnectionId::next(), (1, 2))])).unwrap();
    }
    assert_eq!(kept.take(), Vec::<Value>::new());
    *kept.broken.lock().unwrap() = false;
    summary.wake();
    assert_eq!(summed(&kept.take()[0]), (vec![0, 3, 0, 0], 3, 6));
}

#[test]
fn lines_that_tell_of_lost_records_pass_at_once() {
    let (mut summary, kept) = summary(LONG);
    let mut lost = batch([event(Action::Ended, ConnectionId::next(), (1, 2))]);
    lost.add_lost("node-a", Lost { first: 2, last: 4, count: 3, cause: LossCause::QueueFull });
    summary.deliver(&lost).unwrap();
    let lines = kept.take();
    assert_eq!((lines.len(), &lines[0]["sluice"]["lost"]["count"]), (1, &json!(3)));
    // A loss that cannot be told fails the batch, and nothing of it is added up before it is tried again.
    *kept.broken.lock().unwrap() = true;
    assert_eq!(summary.deliver(&lost).unwrap_err().delivered, 0);
    *kept.broken.lock().unwrap() = false;
    summary.deliver(&lost).unwrap();
    summary.finish();
    let lines = kept.take();
    assert_eq!(summed(&lines[1]), (vec![0, 2, 0, 0], 2, 4));
}

#[test]
fn pairs_beyond_the_limit_are_added_up_in_one_row() {
    let (mut summary, kept) = summary(LONG);
    for number in 0..MOST_ROWS + 5 {
        let source = Endpoint::Node { name: format!("n{number}").into(), own: false };
        summary.add(&Record { source, ..event(Action::Denied, ConnectionId::next(), (0, 0)) });
    }
    summary.finish();
    let lines = kept.take();
    assert_eq!(lines.len(), MOST_ROWS + 1);
    let others: Vec<_> = lines.iter().filter(|line| line["sluice"]["summed"]["from"] == "other").collect();
    assert_eq!(others.len(), 1);
    assert_eq!(summed(others[0]), (vec![0, 0, 5, 0], 0, 0));
    assert!(others[0]["destination"]["port"].is_null());
}
