//! The datagram flows that were accepted and live on in the kernel, and those that were refused a moment ago.
//!
//! Turns what the gate, conntrack and new snapshots say of a flow into its records. Decides nothing, and speaks
//! to no kernel. Invariants: one flow, one final record, whatever ends it; a flow is in the table before the
//! snapshot that decides it is replaced, because both happen under the table's lock.

use std::collections::{HashMap, HashSet, VecDeque, hash_map};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use audit::{Action, ConnectionId, Legs, Metrics, Record, Recorder, Timing, Traffic};
use flow::{Decision, EndCause, Generation, Protocol, Service, Tuple};

use self::barred::{Against, Barred};
use crate::registry::Judged;
use crate::sys::tracked::{Counted, Entry};

mod barred;

/// How long the packets of a refused flow belong to its one refusal, and its one record: conntrack's own
/// default for a flow that nobody has answered.
const REFUSED: Duration = Duration::from_secs(30);
/// How long a flow that conntrack does not see lives on without a packet.
const UNSEEN: Duration = Duration::from_secs(30);

/// The table.
#[derive(Debug)]
pub(crate) struct Flows {
    table: Mutex<Table>,
    recorder: Recorder,
    metrics: Metrics,
    max: usize,
    max_per_client: usize,
}

/// What the table holds.
#[derive(Debug, Default)]
pub(crate) struct Table {
    live: HashMap<Tuple, Flow>,
    by_address: HashMap<IpAddr, HashSet<Tuple>>,
    /// How many flows each client has.
    of_client: HashMap<IpAddr, usize>,
    /// Accepted since the last sweep: a snapshot that the sweep never saw may have decided them.
    unswept: Vec<Tuple>,
    refused: HashMap<Tuple, (Generation, Instant)>,
    refused_order: VecDeque<(Instant, Tuple)>,
    /// Revoked: what their servers still send is no flow of its own.
    barred: Barred,
    /// Marked entries of the last look at conntrack that no flow was known for.
    strangers: HashSet<Tuple>,
}

/// An accepted flow.
#[derive(Debug)]
pub(crate) struct Flow {
    id: ConnectionId,
    judged: Judged,
    service: Option<Service>,
    started: Instant,
    accepted: Instant,
    started_at: SystemTime,
    decide: Option<Duration>,
    detail: Option<&'static str>,
    /// What conntrack had counted before this process knew the flow.
    before: (Counted, Counted),
    /// What the client has sent and conntrack has not counted.
    beside: Counted,
    /// What conntrack had counted when it was last asked.
    counted: Option<(Counted, Counted)>,
    revoked: Option<Decision>,
    /// Packets came to the gate after the flow was accepted: they may be the begin of another with its ports.
    contested: bool,
    /// Conntrack did not have it when it was last asked.
    missed: bool,
    /// Conntrack never sees it: when its last packet came, each of which comes to the gate.
    unseen: Option<Instant>,
    /// How many updates it has been due for.
    updates: u32,
}

/// What is known of the flow of a packet that has come to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: decide it.
    Nothing,
    /// It was accepted.
    Accepted,
    /// It was accepted, after this packet had come.
    AcceptedMeanwhile,
    /// It was refused a moment ago, by the snapshot that is still in force, or is being revoked, or answers
    /// one that was.
    Refused,
    /// It answers this flow, which was revoked. To be noted is whether the flow is allowed now.
    Answers(Tuple),
}

/// How a look at conntrack is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// The first of this process: marked entries were accepted by another.
    First,
    /// One of many.
    Later,
}

impl Flows {
    pub(crate) fn new(recorder: Recorder, metrics: Metrics, max: usize, max_per_client: usize) -> Self {
        Self { table: Mutex::default(), recorder, metrics, max, max_per_client }
    }

    /// The table, for as long as a decision and its verdict take.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when no other flow finds room.
    pub(crate) fn is_full(&self, table: &Table) -> bool {
        table.live.len() >= self.max
    }

