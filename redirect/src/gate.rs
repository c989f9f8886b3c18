//! The iptables gate: our own chain of table `mangle`, and the jumps to it from `INPUT` and `FORWARD`.
//!
//! Only the nf_tables variant of iptables will do: it shares the ruleset's generation with nft, by which the
//! guard learns of changes.

use std::path::PathBuf;

use crate::nfnetlink::Family;
use crate::ruleset::{GATE_CHAIN, GATE_HOOKS, GATE_RULES, gate_script};
use crate::spec::RedirectSpec;
use crate::tool::{self, ToolError};

/// The restore and save commands of one family.
#[derive(Clone, Debug)]
pub(crate) struct Iptables {
    pub(crate) family: Family,
    restore: PathBuf,
    save: PathBuf,
}

/// What the kernel holds of the gate in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateListing {
    /// Whether the chain exists.
    pub(crate) declared: bool,
    /// The rules of other chains that jump to it, as iptables prints them.
    pub(crate) jumps: Vec<String>,
    /// The chain's rules, as iptables prints them.
    pub(crate) rules: Vec<String>,
}

impl GateListing {
    /// One jump from each chain that has to have one, and no other.
    fn has_its_jumps(&self) -> bool {
        let from =
            |hook: &str| self.jumps.iter().filter(|jump| jump.starts_with(&format!("-A {hook} "))).count();
        self.jumps.len() == GATE_HOOKS.len() && GATE_HOOKS.iter().all(|hook| from(hook) == 1)
    }

    /// Nothing of the gate is missing and nothing was added, as far as counting tells.
    pub(crate) fn is_whole(&self) -> bool {
        self.declared && self.has_its_jumps() && self.rules.len() == GATE_RULES
    }
}

impl Iptables {
    /// Finds the nf_tables variant.
    pub(crate) async fn find(family: Family) -> Result<Self, ToolError> {
        let (restore, save): ([&str; 2], [&str; 2]) = match family {
            Family::V4 => {
                (["iptables-nft-restore", "iptables-restore"], ["iptables-nft-save", "iptables-save"])
            }
            Family::V6 => {
                (["ip6tables-nft-restore", "ip6tables-restore"], ["ip6tables-nft-save", "ip6tables-save"])
            }
        };
        let missing = || ToolError::Missing {
            program: restore[0].into(),
            remedy: "apt-get install iptables (1.8 or later, nf_tables variant)".into(),
        };
        let found = Self {
            family,
            restore: tool::find(&restore).ok_or_else(missing)?,
            save: tool::find(&save).ok_or_else(missing)?,
        };
        let version = tool::run(&found.restore, &["--version"], "").await?;
        if version.contains("nf_tables") { Ok(found) } else { Err(missing()) }
    }

    pub(crate) async fn list(&self) -> Result<GateListing, ToolError> {
        Ok(parse(&tool::run(&self.save, &["-t", "mangle"], "").await?))
    }

