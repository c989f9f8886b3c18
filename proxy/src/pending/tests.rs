use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn syn(client: u8, port: u16, isn: u32) -> Syn {
    let client = std::net::SocketAddr::from(([10, 0, 0, client], port));
    Syn { tuple: Tuple::tcp(client, "10.0.1.1:80".parse().unwrap()), isn }
}

#[test]
fn one_attempt_starts_once_however_often_its_syn_arrives() {
    let (mut table, now) = (Pending::new(10, 10), Instant::now());
    let attempt = syn(1, 40_000, 7);
    assert_eq!(table.arrive(&attempt, now), Arrival::New);
    assert_eq!(table.arrive(&attempt, now), Arrival::Duplicate);
    table.release(&attempt);
    assert_eq!(table.arrive(&attempt, now), Arrival::InHandshake);
    table.settle(&attempt, false, now);
    assert_eq!(table.arrive(&attempt, now), Arrival::New);
}

#[test]
fn an_attempt_answered_with_silence_stays_one_attempt_until_its_client_stops_sending() {
    let (mut table, now) = (Pending::new(10, 10), Instant::now());
    let attempt = syn(1, 40_000, 7);
    table.arrive(&attempt, now);
    table.settle(&attempt, true, now);
    assert_eq!(table.arrive(&attempt, now + Duration::from_secs(127)), Arrival::Silenced);
    let another = syn(1, 40_000, 8);
    assert_eq!(table.arrive(&another, now), Arrival::New, "another sequence number is another attempt");
    table.settle(&another, false, now);
    assert_eq!(table.arrive(&attempt, now + SILENCE), Arrival::New);
}

#[test]
fn a_successor_takes_the_place_of_an_older_attempt_which_then_has_none_to_leave() {
    let (mut table, now) = (Pending::new(10, 1), Instant::now());
    let (older, newer) = (syn(1, 40_000, 7), syn(1, 40_000, 8));
    table.arrive(&older, now);
    assert_eq!(table.arrive(&newer, now), Arrival::Successor { was_released: false });
    table.settle(&older, true, now);
    table.release(&older);
    assert_eq!(table.arrive(&newer, now), Arrival::Duplicate);
    table.release(&newer);
    assert_eq!(table.arrive(&syn(1, 40_000, 9), now), Arrival::Successor { was_released: true });
    assert_eq!(table.len(), 1);
    table.settle(&syn(1, 40_000, 9), false, now);
    assert_eq!(table.len(), 0);
    assert_eq!(table.arrive(&syn(1, 2, 0), now), Arrival::New, "the client has its one place again");
}

#[test]
fn a_flood_from_one_client_leaves_room_for_others() {
    let (mut table, now) = (Pending::new(100, 10), Instant::now());
    let flood: Vec<_> = (0..50).map(|port| table.arrive(&syn(1, port, 0), now)).collect();
    assert_eq!(flood.iter().filter(|arrival| **arrival == Arrival::New).count(), 10);
    assert!(flood[10..].iter().all(|arrival| *arrival == Arrival::ClientLimit));
    assert_eq!(table.arrive(&syn(2, 1, 0), now), Arrival::New);
}

#[test]
fn attempts_whose_clients_stopped_sending_are_abandoned_and_no_others() {
    let (mut table, start) = (Pending::new(10, 10), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let (patient, hasty) = (syn(1, 1, 0), syn(1, 2, 0));
    table.arrive(&hasty, at(0));
    for second in [0, 1, 3, 7, 15, 31, 63] {
        table.arrive(&patient, at(second));
        assert!(!table.abandoned(at(second)).contains(&patient.tuple), "after {second} s");
    }
    assert_eq!(table.abandoned(at(4)), [hasty.tuple], "one second plus the doubled pause has passed");
    assert!(!table.abandoned(at(127)).contains(&patient.tuple));
    assert!(table.abandoned(at(200)).contains(&patient.tuple));
}

#[derive(Debug, Clone)]
enum Step {
    Arrive { client: u8, port: u16, isn: u32 },
    Release { client: u8, port: u16, isn: u32 },
    Settle { client: u8, port: u16, isn: u32, silent: bool },
    Wait { seconds: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..3, 0u16..4, 0u32..2).prop_map(|(client, port, isn)| Step::Arrive { client, port, isn }),
        1 => (0u8..3, 0u16..4, 0u32..2).prop_map(|(client, port, isn)| Step::Release { client, port, isn }),
        3 => (0u8..3, 0u16..4, 0u32..2, any::<bool>())
            .prop_map(|(client, port, isn, silent)| Step::Settle { client, port, isn, silent }),
        1 => (0u64..100).prop_map(|seconds| Step::Wait { seconds }),
    ];
    proptest::collection::vec(step, 0..80)
}

/// The rules again, as lists that are searched from end to end.
#[derive(Default)]
struct Model {
    held: BTreeMap<(u8, u16), (u32, bool)>,
    silenced: Vec<((u8, u16), u32, Instant)>,
}

impl Model {
    fn arrive(&self, key: (u8, u16), isn: u32, now: Instant) -> Arrival {
        match self.held.get(&key) {
            Some((held, was_released)) if *held != isn => {
                return Arrival::Successor { was_released: *was_released };
            }
            Some((_, true)) => return Arrival::InHandshake,
            Some((_, false)) => return Arrival::Duplicate,
            None => {}
        }
        let last = self.silenced.iter().rev().find(|(silenced, ..)| *silenced == key);
        if last.is_some_and(|(_, silenced, until)| *silenced == isn && *until > now) {
            return Arrival::Silenced;
        }
        if self.held.len() >= 5 {
            return Arrival::TotalLimit;
        }
        if self.held.keys().filter(|(client, _)| *client == key.0).count() >= 2 {
            return Arrival::ClientLimit;
        }
        Arrival::New
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_model(steps in steps()) {
        // Silences are remembered up to the same bound as held attempts; the model forgets the oldest too.
        let (mut table, mut model, mut now) = (Pending::new(5, 2), Model::default(), Instant::now());
        for step in steps {
            match step {
                Step::Arrive { client, port, isn } => {
                    let expected = model.arrive((client, port), isn, now);
                    prop_assert_eq!(table.arrive(&syn(client, port, isn), now), expected);
                    if matches!(expected, Arrival::New | Arrival::Successor { .. }) {
                        model.held.insert((client, port), (isn, false));
                    }
                }
                Step::Release { client, port, isn } => {
                    table.release(&syn(client, port, isn));
                    if let Some(held) = model.held.get_mut(&(client, port)).filter(|held| held.0 == isn) {
                        held.1 = true;
                    }
                }
                Step::Settle { client, port, isn, silent } => {
                    table.settle(&syn(client, port, isn), silent, now);
                    let was_held = model.held.get(&(client, port)).is_some_and(|held| held.0 == isn);
                    if was_held {
                        model.held.remove(&(client, port));
                    }
                    if was_held && silent {
                        let silence = ((client, port), isn, now + SILENCE);
                        model.silenced.retain(|(_, _, until)| *until > now);
                        model.silenced.push(silence);
                        prop_assume!(model.silenced.len() <= 5);
                    }
                }
                Step::Wait { seconds } => now += Duration::from_secs(seconds),
            }
            prop_assert_eq!(table.len(), model.held.len());
        }
    }
}
