//! What is measured, and in which order: every part of a round for every subject before the next part.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use crate::report::Table;
use crate::subject::Subject;

/// System calls per connection, by subject and name.
pub(crate) type Calls = BTreeMap<String, BTreeMap<String, f64>>;

const IDLE: usize = 4_000;
const DENIED_PER_SECOND: f64 = 10_000.0;

/// One kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Streams: 1 and 8
    Bulk,
    /// Round trips of 64 B to 1 MiB on 1 and 64 connections
    Exchange,
    /// Short connections by 1, 16 and 256 clients
    Connections,
    /// Round trips beside a stream
    Beside,
    /// Memory of 4,000 idle connections
    Idle,
    /// System calls per connection
    Calls,
    /// Refusals
    Denied,
}

/// How long and how often.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) span: Duration,
    /// Empty means all.
    pub(crate) parts: Vec<Part>,
    pub(crate) quick: bool,
}

impl Plan {
    /// Measures everything, the machine's drift spread over all subjects.
    pub(crate) fn run(&self, subjects: &[Subject], table: &mut Table) -> anyhow::Result<Calls> {
        // Memory first: later it would be hidden in what the load has left allocated.
        if self.has(Part::Idle) {
            for subject in subjects {
                eprintln!("idle connections: {}", subject.name());
                match subject.idle(if self.quick { 200 } else { IDLE }) {
                    Ok(figures) => table.add(subject.name(), 0, figures),
                    Err(error) if subject.is_anchor() => eprintln!("left out: {error:#}"),
                    Err(error) => return Err(error),
                }
            }
        }
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}", self.rounds);
            self.round(round - 1, subjects, table)?;
        }
        let mut calls = Calls::new();
        if self.has(Part::Calls) {
            for subject in subjects {
                eprintln!("system calls: {}", subject.name());
                let (figures, by_name) = match subject.system_calls() {
                    Err(error) if subject.is_anchor() => {
                        eprintln!("left out: {error:#}");
                        continue;
                    }
                    counted => counted?,
                };
                table.add(subject.name(), 0, figures);
                if !by_name.is_empty() {
                    calls.insert(subject.name().to_owned(), by_name);
                }
            }
        }
        Ok(calls)
    }

    fn round(&self, round: usize, subjects: &[Subject], table: &mut Table) -> anyhow::Result<()> {
        let span = self.span;
        let mut each =
            |what: &str, measure: &dyn Fn(&Subject) -> anyhow::Result<Vec<crate::report::Figure>>| {
                subjects.iter().try_for_each(|subject| {
                    match measure(subject).with_context(|| format!("{what}, {}", subject.name())) {
                        Ok(figures) => table.add(subject.name(), round, figures),
                        // What another proxy does wrong is not ours to fail of.
                        Err(error) if subject.is_anchor() => eprintln!("left out: {error:#}"),
                        Err(error) => return Err(error),
                    }
                    anyhow::Ok(())
                })
            };
        if self.has(Part::Bulk) {
            for streams in [1, 8] {
                each(&format!("bulk, {streams} streams"), &|subject| subject.bulk(streams, span))?;
            }
        }
        if self.has(Part::Exchange) {
            for bytes in [64, 4 << 10, 64 << 10, 1 << 20] {
                for connections in [1, 64] {
                    let what = format!("exchange of {bytes} bytes, {connections} connections");
                    each(&what, &|subject| subject.exchange(bytes, connections, span))?;
                }
            }
        }
        if self.has(Part::Connections) {
            for clients in [1, 16, 256] {
                each(&format!("{clients} clients"), &|subject| subject.connections(clients, span))?;
            }
        }
        if self.has(Part::Beside) {
            each("beside a stream", &|subject| subject.beside_bulk(span))?;
        }
        if self.has(Part::Denied) {
            each("denied", &|subject| subject.denied(DENIED_PER_SECOND, span))?;
        }
        Ok(())
    }

    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// The most frequent system calls of each subject.
pub(crate) fn print_calls(calls: &Calls) {
    for (subject, by_name) in calls {
        let mut sorted: Vec<_> = by_name.iter().collect();
        sorted.sort_by(|one, other| other.1.total_cmp(one.1));
        let listed: Vec<String> = sorted
            .iter()
            .filter(|(_, calls)| **calls >= 0.05)
            .map(|(name, calls)| format!("{name} {calls:.1}"))
            .collect();
        println!("System calls per connection, {subject}: {}.\n", listed.join(", "));
    }
}