    /// What nft shows of the gate, for comparison with an earlier look. nft asks the kernel for this table
    /// alone; iptables-save asks for everything, which takes long on nodes with many rules.
    pub(crate) async fn glance(&self) -> Result<Vec<String>, ToolError> {
        match tool::nft(&["list", "table", self.family.word(), "mangle"], "").await {
            Ok(text) => Ok(gate_lines(&text)),
            Err(ToolError::Failed { message, .. }) if message.contains("No such file or directory") => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn restore(&self, script: &str) -> Result<(), ToolError> {
        tool::run(&self.restore, &["--noflush"], script).await.map(drop)
    }

    /// Makes the gate what `spec` says, in one transaction.
    pub(crate) async fn install(&self, spec: &RedirectSpec) -> Result<(), ToolError> {
        let listing = self.list().await?;
        // A jump that is there keeps its place: others may have put theirs before it on purpose.
        let keep = listing.has_its_jumps();
        let stale = if keep { &[][..] } else { &listing.jumps[..] };
        self.restore(&gate_script(spec, stale, !keep)).await
    }

    /// Takes away the jumps and the chain. Gives back what was there.
    pub(crate) async fn remove(&self) -> Result<GateListing, ToolError> {
        let listing = self.list().await?;
        let mut script = String::from("*mangle\n");
        for jump in &listing.jumps {
            script.push_str(&jump.replacen("-A ", "-D ", 1));
            script.push('\n');
        }
        if listing.declared {
            script.push_str(&format!("-F {GATE_CHAIN}\n-X {GATE_CHAIN}\n"));
        }
        script.push_str("COMMIT\n");
        if listing != GateListing::default() {
            self.restore(&script).await?;
        }
        Ok(listing)
    }
}

fn parse(text: &str) -> GateListing {
    let mut listing = GateListing::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(&format!(":{GATE_CHAIN} ")) {
            listing.declared = true;
        } else if line.starts_with(&format!("-A {GATE_CHAIN} ")) {
            listing.rules.push(line.to_owned());
        } else if line.starts_with("-A ") && line.ends_with(&format!("-j {GATE_CHAIN}")) {
            listing.jumps.push(line.to_owned());
        }
    }
    listing
}

/// The lines of the gate's chain, and those of other chains that name it; without counts.
fn gate_lines(text: &str) -> Vec<String> {
    let mut chain = "";
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        }
        let jump = line.ends_with(&format!("jump {GATE_CHAIN}"));
        if chain == GATE_CHAIN || jump {
            lines.push(format!("{chain}: {}", without_counts(line)));
        }
    }
    lines
}

fn without_counts(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    for word in ["packets", "bytes"] {
        while let Some(at) = words.iter().position(|found| *found == word) {
            words.drain(at..words.len().min(at + 2));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_the_gate_are_read() {
        let text = "*mangle\n:INPUT ACCEPT [0:0]\n:SLUICE-GATE - [0:0]\n:SLUICE-GATEWAY - [0:0]\n\
                    -A INPUT -j OTHER\n-A INPUT -m comment --comment \"sluice: gate\" -j SLUICE-GATE\n\
                    -A SLUICE-GATEWAY -j ACCEPT\n-A SLUICE-GATE -p tcp -j NFQUEUE --queue-num 1093\nCOMMIT\n";
        let listing = parse(text);
        assert!(listing.declared);
        assert_eq!(listing.jumps, ["-A INPUT -m comment --comment \"sluice: gate\" -j SLUICE-GATE"]);
        assert_eq!(listing.rules, ["-A SLUICE-GATE -p tcp -j NFQUEUE --queue-num 1093"]);
        assert_eq!(parse("*mangle\n:SLUICE-GATEWAY - [0:0]\nCOMMIT\n"), GateListing::default());
    }

    #[test]
    fn a_glance_sees_the_gates_rules_and_jumps_and_no_counts() {
        let text = "table ip mangle {\n\tchain SLUICE-GATE {\n\t\ttcp flags syn counter packets 7 bytes 420 queue num 1093\n\t}\n\n\
                    \tchain INPUT {\n\t\ttype filter hook input priority mangle; policy accept;\n\
                    \t\tmeta l4proto udp counter packets 1 bytes 2 accept\n\t\tcounter packets 3 bytes 4 jump SLUICE-GATE\n\t}\n}\n";
        let lines = gate_lines(text);
        assert!(lines.contains(&"SLUICE-GATE: tcp flags syn counter queue num 1093".to_owned()), "{lines:?}");
        assert!(lines.contains(&"INPUT: counter jump SLUICE-GATE".to_owned()), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("udp")), "{lines:?}");
        assert_eq!(gate_lines(&text.replace("packets 7 bytes 420", "packets 8 bytes 480")), lines);
        assert_ne!(gate_lines(&text.replace("queue num 1093", "queue num 1")), lines);
    }
}
