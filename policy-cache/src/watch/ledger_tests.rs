use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::*;
use crate::manifest::read_object;

const POLICY: Kind = Kind::Policy(PolicyKind::NetworkPolicy);

fn sighting(kind: Kind, name: &str, rest: &str) -> Note {
    let json = format!(r#"{{"metadata":{{"name":"{name}","namespace":"n"}}{rest}}}"#);
    let reading = read_object(json.as_bytes(), Some(kind));
    let content = BuildHasherDefault::<DefaultHasher>::default().hash_one(&json);
    Note::Object(Box::new(Sighting { kind, reading, content, origin: Origin::default() }))
}

fn pod(name: &str, ip: &str) -> Note {
    sighting(Kind::Pod, name, &format!(r#","status":{{"podIP":"{ip}"}}"#))
}

/// What each note leads to, in short: `+name` and `-name`.
fn told(ledger: &mut Ledger, notes: Vec<Note>) -> Vec<String> {
    notes
        .into_iter()
        .map(|note| {
            let events = ledger.take(note).events;
            let short = |event: &Event| match event {
                Event::Put(object) => format!("+{}", object.key().name),
                Event::Delete(key) => format!("-{}", key.name),
            };
            events.iter().map(short).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn listed() -> Ledger {
    let mut ledger = Ledger::new([Kind::Pod]);
    let notes =
        vec![Note::Begin(Kind::Pod), pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), Note::End(Kind::Pod)];
    assert_eq!(told(&mut ledger, notes), ["", "+a", "+b", ""]);
    ledger
}

#[test]
fn a_ledger_is_complete_when_every_kind_was_listed_or_is_not_there() {
    let mut ledger = Ledger::new([Kind::Pod, POLICY]);
    assert!(!ledger.is_complete());
    ledger.take(Note::Begin(Kind::Pod));
    ledger.take(Note::End(Kind::Pod));
    assert!(!ledger.is_complete());
    ledger.take(Note::Absent(POLICY));
    assert!(ledger.is_complete());
}

#[test]
fn what_did_not_change_is_no_event() {
    let mut ledger = listed();
    assert_eq!(
        told(&mut ledger, vec![pod("a", "10.0.0.1"), pod("a", "10.0.0.9"), pod("a", "10.0.0.9")]),
        ["", "+a", ""]
    );
}

#[test]
fn a_list_that_replaces_another_is_applied_as_one_and_what_it_lacks_is_gone() {
    let mut ledger = listed();
    let notes = vec![
        Note::Begin(Kind::Pod),
        pod("c", "10.0.0.1"),
        pod("b", "10.0.0.2"),
        Note::End(Kind::Pod),
        Note::Begin(Kind::Pod),
        Note::End(Kind::Pod),
    ];
    let mut events = told(&mut ledger, notes);
    let last = events.pop().unwrap();
    assert_eq!(events, ["", "", "", "-a +c", ""]);
    // In whatever order.
    assert!(["-b -c", "-c -b"].contains(&last.as_str()), "{last}");
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away_and_what_it_told_is_not_lost() {
    let mut ledger = listed();
    let notes = vec![
        Note::Begin(Kind::Pod),
        pod("c", "10.0.0.3"),
        Note::Begin(Kind::Pod),
        pod("c", "10.0.0.3"),
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2"),
        Note::End(Kind::Pod),
    ];
    assert_eq!(told(&mut ledger, notes), ["", "", "+c", "", "", "", ""]);
}

#[test]
fn what_is_deleted_while_it_is_held_stays_deleted() {
    let mut ledger = listed();
    let gone = ObjectKey { kind: Kind::Pod, namespace: "n".to_owned(), name: "c".to_owned() };
    let notes = vec![
        Note::Begin(Kind::Pod),
        pod("c", "10.0.0.3"),
        Note::Deleted(gone),
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2"),
        Note::End(Kind::Pod),
    ];
    assert_eq!(told(&mut ledger, notes), ["", "", "-c", "", "", ""]);
}

#[test]
fn a_kind_that_goes_away_takes_its_objects_with_it() {
    let mut ledger = listed();
    let mut events = told(&mut ledger, vec![Note::Absent(Kind::Pod)]).remove(0);
    if events == "-b -a" {
        events = "-a -b".to_owned();
    }
    assert_eq!(events, "-a -b");
    assert_eq!(ledger.count(Kind::Pod), 0);
}

#[test]
fn a_pod_that_does_not_read_stays_as_it_was_and_is_rejected_until_it_reads() {
    let mut ledger = listed();
    let verdicts = |ledger: &mut Ledger, note| {
        let effects = ledger.take(note);
        let told: Vec<usize> = effects.verdicts.iter().map(|verdict| verdict.problems.len()).collect();
        (effects.events.len(), told)
    };
    assert_eq!(verdicts(&mut ledger, pod("a", "x")), (0, vec![1]));
    assert_eq!(verdicts(&mut ledger, pod("a", "x")), (0, vec![]));
    assert_eq!(ledger.rejected().len(), 1);
    // It is there all the same: a list with it takes nothing away.
    ledger.take(Note::Begin(Kind::Pod));
    ledger.take(pod("a", "x"));
    ledger.take(pod("b", "10.0.0.2"));
    assert_eq!(verdicts(&mut ledger, Note::End(Kind::Pod)), (0, vec![]));
    assert_eq!(verdicts(&mut ledger, pod("a", "y")), (0, vec![1]));
    assert_eq!(verdicts(&mut ledger, pod("a", "10.0.0.7")), (1, vec![0]));
    assert_eq!(ledger.rejected().len(), 0);
}

#[test]
fn a_rejected_policy_is_applied_quarantined_and_forgotten_with_it() {
    let mut ledger = Ledger::new([POLICY]);
    ledger.take(Note::Begin(POLICY));
    let effects = ledger.take(sighting(POLICY, "p", r#","spec":7"#));
    assert_eq!((effects.events.len(), effects.verdicts.len()), (1, 1));
    ledger.take(Note::End(POLICY));
    let key = ledger.rejected().keys().next().unwrap().clone();
    assert_eq!(key.to_string(), "NetworkPolicy/n/p");
    let effects = ledger.take(Note::Deleted(key));
    assert_eq!((effects.events.len(), effects.verdicts.len()), (1, 1));
    assert_eq!(ledger.rejected().len(), 0);
}
