//! A question in the numbers of one file: which actions, causes and ends meet it.

use std::net::IpAddr;

use rusqlite::Connection;

use super::hints::Sought;
use super::hour::Span;
use super::query::{IpBlock, StoreQuery};
use super::rows::{Brief, Known};
use crate::line::LOST_ACTION;

/// Numbers of ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(Vec<u64>);

impl Set {
    pub(super) fn add(&mut self, id: u32) {
        let place = (id / 64) as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] |= 1 << (id % 64);
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.0.get((id / 64) as usize).is_some_and(|bits| bits >> (id % 64) & 1 == 1)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    fn has_one_of(&self, row: &Brief<'_>) -> bool {
        self.has(row.source) || self.has(row.destination)
    }
}

/// What a row has to meet. Bits are those of words.
#[derive(Debug)]
pub(super) struct Conditions {
    since: i64,
    until: i64,
    /// All bits where any action will do.
    actions: i64,
    /// `None` where any cause will do, and none.
    causes: Option<i64>,
    /// Actions and causes of which there must be one; `None` where it does not matter who refused.
    denied: Option<i64>,
    /// The action that meets everything but the time; 0 is none.
    losses: i64,
    pods: Option<Set>,
    namespaces: Option<Set>,
    ips: Option<(Set, Vec<IpBlock>)>,
    /// Ends with the labels and workloads that are asked for.
    hinted: Option<Set>,
    sought: Sought,
}

impl Conditions {
    /// `None` when no row of the file can meet them.
    pub(super) fn of(query: &StoreQuery, known: &Known, file: &Connection) -> rusqlite::Result<Option<Self>> {
        let bits = |words: &[String]| words.iter().map(|word| known.bit(word)).fold(0, |all, bit| all | bit);
        let mut conditions = Self {
            since: query.since,
            until: query.until,
            actions: if query.actions.is_empty() { -1 } else { bits(&query.actions) },
            causes: (!query.causes.is_empty()).then(|| bits(&query.causes)),
            denied: query.denied.then(|| known.bit("connection-denied") | known.bit("policy-revoked")),
            losses: if query.losses { known.bit(LOST_ACTION) } else { 0 },
            pods: (!query.pods.is_empty()).then(Set::default),
            namespaces: (!query.namespaces.is_empty()).then(Set::default),
            ips: (!query.ips.is_empty()).then(|| (Set::default(), query.ips.clone())),
            hinted: query.hints.ask_for_ends().then(Set::default),
            sought: Sought::of(&query.hints, known, file)?,
        };
        conditions.find_ends(query, file)?;
        let has_words =
            conditions.actions != 0 && conditions.causes != Some(0) && conditions.denied != Some(0);
        let nobody = |set: &Option<Set>| set.as_ref().is_some_and(Set::is_empty);
        let nobody_at_all =
            [&conditions.pods, &conditions.namespaces, &conditions.hinted].into_iter().any(nobody);
        let can_be_met = has_words && !nobody_at_all;
        Ok((can_be_met || conditions.losses != 0).then_some(conditions))
    }

    fn find_ends(&mut self, query: &StoreQuery, file: &Connection) -> rusqlite::Result<()> {
        if !self.ask_for_ends() {
            return Ok(());
        }
        let mut statement = file.prepare("SELECT id, ip, namespace, pod, k8s FROM ends")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: u32 = row.get(0)?;
            let (namespace, pod) = (row.get_ref(2)?.as_str_or_null()?, row.get_ref(3)?.as_str_or_null()?);
            if let (Some(pods), Some(namespace), Some(pod)) = (&mut self.pods, namespace, pod)
                && query.pods.iter().any(|named| named.is(namespace, pod))
            {
                pods.add(id);
            }
            if let (Some(namespaces), Some(namespace)) = (&mut self.namespaces, namespace)
                && query.namespaces.iter().any(|named| named == namespace)
            {
                namespaces.add(id);
            }
            if let Some((ips, blocks)) = &mut self.ips
                && is_in(blocks, row.get_ref(1)?.as_str()?)
            {
                ips.add(id);
            }
            if let Some(hinted) = &mut self.hinted
                && query.hints.may_be_of(row.get_ref(4)?.as_str()?)
            {
                hinted.add(id);
            }
        }
        Ok(())
    }

    pub(super) fn ask_for_ends(&self) -> bool {
        self.pods.is_some() || self.namespaces.is_some() || self.ips.is_some() || self.hinted.is_some()
    }

    /// Whether a row with this end may meet them. Asked where ends are asked for.
    pub(super) fn may_be_of(&self, end: u32) -> bool {
        let of_pods = [&self.pods, &self.namespaces, &self.hinted];
        if end == 0 && (self.losses != 0 || of_pods.iter().all(|ends| ends.is_none())) {
            return true;
        }
        let ips = self.ips.as_ref().map(|(ends, _)| ends);
        [self.pods.as_ref(), self.namespaces.as_ref(), self.hinted.as_ref(), ips]
            .into_iter()
            .flatten()
            .next()
            .is_none_or(|ends| ends.has(end))
    }

    /// Whether a row of a span may meet them.
    pub(super) fn may_be_in(&self, span: &Span) -> bool {
        let has = |bits: i64| bits & span.words != 0;
        span.newest >= self.since
            && span.oldest <= self.until
            && (has(self.losses)
                || has(self.actions)
                    && self.causes.is_none_or(has)
                    && self.denied.is_none_or(has)
                    && self.sought.may_be_in(span))
    }

    pub(super) fn are_met(&self, row: &Brief<'_>) -> bool {
        if row.time < self.since || row.time > self.until {
            return false;
        }
        let bit = |word: i64| if (0..=62).contains(&word) { 1_i64 << word } else { 0 };
        let (action, cause) = (bit(row.action), row.cause.map_or(0, bit));
        if action & self.losses != 0 {
            return true;
        }
        (self.actions == -1 || action & self.actions != 0)
            && self.causes.is_none_or(|causes| cause & causes != 0)
            && self.denied.is_none_or(|denied| (action | cause) & denied != 0)
            && self.pods.as_ref().is_none_or(|ends| ends.has_one_of(row))
            && self.namespaces.as_ref().is_none_or(|ends| ends.has_one_of(row))
            && self.hinted.as_ref().is_none_or(|ends| ends.has_one_of(row))
            && self.ips.as_ref().is_none_or(|(ends, blocks)| {
                let own = |ip: Option<&str>| ip.is_some_and(|ip| is_in(blocks, ip));
                ends.has_one_of(row) || own(row.source_ip) || own(row.destination_ip)
            })
    }
}

fn is_in(blocks: &[IpBlock], ip: &str) -> bool {
    ip.parse::<IpAddr>().is_ok_and(|ip| blocks.iter().any(|block| block.contains(ip)))
}
