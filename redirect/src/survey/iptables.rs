//! Turns the lines of `iptables-save` into chains and the rules that matter here.
//!
//! Of the nf_tables variant only the rules are taken: nft has shown the chains, with their hooks. The older
//! variant's chains hang on hooks that its table says.

use super::listed::{keep, number};
use super::{Base, Chain, Detour, DetourKind, Filter, MarkWrite, Place, QueueUse, lines, plain, settings};
use crate::tool::{ToolError, find};

const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// Reads the rules of the older iptables, where it is in use. Asking where it is not would load its modules.
pub(super) async fn read_legacy(into: &mut Filter) -> Result<(), ToolError> {
    let programs = [("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")];
    for ((family, program), used) in programs.into_iter().zip(settings::legacy_tables()) {
        if used.is_empty() {
            continue;
        }
        let Some(path) = find(&[program]) else {
            return Err(ToolError::Missing {
                program: program.into(),
                remedy: format!("its tables are in use: {}", plain(&used.join(", "))),
            });
        };
        let mut reader = Reader { filter: into, place: place(family, true) };
        lines::each(&path, &[], |line| reader.line(line)).await?;
    }
    Ok(())
}

/// Reads the rules that iptables' nf_tables variant wrote, where nft has shown tables of its.
pub(super) async fn read_marks(into: &mut Filter) -> Result<(), ToolError> {
    for (family, program) in [("ip", "iptables-nft-save"), ("ip6", "ip6tables-nft-save")] {
        let used =
            into.tables.iter().any(|table| table.family == family && TABLES.contains(&table.name.as_str()));
        let Some(path) = find(&[program]).filter(|_| used) else { continue };
        // nft shows some of these rules in its own words, others as `xt target`. One source is enough.
        let theirs =
            |place: &Place| place.family == family && TABLES.contains(&place.table.as_str()) && !place.legacy;
        into.mark_writes.retain(|write| !theirs(&write.place));
        into.queue_uses.retain(|used| !theirs(&used.place));
        into.detours.retain(|detour| !theirs(&detour.place));
        let mut reader = Reader { filter: into, place: place(family, false) };
        lines::each(&path, &[], |line| reader.line(line)).await?;
    }
    Ok(())
}

fn place(family: &str, legacy: bool) -> Place {
    Place { family: family.to_owned(), legacy, ..Place::default() }
}

struct Reader<'a> {
    filter: &'a mut Filter,
    place: Place,
}

impl Reader<'_> {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [table] if table.starts_with('*') => self.place.table = plain(&table[1..]),
            [chain, policy, ..] if chain.starts_with(':') => self.chain(&chain[1..], policy),
            ["-A", chain, rule @ ..] => {
                self.place.chain = plain(chain);
                self.rule(rule);
            }
            _ => {}
        }
    }

    fn chain(&mut self, name: &str, policy: &str) {
        if self.place.legacy {
            self.place.chain = plain(name);
            let base = base(&self.place.table, name, policy == "DROP");
            keep(&mut self.filter.chains, Chain { place: self.place.clone(), base, rules: 0 });
        }
    }

    fn rule(&mut self, rule: &[&str]) {
        if self.place.legacy {
            let own = self.filter.chains.iter_mut().rev().find(|chain| chain.place == self.place);
            if let Some(chain) = own {
                chain.rules += 1;
            }
        }
        // Options stand behind the target; what is before it only asks.
        let Some(at) = rule.iter().position(|word| *word == "-j") else { return };
        let Some((target, options)) = rule[at + 1..].split_first() else { return };
        let value = |name: &str| {
            let at = options.iter().position(|option| *option == name)?;
            options.get(at + 1).copied()
        };
        let has = |name: &str| options.contains(&name);
        match *target {
            "MARK" => self.write(false, value("--set-xmark").or(value("--set-mark"))),
            "CONNMARK" if has("--restore-mark") => self.copy(false, value("--nfmask"), value("--ctmask")),
            "CONNMARK" if has("--save-mark") => self.copy(true, value("--ctmask"), value("--nfmask")),
            "CONNMARK" => self.write(true, value("--set-xmark").or(value("--set-mark"))),
            "TPROXY" => {
                self.write(false, value("--tproxy-mark"));
                self.detour(DetourKind::Divert);
            }
            "NOTRACK" => self.detour(DetourKind::Untrack),
            "CT" if has("--notrack") => self.detour(DetourKind::Untrack),
            "FLOWOFFLOAD" => self.detour(DetourKind::Offload),
            "NFQUEUE" => {
                let range = value("--queue-balance").and_then(|range| range.split_once(':'));
                let (first, last) = match range {
                    Some((first, last)) => (first.parse().ok(), last.parse().ok()),
                    None => {
                        let number = value("--queue-num").unwrap_or("0").parse().ok();
                        (number, number)
                    }
                };
                if let (Some(first), Some(last)) = (first, last) {
                    keep(&mut self.filter.queue_uses, QueueUse { place: self.place.clone(), first, last });
                }
            }
            _ => {}
        }
    }

    fn detour(&mut self, kind: DetourKind) {
        keep(&mut self.filter.detours, Detour { place: self.place.clone(), kind });
    }

    /// `VALUE/MASK`: the masked bits are cleared and the value xor'ed (iptables-extensions(8), MARK).
    fn write(&mut self, connection: bool, text: Option<&str>) {
        let Some(text) = text else { return };
        let (mark, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
        if let (Some(mark), Some(mask)) = (number(mark), number(mask)) {
            // A bit outside the mask is toggled, so it may become either.
            let (sets, clears) = (mark, (mask & !mark) | (mark & !mask));
            let place = self.place.clone();
            keep(&mut self.filter.mark_writes, MarkWrite { place, connection, sets, clears });
        }
    }

    /// One mark's bits into the other's.
    fn copy(&mut self, connection: bool, to: Option<&str>, from: Option<&str>) {
        let mask = |text: Option<&str>| text.map_or(Some(u32::MAX), number);
        if let (Some(to), Some(from)) = (mask(to), mask(from)) {
            let place = self.place.clone();
            keep(&mut self.filter.mark_writes, MarkWrite { place, connection, sets: from, clears: to });
        }
    }
}

