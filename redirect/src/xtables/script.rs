//! A restore script of iptables, table by table: chains of our own, their rules, and the jumps to them.

use std::fmt::Write;

/// Where the jump to a chain stands among the rules of its base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before the rules of others.
    First,
    /// Behind them: a verdict of ours must not keep a packet from them.
    Last,
}

/// A table's part of the script.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) chains: Vec<Chain>,
    pub(super) jumps: Vec<Jump>,
}

/// A chain and its rules, as the script has them behind `-A NAME`.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    rules: Vec<String>,
}

/// What leads to a chain.
#[derive(Clone, Debug)]
pub(super) struct Jump {
    pub(super) hook: &'static str,
    pub(super) chain: String,
    place: Place,
}

impl Table {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, chains: Vec::new(), jumps: Vec::new() }
    }

    pub(super) fn add(&mut self, chain: Chain) {
        self.chains.push(chain);
    }

    /// Adds a chain that a base chain jumps to.
    pub(super) fn hook(&mut self, hook: &'static str, place: Place, chain: Chain) {
        self.lead(hook, place, &chain.name);
        self.chains.push(chain);
    }

    pub(super) fn lead(&mut self, hook: &'static str, place: Place, chain: &str) {
        self.jumps.push(Jump { hook, chain: chain.to_owned(), place });
    }

    /// The script's lines. `stale` are lines that take away what the table has and should not, `jumps` says
    /// whether the jumps are to be made.
    pub(super) fn write(&self, stale: &[String], jumps: bool) -> String {
        let mut text = format!("*{}\n", self.name);
        for Chain { name, .. } in &self.chains {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for line in stale {
            let _ = writeln!(text, "{line}");
        }
        for Chain { name, rules } in &self.chains {
            for rule in rules {
                let _ = writeln!(text, "-A {name} {rule}");
            }
        }
        for Jump { hook, chain, place } in self.jumps.iter().filter(|_| jumps) {
            let place = if *place == Place::First { format!("-I {hook} 1") } else { format!("-A {hook}") };
            let _ = writeln!(text, "{place} -m comment --comment \"sluice\" -j {chain}");
        }
        text.push_str("COMMIT\n");
        text
    }
}

impl Chain {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rules: Vec::new() }
    }

    /// A rule: what it asks, what it is for, and its target.
    pub(super) fn rule(&mut self, asks: &str, comment: &str, target: &str) {
        let asks = asks.trim();
        let space = if asks.is_empty() { "" } else { " " };
        self.rules.push(format!("{asks}{space}-m comment --comment \"sluice: {comment}\" {target}"));
    }

    /// A rule that only says something.
    pub(super) fn note(&mut self, text: &str) {
        self.rules.push(format!("-m comment --comment \"{text}\""));
    }
}

impl Chain {
    /// How many rules it has.
    pub(super) fn length(&self) -> usize {
        self.rules.len()
    }
}
