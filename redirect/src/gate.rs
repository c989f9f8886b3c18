//! The iptables gate: our own chain of table `mangle`, and the jump to it from `INPUT`.
//!
//! Only the nf_tables variant of iptables will do: it shares the ruleset's generation with nft, by which the
//! guard learns of changes.

use std::path::PathBuf;

use crate::nfnetlink::Family;
use crate::ruleset::{GATE_CHAIN, RedirectSpec, gate_script};
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
    /// The rules of `INPUT` that jump to it, as iptables prints them.
    pub(crate) jumps: Vec<String>,
    /// The chain's rules, as iptables prints them.
    pub(crate) rules: Vec<String>,
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

    pub(crate) async fn restore(&self, script: &str) -> Result<(), ToolError> {
        tool::run(&self.restore, &["--noflush"], script).await.map(drop)
    }

    /// Makes the gate what `spec` says, in one transaction.
    pub(crate) async fn install(&self, spec: &RedirectSpec) -> Result<(), ToolError> {
        let listing = self.list().await?;
        // A jump that is there keeps its place: others may have put theirs before it on purpose.
        let keep = listing.jumps.len() == 1;
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
}