    /// True when this client finds no room for another flow, though others may.
    pub(crate) fn has_its_share(&self, table: &Table, client: IpAddr) -> bool {
        table.of_client.get(&client).is_some_and(|flows| *flows >= self.max_per_client)
    }

    /// Whether the records of another flow could be kept, if that is asked for.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.recorder.accepts_connections()
    }

    /// Live flows.
    pub(crate) fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Adds an accepted flow. Its first record is written by [`Flows::started`].
    pub(crate) fn accept(&self, table: &mut Table, tuple: Tuple, judged: Judged, since: Instant) {
        self.count_opened(&judged);
        table.unswept.push(tuple);
        table.barred.lift(&tuple);
        table.insert(tuple, Flow::new(judged, since));
    }

    /// Writes the first record, once it is known what was dialled.
    pub(crate) fn started(&self, table: &mut Table, tuple: &Tuple, service: Option<Service>, is_seen: bool) {
        let Some(flow) = table.live.get_mut(tuple) else { return };
        flow.service = service;
        flow.unseen = (!is_seen).then(Instant::now);
        self.recorder.submit(flow.record(tuple, Action::Started, None));
    }

    /// Notes that a flow is revoked, so that its replies begin none: before it is taken out of conntrack.
    pub(crate) fn bar(&self, table: &mut Table, tuple: Tuple, by: Generation) {
        table.barred.bar(tuple, by, Instant::now(), self.max);
    }

    /// Writes the one record of a refused flow, and remembers it for the packets that follow.
    pub(crate) fn refuse(&self, table: &mut Table, refusal: Refusal) {
        let Refusal { tuple, judged, service, cause, since, detail } = refusal;
        table.remember(tuple, judged.decision.generation, since, self.max);
        let mut flow = Flow::new(judged, since);
        flow.service = service;
        flow.detail = detail;
        let action = if cause == EndCause::PolicyDenied { Action::Denied } else { Action::Failed };
        let record = flow.record(&tuple, action, Some(cause));
        self.metrics.count_final(&record);
        self.recorder.submit(record);
    }

    /// Conntrack has let go of an entry. True when another with the same addresses and ports may be there.
    pub(crate) fn ended(&self, entry: &Entry, service: impl FnOnce(&Entry) -> Option<Service>) -> bool {
        let mut table = self.lock();
        let tuple = entry.tuple();
        let Some(mut flow) = table.remove(&tuple) else { return false };
        flow.counted = entry.counted.or(flow.counted);
        flow.service = flow.service.or_else(|| service(entry));
        let contested = flow.contested && flow.revoked.is_none();
        self.end(&tuple, flow, EndCause::FlowTimeout);
        contested
    }

    /// Takes up a marked entry that no flow is known for, as a flow that begins now or began before this
    /// process.
    pub(crate) fn adopt(&self, entry: &Entry, judged: Judged, service: Option<Service>, is_older: bool) {
        let mut table = self.lock();
        let tuple = entry.tuple();
        if table.live.contains_key(&tuple) {
            return;
        }
        let mut flow = Flow::new(judged, Instant::now());
        flow.service = service;
        if is_older {
            flow.before = entry.counted.unwrap_or_default();
            flow.detail = Some("older than this process, which goes on counting from here");
        }
        self.count_opened(&flow.judged);
        self.recorder.submit(flow.record(&tuple, Action::Started, None));
        table.unswept.push(tuple);
        table.insert(tuple, flow);
    }

    /// Writes the only record of a flow that this process never accepted, and that is taken away now. With
    /// `is_counted`, what conntrack has counted so far stands in the records of a former process.
    pub(crate) fn end_stranger(
        &self,
        entry: &Entry,
        judged: Judged,
        service: Option<Service>,
        is_counted: bool,
    ) {
        let mut flow = Flow::new(judged, Instant::now());
        flow.service = service;
        flow.counted = entry.counted;
        flow.detail = Some(if is_counted {
            flow.before = entry.counted.unwrap_or_default();
            "older than this process, which does not allow it; when it began is not known"
        } else {
            "came about without this process, which does not allow it; when it began is not known"
        });
        self.metrics.policy_revocations.inc();
        let record = flow.record(&entry.tuple(), Action::Ended, Some(EndCause::PolicyRevoked));
        self.submit_final(record);
    }

    /// Compares the flows with what conntrack had when it was asked at `begun`. Returns the entries that no
    /// flow is known for, and those of flows that should be gone.
    pub(crate) fn compare(&self, begun: Instant, mut seen: HashMap<Tuple, Entry>, look: Look) -> Compared {
        let mut locked = self.lock();
        let table = &mut *locked;
        let barred = &mut table.barred;
        let every = self.recorder.update_every().filter(|_| self.recorder.accepts_connections());
        let mut compared = Compared::default();
        let mut gone = Vec::new();
        for (tuple, flow) in &mut table.live {
            let entry = seen.remove(tuple);
            if entry.is_some() {
                // It was not found by its addresses, both of which may have been translated.
                flow.unseen = None;
            }
            if let Some(unseen) = flow.unseen {
                if unseen.elapsed() > UNSEEN || flow.revoked.is_some() {
                    gone.push(*tuple);
                }
                continue;
            }
            match entry {
                Some(entry) => {
                    flow.counted = entry.counted.or(flow.counted);
                    flow.missed = false;
                    if let Some(decision) = &flow.revoked {
                        // Its replies pass as long as the entry is there.
                        barred.bar(*tuple, decision.generation, Instant::now(), self.max);
                        compared.revoked.push(entry);
                    } else if every.is_some_and(|every| flow.is_update_due(every)) {
                        self.recorder.submit(flow.record(tuple, Action::Updated, None));
                    }
                }
                // Accepted after the question was put.
                None if flow.started >= begun => {}
                // The table may have grown while it was read, and an entry been passed over.
                None if !flow.missed => flow.missed = true,
                None => gone.push(*tuple),
            }
        }
        for tuple in gone {
            if let Some(flow) = table.remove(&tuple) {
                self.end(&tuple, flow, EndCause::FlowTimeout);
            }
        }
        let before = std::mem::take(&mut table.strangers);
        for (tuple, entry) in seen {
            if look == Look::First || before.contains(&tuple) {
                compared.strangers.push(entry);
            } else {
                table.strangers.insert(tuple);
            }
        }
        compared
    }

    /// Marks the flows that `judge` no longer allows, of those with an end among `addresses` (all of them with
    /// `None`) and those accepted since the last sweep. Returns their tuples.
    pub(crate) fn sweep<'a>(
        &self,
        addresses: Option<impl IntoIterator<Item = &'a IpAddr>>,
        mut judge: impl FnMut(&Tuple, &Judged) -> Option<Decision>,
    ) -> HashSet<Tuple> {
        let mut table = self.lock();
        let unswept = std::mem::take(&mut table.unswept);
        let tuples: HashSet<Tuple> = match addresses {
            None => table.live.keys().copied().collect(),
            Some(addresses) => addresses
                .into_iter()
                .filter_map(|address| table.by_address.get(address))
                .flatten()
                .copied()
                .chain(unswept)
                .collect(),
        };
        let mut revoked = HashSet::new();
        for tuple in tuples {
            let Some(flow) = table.live.get_mut(&tuple).filter(|flow| flow.revoked.is_none()) else {
                continue;
            };
            if let Some(decision) = judge(&tuple, &flow.judged) {
                let by = decision.generation;
                flow.revoked = Some(decision);
                // Whether conntrack tells of the end or not, the next look finds it gone.
                flow.missed = true;
                self.metrics.policy_revocations.inc();
                table.barred.bar(tuple, by, Instant::now(), self.max);
                revoked.insert(tuple);
            }
        }
        revoked
    }

    /// The addresses at either end of flows.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.lock().by_address.keys().copied().collect()
    }

    /// Writes the final record of every flow: they live on in the kernel, and nobody counts them here.
    pub(crate) fn end_all(&self, cause: EndCause) {
        let mut table = self.lock();
        let tuples: Vec<Tuple> = table.live.keys().copied().collect();
        for tuple in tuples {
            if let Some(flow) = table.remove(&tuple) {
                self.end(&tuple, flow, cause);
            }
        }
    }

    fn count_opened(&self, judged: &Judged) {
        self.metrics.count_opened(&judged.source, &judged.destination);
        self.metrics.connections_live.inc();
    }

    fn end(&self, tuple: &Tuple, flow: Flow, cause: EndCause) {
        let cause = if flow.revoked.is_some() { EndCause::PolicyRevoked } else { cause };
        self.metrics.connections_live.dec();
        self.submit_final(flow.record(tuple, Action::Ended, Some(cause)));
    }

    fn submit_final(&self, record: Record) {
        self.metrics.count_final(&record);
        let ends = (&record.source, &record.destination);
        self.metrics.count_bytes(ends, record.traffic.client_bytes, record.traffic.server_bytes);
        self.recorder.submit(record);
    }
}

