//! The bounded table of connection attempts whose SYN is held, or was answered with silence.
//!
//! Turns an arriving SYN into what to do with it. Pure: time is passed in. Invariants: at most `max_total`
//! attempts are held, at most `max_per_client` of one address, so that a flood from one pod leaves room for
//! others; one attempt is started once, however often its SYN is sent again.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flow::Tuple;
use foldhash::fast::RandomState;

use crate::packet::Syn;

/// How long an attempt that was answered with silence is remembered: a little over the 127 s during which a
/// Linux client sends its SYN again (`tcp_syn_retries=6`).
const SILENCE: Duration = Duration::from_secs(135);

/// What to do with a SYN that has just arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A new attempt: decide it. It now counts as held.
    New,
    /// The SYN of a held attempt, sent again: drop this copy.
    Duplicate,
    /// The SYN of an attempt whose first copy was released: the kernel answers it again.
    InHandshake,
    /// The SYN of an attempt that was answered with silence: stay silent.
    Silenced,
    /// A new attempt with the ports of an older one, whose place it takes: its client has given the older up
    /// (`was_released` is false), or has ended it a moment ago.
    Successor {
        /// Whether the older one's SYN was released.
        was_released: bool,
    },
    /// This client holds as many attempts as one client may.
    ClientLimit,
    /// All clients together hold as many attempts as there may be.
    TotalLimit,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Pending {
    max_total: usize,
    max_per_client: usize,
    held: HashMap<Tuple, Attempt, RandomState>,
    per_client: HashMap<IpAddr, usize, RandomState>,
    silenced: HashMap<Tuple, (u32, Instant), RandomState>,
    silenced_order: VecDeque<(Instant, Tuple)>,
}

#[derive(Debug)]
struct Attempt {
    isn: u32,
    first_seen: Instant,
    last_seen: Instant,
    released: bool,
}

impl Pending {
    pub(crate) fn new(max_total: usize, max_per_client: usize) -> Self {
        Self {
            max_total,
            max_per_client,
            held: HashMap::default(),
            per_client: HashMap::default(),
            silenced: HashMap::default(),
            silenced_order: VecDeque::new(),
        }
    }

    /// Attempts held now.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Judges an arriving SYN. After `New` the attempt is held until [`Pending::settle`].
    pub(crate) fn arrive(&mut self, syn: &Syn, now: Instant) -> Arrival {
        self.forget_old_silences(now);
        if let Some(attempt) = self.held.get_mut(&syn.tuple) {
            if attempt.isn != syn.isn {
                let was_released = attempt.released;
                *attempt = Attempt { isn: syn.isn, first_seen: now, last_seen: now, released: false };
                return Arrival::Successor { was_released };
            }
            attempt.last_seen = now;
            return if attempt.released { Arrival::InHandshake } else { Arrival::Duplicate };
        }
        if self.silenced.get(&syn.tuple).is_some_and(|(isn, _)| *isn == syn.isn) {
            return Arrival::Silenced;
        }
        if self.held.len() >= self.max_total {
            return Arrival::TotalLimit;
        }
        let of_client = self.per_client.entry(syn.tuple.client.0.ip()).or_default();
        if *of_client >= self.max_per_client {
            return Arrival::ClientLimit;
        }
        *of_client += 1;
        self.held
            .insert(syn.tuple, Attempt { isn: syn.isn, first_seen: now, last_seen: now, released: false });
        Arrival::New
    }

    /// The held SYN was released: copies of it now belong to the kernel's handshake.
    pub(crate) fn release(&mut self, syn: &Syn) {
        if let Some(attempt) = self.held.get_mut(&syn.tuple)
            && attempt.isn == syn.isn
        {
            attempt.released = true;
        }
    }

    /// The attempt is over. With `silent` its client was told nothing and will send its SYN again: those
    /// copies belong to this attempt and are no new ones. An attempt whose place a successor took has none to
    /// leave.
    pub(crate) fn settle(&mut self, syn: &Syn, silent: bool, now: Instant) {
        let tuple = &syn.tuple;
        if self.held.get(tuple).is_none_or(|attempt| attempt.isn != syn.isn) {
            return;
        }
        self.held.remove(tuple);
        let client = tuple.client.0.ip();
        if let Some(count) = self.per_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&client);
            }
        }
        if silent {
            if self.silenced_order.len() >= self.max_total {
                self.forget_oldest_silence();
            }
            self.silenced.insert(*tuple, (syn.isn, now + SILENCE));
            self.silenced_order.push_back((now + SILENCE, *tuple));
        }
    }

    /// The held attempts whose clients have stopped sending their SYN: their `connect()` was given up.
    ///
    /// A Linux client sends again after at most twice the time since its first SYN, plus a second; an attempt
    /// silent for twice as long again has nobody waiting.
    pub(crate) fn abandoned(&self, now: Instant) -> Vec<Tuple> {
        let given_up = |attempt: &Attempt| {
            let sending = attempt.last_seen - attempt.first_seen + Duration::from_secs(1);
            !attempt.released && now - attempt.last_seen > 2 * sending + Duration::from_secs(1)
        };
        self.held.iter().filter(|(_, attempt)| given_up(attempt)).map(|(tuple, _)| *tuple).collect()
    }

    fn forget_old_silences(&mut self, now: Instant) {
        while self.silenced_order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest_silence();
        }
    }

    fn forget_oldest_silence(&mut self) {
        if let Some((until, tuple)) = self.silenced_order.pop_front()
            && self.silenced.get(&tuple).is_some_and(|(_, of_latest)| *of_latest == until)
        {
            self.silenced.remove(&tuple);
        }
    }
}

#[cfg(test)]
mod tests;