/// The hooks and priorities of the older iptables (include/uapi/linux/netfilter_ipv4.h).
fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING" => chain.to_lowercase(),
        _ => return None,
    };
    let priority = match (table, hook.as_str()) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", "postrouting" | "input") => 100,
        ("nat", _) => -100,
        ("filter", _) => 0,
        ("security", _) => 50,
        _ => return None,
    };
    let kind = if table == "nat" { "nat" } else { "filter" };
    Some(Base { kind: kind.to_owned(), hook, priority, drops })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, legacy: bool) -> Filter {
        let mut filter = Filter::default();
        let mut reader = Reader { filter: &mut filter, place: place("ip", legacy) };
        text.lines().for_each(|line| reader.line(line));
        filter
    }

    #[test]
    fn marks_queues_and_detours_are_read_from_targets_and_not_from_questions() {
        let filter = parse(
            "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
             -A PREROUTING -m mark --mark 0x2/0x2 -j ACCEPT\n\
             -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
             -A PREROUTING -j MARK --set-xmark 0x5/0xffffffff\n\
             -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
             -A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
             -A PREROUTING -p tcp -j TPROXY --on-port 1 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x1\n\
             -A PREROUTING -j NFQUEUE --queue-balance 5:8\n-A PREROUTING -j NFQUEUE --queue-num 3\nCOMMIT\n\
             *raw\n-A PREROUTING -d 169.254.20.10/32 -j CT --notrack\nCOMMIT\n",
            false,
        );
        let writes: Vec<_> =
            filter.mark_writes.iter().map(|write| (write.connection, write.sets, write.clears)).collect();
        assert_eq!(
            writes,
            [
                (false, 0x4000, 0),
                (false, 5, !5),
                (false, 0x80, 0x80),
                (true, u32::MAX, u32::MAX),
                (false, 1, 0)
            ]
        );
        let queues: Vec<_> = filter.queue_uses.iter().map(|used| (used.first, used.last)).collect();
        assert_eq!(queues, [(5, 8), (3, 3)]);
        let detours: Vec<_> =
            filter.detours.iter().map(|detour| (detour.kind, detour.place.table.as_str())).collect();
        assert_eq!(detours, [(DetourKind::Divert, "mangle"), (DetourKind::Untrack, "raw")]);
        assert_eq!(filter.chains, [], "nft has shown them");
    }

    #[test]
    fn the_older_variants_chains_hang_where_their_table_says() {
        let filter = parse(
            "*filter\n:INPUT DROP [0:0]\n:ufw-before-input - [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n",
            true,
        );
        let input = filter.chains[0].base.clone().unwrap();
        assert_eq!((input.hook.as_str(), input.priority, input.drops), ("input", 0, true));
        assert_eq!((filter.chains[0].rules, filter.chains[1].base.clone()), (1, None));
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for line in [
            "-A",
            "-A X -j",
            "-A X -j MARK --set-xmark",
            "-A X -j MARK --set-xmark x/y",
            ":",
            "*",
            "-A X -j NFQUEUE --queue-num 99999",
        ] {
            let filter = parse(line, true);
            assert!(filter.mark_writes.is_empty() && filter.queue_uses.is_empty(), "{line}");
        }
    }
}
