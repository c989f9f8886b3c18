//! Flows that were revoked, remembered for their replies.
//!
//! A revoked flow leaves conntrack, which then takes whichever side speaks next for the client. What the server
//! still sends would begin a flow of its own, and the client's packets would be its replies. So a packet that
//! runs against a revoked flow belongs to it, for as long as either side goes on, and a while longer. When the
//! flow is allowed again, it is its client that begins it again; what the server sends no longer prolongs the bar.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use flow::{ClientAddr, Generation, OrigDst, Tuple};

/// How long both sides must be silent before their addresses and ports are free: conntrack's own default for a
/// flow that nobody has answered.
const SILENCE: Duration = Duration::from_secs(30);

/// The memory. Holds at most as many flows as it is told; the oldest makes room.
#[derive(Debug, Default)]
pub(super) struct Barred {
    flows: HashMap<Tuple, Bar>,
    order: VecDeque<(Instant, Tuple)>,
}

#[derive(Debug)]
struct Bar {
    /// The newest snapshot that the flow was judged by.
    by: Generation,
    /// Whether that one allows it.
    allowed: bool,
    until: Instant,
}

/// What a packet is to the flows that were revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// Nothing.
    None,
    /// It runs against one.
    Refused,
    /// It runs against this one, of which it is to be noted whether the snapshot in force allows it.
    Ask(Tuple),
}

impl Barred {
    /// Bars the flow, or goes on barring it, by the decision of the snapshot `by`.
    pub(super) fn bar(&mut self, tuple: Tuple, by: Generation, now: Instant, max: usize) {
        self.forget_old(now);
        let until = now + SILENCE;
        if self.flows.insert(tuple, Bar { by, allowed: false, until }).is_none() {
            while self.flows.len() > max.max(1)
                && let Some((_, oldest)) = self.order.pop_front()
            {
                self.flows.remove(&oldest);
            }
            self.order.push_back((until, tuple));
        }
    }

    /// Notes what the snapshot `by` says of a barred flow.
    pub(super) fn note(&mut self, tuple: &Tuple, by: Generation, allowed: bool, now: Instant) {
        if let Some(bar) = self.flows.get_mut(tuple) {
            let until = if allowed { bar.until } else { now + SILENCE };
            *bar = Bar { by, allowed, until };
        }
    }

    /// The flow was accepted again.
    pub(super) fn lift(&mut self, tuple: &Tuple) {
        if self.flows.remove(tuple).is_some() {
            self.order.retain(|(_, barred)| barred != tuple);
        }
    }

    /// What a packet is, while the snapshot `generation` is in force. A packet of a flow that is not allowed, in
    /// either direction, prolongs the bar.
    pub(super) fn against(&mut self, tuple: &Tuple, generation: Generation, now: Instant) -> Against {
        self.forget_old(now);
        if let Some(bar) = self.flows.get_mut(tuple) {
            bar.until = now + SILENCE;
        }
        // Whoever speaks with itself answers nobody else.
        let original = Some(reversed(tuple)).filter(|original| original != tuple);
        let Some(original) = original else { return Against::None };
        match self.flows.get_mut(&original) {
            None => Against::None,
            Some(bar) if bar.by != generation => Against::Ask(original),
            Some(bar) => {
                if !bar.allowed {
                    bar.until = now + SILENCE;
                }
                Against::Refused
            }
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((due, tuple)) = self.order.front().copied().filter(|(due, _)| *due <= now) {
            self.order.pop_front();
            match self.flows.get(&tuple).map(|bar| bar.until) {
                Some(until) if until > now => self.order.push_back((until.max(due), tuple)),
                _ => drop(self.flows.remove(&tuple)),
            }
        }
    }
}

/// The same addresses and ports, seen from the other end.
fn reversed(tuple: &Tuple) -> Tuple {
    Tuple {
        protocol: tuple.protocol,
        client: ClientAddr(tuple.destination.0),
        destination: OrigDst(tuple.client.0),
    }
}

#[cfg(test)]
mod tests {
    use flow::Protocol;

    use super::*;

    fn tuple(client: &str, destination: &str) -> Tuple {
        let (client, destination) = (client.parse().unwrap(), destination.parse().unwrap());
        Tuple { protocol: Protocol::Udp, client: ClientAddr(client), destination: OrigDst(destination) }
    }

    #[test]
    fn what_runs_against_a_revoked_flow_belongs_to_it_while_either_side_goes_on() {
        for (client, server) in [("10.0.0.1:40000", "10.0.1.1:53"), ("[fd00::1]:40000", "[fd00::2]:53")] {
            let (flow, reply) = (tuple(client, server), tuple(server, client));
            let (mut barred, mut now) = (Barred::default(), Instant::now());
            let second = Duration::from_secs(1);
            assert_eq!(barred.against(&reply, Generation(1), now), Against::None);
            barred.bar(flow, Generation(1), now, 10);
            for packet in [&reply, &flow, &flow, &reply] {
                now += SILENCE - second;
                barred.against(packet, Generation(1), now);
            }
            assert_eq!(barred.against(&reply, Generation(1), now), Against::Refused);
            assert_eq!(barred.against(&reply, Generation(2), now), Against::Ask(flow));
            barred.note(&flow, Generation(2), false, now);
            assert_eq!(barred.against(&reply, Generation(2), now), Against::Refused);
            assert_eq!(barred.against(&tuple(server, "10.0.0.1:40001"), Generation(1), now), Against::None);
            barred.note(&flow, Generation(3), true, now);
            for _ in 0..3 {
                assert_eq!(
                    barred.against(&reply, Generation(3), now),
                    Against::Refused,
                    "its client begins it"
                );
                now += SILENCE / 3;
            }
            assert_eq!(barred.against(&reply, Generation(3), now), Against::None);
            assert!(barred.flows.is_empty() && barred.order.is_empty());
        }
    }

    #[test]
    fn a_flow_that_is_allowed_again_is_barred_no_more_and_the_oldest_makes_room() {
        let (mut barred, now) = (Barred::default(), Instant::now());
        let flow = |port: u16| tuple(&format!("10.0.0.1:{port}"), "10.0.1.1:53");
        (1..=3).for_each(|port| barred.bar(flow(port), Generation(1), now, 2));
        let known = |barred: &mut Barred, port| barred.against(&reversed(&flow(port)), Generation(1), now);
        assert_eq!(known(&mut barred, 1), Against::None);
        assert_eq!(known(&mut barred, 2), Against::Refused);
        barred.lift(&flow(2));
        assert_eq!(known(&mut barred, 2), Against::None);
        assert_eq!(known(&mut barred, 3), Against::Refused);
        assert_eq!(barred.order.len(), 1);
    }
}
