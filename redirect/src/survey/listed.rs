//! Turns the lines of `nft list ruleset` into tables, chains and the rules that matter here.
//!
//! The text and not the JSON: it can be taken apart as it comes, and it shows rules that iptables wrote, which the
//! JSON leaves out.

use std::path::PathBuf;

use super::{
    Base, Chain, Detour, DetourKind, ENTRIES, Filter, MarkWrite, Place, QueueUse, Table, lines, plain,
};
use crate::tool::ToolError;

/// Reads the ruleset. Sets' elements are left out.
pub(super) async fn read(nft: &PathBuf, into: &mut Filter) -> Result<(), ToolError> {
    let mut reader = Reader::new(into);
    lines::each(nft, &["-n", "-y", "-t", "list", "ruleset"], |line| reader.line(line)).await
}

/// Where in the text we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Table,
    Chain,
    Other,
}

struct Reader<'a> {
    filter: &'a mut Filter,
    blocks: Vec<Block>,
    place: Place,
}

impl<'a> Reader<'a> {
    fn new(filter: &'a mut Filter) -> Self {
        Self { filter, blocks: Vec::new(), place: Place::default() }
    }

    fn line(&mut self, line: &str) {
        let line = line.trim();
        if line == "}" {
            self.blocks.pop();
            return;
        }
        if line.starts_with('#') {
            return;
        }
        match (self.blocks.last(), line.strip_suffix('{')) {
            (None, Some(head)) => self.open_table(head),
            (Some(Block::Table), Some(head)) => self.open_inside(head),
            // A rule with an anonymous set ends in a brace that it also opened.
            (Some(Block::Chain), _) => self.inside_chain(line),
            (Some(_), Some(_)) => self.blocks.push(Block::Other),
            _ => {}
        }
    }

    fn open_table(&mut self, head: &str) {
        let words: Vec<&str> = head.split_whitespace().collect();
        let ["table", family, name, ..] = words.as_slice() else {
            self.blocks.push(Block::Other);
            return;
        };
        self.place = Place { family: plain(family), table: plain(name), ..Place::default() };
        keep(&mut self.filter.tables, Table { family: plain(family), name: plain(name) });
        self.blocks.push(Block::Table);
    }

    fn open_inside(&mut self, head: &str) {
        let words: Vec<&str> = head.split_whitespace().collect();
        let ["chain", name, ..] = words.as_slice() else {
            self.blocks.push(Block::Other);
            return;
        };
        self.place.chain = plain(name);
        keep(&mut self.filter.chains, Chain { place: self.place.clone(), base: None, rules: 0 });
        self.blocks.push(Block::Chain);
    }

    fn inside_chain(&mut self, line: &str) {
        let own = self.filter.chains.last_mut().filter(|chain| chain.place == self.place);
        if line.starts_with("type ") && line.contains(" hook ") {
            if let Some(chain) = own {
                chain.base = base(line);
            }
            return;
        }
        if line.is_empty() {
            return;
        }
        if let Some(chain) = own {
            chain.rules += 1;
        }
        self.rule(line);
    }

    fn rule(&mut self, line: &str) {
        // Comments are a stranger's words.
        let words: Vec<&str> =
            line.split(" comment \"").next().unwrap_or_default().split_whitespace().collect();
        let kinds = [
            (words.contains(&"tproxy"), DetourKind::Divert),
            (words.contains(&"notrack"), DetourKind::Untrack),
            (words.windows(2).any(|pair| pair == ["flow", "add"]), DetourKind::Offload),
        ];
        for (_, kind) in kinds.into_iter().filter(|(found, _)| *found) {
            keep(&mut self.filter.detours, Detour { place: self.place.clone(), kind });
        }
        for at in 0..words.len() {
            if words[at] == "queue"
                && let Some((first, last)) = queues(&words[at + 1..])
            {
                keep(&mut self.filter.queue_uses, QueueUse { place: self.place.clone(), first, last });
            }
            if words[at..].starts_with(&["mark", "set"]) {
                let connection = at > 0 && words[at - 1] == "ct";
                if let Some((sets, clears)) = written(&words[at + 2..], connection) {
                    let place = self.place.clone();
                    keep(&mut self.filter.mark_writes, MarkWrite { place, connection, sets, clears });
                }
            }
        }
    }
}