/// A flow that may not pass.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) tuple: Tuple,
    pub(crate) judged: Judged,
    pub(crate) service: Option<Service>,
    pub(crate) cause: EndCause,
    pub(crate) since: Instant,
    pub(crate) detail: Option<&'static str>,
}

/// What a look at conntrack leaves to do.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Marked entries without a flow.
    pub(crate) strangers: Vec<Entry>,
    /// Entries of flows that were revoked, and are still there.
    pub(crate) revoked: Vec<Entry>,
}

impl Table {
    /// What is known of the flow of a packet that came at `since`, while the snapshot `generation` is in force.
    pub(crate) fn known(
        &mut self,
        tuple: &Tuple,
        generation: Generation,
        since: Instant,
        now: Instant,
    ) -> Known {
        match self.barred.against(tuple, generation, now) {
            Against::Refused => return Known::Refused,
            Against::Ask(revoked) => return Known::Answers(revoked),
            Against::None => {}
        }
        if let Some(flow) = self.live.get_mut(tuple) {
            if flow.revoked.is_some() {
                return Known::Refused;
            }
            if since < flow.accepted {
                return Known::AcceptedMeanwhile;
            }
            flow.contested = true;
            if let Some(last) = &mut flow.unseen {
                *last = now;
            }
            return Known::Accepted;
        }
        while self.refused_order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest_refusal();
        }
        match self.refused.get(tuple) {
            Some((by, _)) if *by == generation => Known::Refused,
            _ => Known::Nothing,
        }
    }

    /// True for a live flow that conntrack does not see.
    pub(crate) fn is_unseen(&self, tuple: &Tuple) -> bool {
        self.live.get(tuple).is_some_and(|flow| flow.unseen.is_some())
    }

    /// Adds a packet of `bytes` from the IP header on to what a flow's client has sent: conntrack has not counted it.
    pub(crate) fn count_beside(&mut self, tuple: &Tuple, bytes: u64) {
        if let Some(flow) = self.live.get_mut(tuple) {
            flow.beside = flow.beside.and(Counted { packets: 1, bytes });
        }
    }

    /// Notes whether the snapshot `by` allows a flow that was revoked.
    pub(crate) fn note_revoked(&mut self, tuple: &Tuple, by: Generation, allowed: bool, now: Instant) {
        self.barred.note(tuple, by, allowed, now);
    }

    fn remember(&mut self, tuple: Tuple, generation: Generation, now: Instant, max: usize) {
        if self.refused_order.len() >= max {
            self.forget_oldest_refusal();
        }
        let until = now + REFUSED;
        self.refused.insert(tuple, (generation, until));
        self.refused_order.push_back((until, tuple));
    }

    fn forget_oldest_refusal(&mut self) {
        if let Some((until, tuple)) = self.refused_order.pop_front()
            && self.refused.get(&tuple).is_some_and(|(_, of_latest)| *of_latest == until)
        {
            self.refused.remove(&tuple);
        }
    }

    fn insert(&mut self, tuple: Tuple, flow: Flow) {
        for address in ends(&tuple) {
            self.by_address.entry(address).or_default().insert(tuple);
        }
        if self.live.insert(tuple, flow).is_none() {
            *self.of_client.entry(tuple.client.0.ip()).or_default() += 1;
        }
    }

    fn remove(&mut self, tuple: &Tuple) -> Option<Flow> {
        for address in ends(tuple) {
            if let Some(of_address) = self.by_address.get_mut(&address) {
                of_address.remove(tuple);
                if of_address.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        let flow = self.live.remove(tuple)?;
        if let hash_map::Entry::Occupied(mut flows) = self.of_client.entry(tuple.client.0.ip()) {
            *flows.get_mut() -= 1;
            if *flows.get() == 0 {
                flows.remove();
            }
        }
        Some(flow)
    }
}

impl Flow {
    fn new(judged: Judged, since: Instant) -> Self {
        Self {
            id: ConnectionId::next(),
            judged,
            service: None,
            started: since,
            accepted: Instant::now(),
            started_at: SystemTime::now(),
            decide: Some(since.elapsed()),
            detail: None,
            before: Default::default(),
            beside: Default::default(),
            counted: None,
            revoked: None,
            contested: false,
            missed: false,
            unseen: None,
            updates: 0,
        }
    }

    /// True once for each `every` that the flow has lived.
    fn is_update_due(&mut self, every: Duration) -> bool {
        let due =
            u32::try_from(self.started.elapsed().as_nanos() / every.as_nanos().max(1)).unwrap_or(u32::MAX);
        due > std::mem::replace(&mut self.updates, due)
    }

    fn record(&self, tuple: &Tuple, action: Action, cause: Option<EndCause>) -> Record {
        let lived = self.started.elapsed();
        Record {
            action,
            id: self.id,
            tuple: *tuple,
            source: self.judged.source.clone(),
            destination: self.judged.destination.clone(),
            service: self.service.clone(),
            decision: self.judged.decision.clone(),
            cause,
            revoked_by: self.revoked.clone().filter(|_| cause == Some(EndCause::PolicyRevoked)),
            start: self.started_at,
            end: cause.map(|_| self.started_at + lived),
            duration: (action != Action::Started).then_some(lived),
            traffic: self.traffic(tuple),
            upstream_source: None,
            hairpin: tuple.is_hairpin(),
            timing: Timing { decide: self.decide, connect: None },
            legs: Legs::default(),
            tls: None,
            detail: self.detail(tuple, action).filter(|_| action != Action::Updated).map(str::to_owned),
        }
    }

    fn detail(&self, tuple: &Tuple, action: Action) -> Option<&'static str> {
        let by_kernel = (tuple.protocol == Protocol::Tcp && action == Action::Ended)
            .then_some("carried by the kernel, whose count of bytes has TCP's options in it");
        self.detail.or(by_kernel)
    }

    fn traffic(&self, tuple: &Tuple) -> Traffic {
        let Some((sent, received)) = self.counted else {
            return Traffic { uncounted: true, ..Traffic::default() };
        };
        let (sent, received) = (since(sent, self.before.0).and(self.beside), since(received, self.before.1));
        Traffic {
            client_bytes: payload(sent, tuple),
            server_bytes: payload(received, tuple),
            client_packets: Some(sent.packets),
            server_packets: Some(received.packets),
            uncounted: false,
        }
    }
}

fn since(now: Counted, before: Counted) -> Counted {
    Counted {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

/// What the ends sent: conntrack counts from the IP header on. Options and extension headers, which hardly any
/// packet has, stay in.
fn payload(counted: Counted, tuple: &Tuple) -> u64 {
    let ip = if tuple.client.0.is_ipv4() { 20 } else { 40 };
    let transport = match tuple.protocol {
        Protocol::Udp => 8,
        Protocol::Sctp => 12,
        Protocol::Tcp => 20,
    };
    counted.bytes.saturating_sub(counted.packets.saturating_mul(ip + transport))
}

/// The addresses of both ends; one of them when they are the same.
fn ends(tuple: &Tuple) -> impl Iterator<Item = IpAddr> + use<> {
    let (client, destination) = (tuple.client.0.ip(), tuple.destination.0.ip());
    std::iter::once(client).chain((destination != client).then_some(destination))
}

#[cfg(test)]
mod tests;
