//! The one thread that owns the cluster: takes notes, applies what follows from them, and publishes.
//!
//! Whatever waits is taken together, and published once. Nothing is published until every kind was listed to
//! its end, for a part of a cluster would decide wrongly.

use std::net::IpAddr;

use flow::PolicyKind;
use tokio::sync::mpsc;

use super::ledger::{Ledger, Note, Verdict};
use super::report::{self, Report};
use super::resource::RESOURCES;
use super::status::Board;
use crate::cluster::Cluster;
use crate::objects::Kind;
use crate::options::Options;
use crate::store::SnapshotStore;

/// Notes that are taken together at most.
const MAX_BATCH: usize = 4096;
/// Notes that may wait.
pub(crate) const QUEUE: usize = 4096;

/// What reaches the owner besides notes.
#[derive(Debug)]
pub(crate) enum Order {
    OwnAddresses(Vec<IpAddr>),
}

/// Where the owner listens.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) notes: mpsc::Receiver<Note>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
}

/// The cluster and all that goes with it.
#[derive(Debug)]
pub(crate) struct Owner {
    cluster: Cluster,
    options: Options,
    ledger: Ledger,
    store: SnapshotStore,
    board: Board,
    reports: Option<mpsc::UnboundedSender<Report>>,
    /// Verdicts that wait until the nodes are known, for they share the reporting.
    unreported: Vec<Verdict>,
    /// The cluster is other than what is published.
    changed: bool,
}

impl Owner {
    pub(crate) fn new(
        options: Options,
        store: SnapshotStore,
        board: Board,
        reports: Option<mpsc::UnboundedSender<Report>>,
    ) -> Self {
        let ledger = Ledger::new(RESOURCES.iter().map(|resource| resource.kind));
        let cluster = Cluster::new(options.clone());
        Self { cluster, options, ledger, store, board, reports, unreported: Vec::new(), changed: true }
    }

    /// Works until nobody can tell it anything any more.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            tokio::select! {
                biased;
                order = inbox.orders.recv() => match order {
                    Some(Order::OwnAddresses(addresses)) => self.own_addresses(addresses),
                    None => return,
                },
                taken = inbox.notes.recv_many(&mut batch, MAX_BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for note in batch.drain(..) {
                        self.note(note);
                    }
                }
            }
            self.publish();
        }
    }

    fn own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.options.own_addresses = addresses;
        self.changed |= self.cluster.set_options(self.options.clone());
    }

    fn note(&mut self, note: Note) {
        let listed = match &note {
            Note::End(kind) | Note::Absent(kind) => Some(*kind),
            _ => None,
        };
        if let Note::Absent(kind) = &note
            && self.ledger.count(*kind) > 0
        {
            let objects = self.ledger.count(*kind);
            tracing::warn!(
                kind = kind.as_str(),
                objects,
                "the API no longer has this kind: its objects are gone"
            );
        }
        let effects = self.ledger.take(note);
        for event in effects.events {
            self.changed |= self.cluster.apply(event);
        }
        if !effects.verdicts.is_empty() {
            self.report(effects.verdicts);
        }
        if let Some(kind) = listed {
            for (number, resource) in RESOURCES.iter().enumerate() {
                if resource.kind == kind {
                    self.board.row(number, |row| row.listed = true);
                }
            }
        }
    }

    fn publish(&mut self) {
        for (number, resource) in RESOURCES.iter().enumerate() {
            let objects = self.ledger.count(resource.kind);
            self.board.row(number, |row| row.objects = objects);
        }
        if !self.unreported.is_empty() && self.ledger.is_complete() {
            self.hand_on();
        }
        if self.changed && self.ledger.is_complete() {
            self.changed = false;
            self.store.publish(self.cluster.snapshot());
            self.board.set_complete();
        }
    }

    /// Tells of what changed among the rejected objects.
    fn report(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            self.board.judged(&verdict.key, &verdict.problems);
            for problem in verdict.problems.iter() {
                tracing::warn!(
                    object = %verdict.key,
                    %problem,
                    "object rejected: a policy allows no more than can be read, anything else stays as it was"
                );
            }
            if self.reports.is_some() && matches!(verdict.key.kind, Kind::Policy(_)) {
                self.unreported.push(verdict);
            }
        }
    }

    /// Hands on what this node is to tell the API server.
    fn hand_on(&mut self) {
        let (Some(reports), Some(own)) = (&self.reports, &self.options.node) else { return };
        for verdict in self.unreported.drain(..) {
            let is_gone = verdict.problems.is_empty() && verdict.origin.uid.is_empty();
            let good = verdict.problems.is_empty()
                && verdict.key.kind != Kind::Policy(PolicyKind::ClusterNetworkPolicy);
            if is_gone || good {
                continue;
            }
            if let Some(turn) = report::turn(&verdict.key, own, self.ledger.names(Kind::Node)) {
                // Reports are a courtesy: the cluster does not wait for them.
                let _ = reports.send(Report { verdict, turn });
            }
        }
    }
}