/// Adds to a list until it is as long as it may be.
pub(super) fn keep<T>(list: &mut Vec<T>, item: T) {
    if list.len() < ENTRIES {
        list.push(item);
    }
}

/// `type filter hook input priority -150; policy drop;`
fn base(line: &str) -> Option<Base> {
    let word_after = |key: &str| {
        let mut words = line.split([' ', ';']).skip_while(|word| *word != key);
        words.nth(1).map(plain)
    };
    let priority = line.split("priority ").nth(1)?.split(';').next()?;
    Some(Base {
        kind: word_after("type")?,
        hook: word_after("hook")?,
        priority: number_of_priority(priority)?,
        drops: line.contains("policy drop"),
    })
}

/// A number, or one of nft's names with an offset (nft(8), "standard priority names").
fn number_of_priority(text: &str) -> Option<i32> {
    let text: String = text.split_whitespace().collect();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let split = text.find(['+', '-']).unwrap_or(text.len());
    let offset = if split == text.len() { 0 } else { text[split..].parse().ok()? };
    let name = match &text[..split] {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        _ => return None,
    };
    Some(name + offset)
}

/// The numbers of `num 7`, `to 1-4`, or of nothing, which is 0; `None` when they come from a map.
fn queues(words: &[&str]) -> Option<(u16, u16)> {
    // Newer tools write `queue flags bypass to 7`.
    let after = words.iter().position(|word| matches!(*word, "num" | "to"));
    let Some(at) = after else { return Some((0, 0)) };
    let text = words.get(at + 1)?;
    match text.split_once('-') {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => text.parse().ok().map(|queue| (queue, queue)),
    }
}

/// The bits that `mark set EXPRESSION` may turn on and off. The expression is read from left to right, as nft
/// prints it: a source, then constants that are or'ed, and'ed and xor'ed to it.
fn written(words: &[&str], connection: bool) -> Option<(u32, u32)> {
    let mut words = words.iter().map(|word| word.trim_matches(['(', ')'])).filter(|word| !word.is_empty());
    let mut first = words.next()?;
    let mut own = !connection;
    while matches!(first, "meta" | "ct" | "mark") {
        match first {
            "ct" => own = connection,
            "meta" => own = !connection,
            _ => break,
        }
        first = words.next()?;
    }
    let (mut sets, mut clears) = match (first, number(first)) {
        ("mark", _) if own => (0, 0),
        (_, Some(mark)) => (mark, !mark),
        // The other mark, a map, an address: anything may come out of it.
        _ => (u32::MAX, u32::MAX),
    };
    while let Some(operator) = words.next() {
        let Some(constant) = words.next().and_then(number) else { break };
        match operator {
            "|" | "or" => (sets, clears) = (sets | constant, clears & !constant),
            "&" | "and" => (sets, clears) = (sets & constant, clears | !constant),
            "^" | "xor" => (sets, clears) = (sets | constant, clears | constant),
            _ => break,
        }
    }
    Some((sets, clears))
}

pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Filter {
        let mut filter = Filter::default();
        let mut reader = Reader::new(&mut filter);
        text.lines().for_each(|line| reader.line(line));
        filter
    }

    const TEXT: &str = "table inet theirs {
\tset s {
\t\ttype ipv4_addr
\t\tflags interval
\t}

\tflowtable f {
\t\thook ingress priority 0
\t\tdevices = { eth0 }
\t}

\tchain first {
\t\ttype filter hook prerouting priority -140; policy drop;
\t\tip saddr { 10.0.0.1, 10.0.0.2 } accept
\t\tmeta l4proto tcp tproxy ip to 127.0.0.1:1 meta mark set 0x00000539 accept
\t\tqueue num 7
\t\tqueue flags bypass to 100-103
\t\tudp dport 53 notrack
\t\tct state established flow add @f
\t\taccept comment \"meta mark set 0x2 queue num 1093 {\"
\t}

\tchain KUBE-X {
\t}
}
# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat + 20; policy accept;
\t}
}
";

    #[test]
    fn tables_chains_and_what_their_rules_do_are_found() {
        let filter = parse(TEXT);
        assert_eq!(filter.tables.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["theirs", "nat"]);
        let chains: Vec<_> =
            filter.chains.iter().map(|chain| (chain.place.chain.as_str(), chain.rules)).collect();
        assert_eq!(chains, [("first", 7), ("KUBE-X", 0), ("PREROUTING", 0)]);
        let base = filter.chains[0].base.clone().unwrap();
        assert_eq!((base.hook.as_str(), base.priority, base.drops), ("prerouting", -140, true));
        let nat = filter.chains[2].base.clone().unwrap();
        assert_eq!((nat.kind.as_str(), nat.priority, nat.drops), ("nat", -80, false));
        let kinds: Vec<_> = filter.detours.iter().map(|detour| detour.kind).collect();
        assert_eq!(kinds, [DetourKind::Divert, DetourKind::Untrack, DetourKind::Offload]);
        let queues: Vec<_> = filter.queue_uses.iter().map(|used| (used.first, used.last)).collect();
        assert_eq!(queues, [(7, 7), (100, 103)]);
        assert_eq!(filter.mark_writes.len(), 1, "{:?}", filter.mark_writes);
        assert_eq!(filter.mark_writes[0].sets, 0x539);
    }

    #[test]
    fn the_bits_a_rule_may_change_are_those_of_its_expression() {
        let all = u32::MAX;
        for (rule, connection, sets, clears) in [
            ("meta mark set 0x5", false, 5, !5),
            ("meta mark set meta mark | 0x00004000", false, 0x4000, 0),
            ("meta mark set mark or 0x4000", false, 0x4000, 0),
            ("meta mark set meta mark & 0xffff0000", false, 0, 0xffff),
            ("meta mark set meta mark & 0xfffffff0 ^ 0x00000002", false, 2, 0xf),
            ("meta mark set (meta mark & 0xfffffff0) | 0x00000002", false, 2, 0xd),
            ("meta mark set ct mark", false, all, all),
            ("meta mark set ct mark & 0x00000080", false, 0x80, all),
            ("ct mark set meta mark", true, all, all),
            ("ct mark set ct mark | 0x8", true, 8, 0),
            ("ct mark set mark", true, all, all),
            ("meta mark set ip saddr map @m", false, all, all),
        ] {
            let filter = parse(&format!("table ip t {{\n chain c {{\n  {rule}\n }}\n}}\n"));
            let [write] = filter.mark_writes.as_slice() else { panic!("{rule}: {filter:?}") };
            assert_eq!((write.connection, write.sets, write.clears), (connection, sets, clears), "{rule}");
        }
    }

    #[test]
    fn names_of_any_length_and_kind_are_cut_and_can_be_printed() {
        let long = "x".repeat(10_000);
        let filter = parse(&format!("table ip {long} {{\n chain \u{1b}[31m {{\n"));
        assert_eq!(filter.tables[0].name.len(), super::super::NAME_LENGTH);
        assert_eq!(filter.chains[0].place.chain, "?[31m");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail(text in "([ \\t]*(table|chain|set|\\{|\\}|mark set|queue num|type filter hook|priority|;|meta|ct|\\||-|[a-z0-9\" ])*\\n){0,20}") {
            let _ = parse(&text);
        }
    }
}
