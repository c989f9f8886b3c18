//! An explanation as text for a person. Colourless, so that it can be kept and compared.

use std::fmt;

use super::tiers::quoted_name;
use super::{ExplainedConnection, Explanation, RuleStep, Side, Test, TierStep};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            let count = self.connections.len();
            let endpoints = if count == 1 { "endpoint" } else { "endpoints" };
            writeln!(f, "service {service} has {count} ready {endpoints}: {}\n", shout(self.verdict))?;
        }
        for (index, connection) in self.connections.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write_connection(f, connection)?;
        }
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}

fn write_connection(f: &mut fmt::Formatter<'_>, connection: &ExplainedConnection) -> fmt::Result {
    let ExplainedConnection { source, destination, port, protocol, .. } = connection;
    let end = |party: &super::PartyView| format!("{} ({})", party.ip, party.name);
    let (from, to) = (end(source), end(destination));
    writeln!(f, "{from} to {to}, port {port}/{protocol}: {}", shout(connection.verdict))?;
    write_side(f, "egress", &connection.egress)?;
    write_side(f, "ingress", &connection.ingress)?;
    let wish = if connection.verdict == "allow" { "deny" } else { "allow" };
    match &connection.change {
        Some(change) => {
            writeln!(f, "  the smallest change to {wish} it:")?;
            change.lines().iter().try_for_each(|line| writeln!(f, "    {line}"))
        }
        None => writeln!(f, "  no change of a label or a rule, and no new NetworkPolicy, can {wish} it"),
    }
}

fn write_side(f: &mut fmt::Formatter<'_>, name: &str, side: &Side) -> fmt::Result {
    let tier = side.tier.map(|tier| format!(", tier {tier}")).unwrap_or_default();
    writeln!(f, "  {name}: {}{tier}: {}", side.verdict, side.summary)?;
    side.tiers.iter().filter(|tier| tier.has_policies()).try_for_each(|tier| write_tier(f, name, side, tier))
}

impl TierStep {
    /// A tier without any policy is not worth a line.
    fn has_policies(&self) -> bool {
        self.passed_over > 0 || !self.selecting.is_empty()
    }
}

fn write_tier(f: &mut fmt::Formatter<'_>, way: &str, side: &Side, tier: &TierStep) -> fmt::Result {
    // What decides has been told above.
    let outcome = if tier.outcome == side.summary { "decides" } else { &tier.outcome };
    writeln!(f, "    tier {}: {outcome}", tier.tier)?;
    for step in &tier.selecting {
        writeln!(f, "      {} selects the pod ({})", step.policy, step.selects)?;
        if step.rules.is_empty() {
            writeln!(f, "        it has no {way} rule, so it allows nothing")?;
        }
        step.rules.iter().try_for_each(|rule| write_rule(f, rule))?;
    }
    match tier.passed_over {
        0 => Ok(()),
        1 => writeln!(f, "      1 other policy does not select it for {way}"),
        count => writeln!(f, "      {count} other policies do not select it for {way}"),
    }
}

fn write_rule(f: &mut fmt::Formatter<'_>, rule: &RuleStep) -> fmt::Result {
    writeln!(
        f,
        "        {}{}, {}: {}",
        rule.field,
        quoted_name(rule.name.as_deref()),
        rule.action,
        if rule.matched { "matches" } else { "does not match" }
    )?;
    for Test { field, matched, why } in rule.peers.iter().chain(&rule.ports) {
        writeln!(f, "          {} {field}: {why}", if *matched { "yes" } else { "no " })?;
    }
    Ok(())
}

fn shout(verdict: &str) -> &'static str {
    if verdict == "allow" { "ALLOWED" } else { "DENIED" }
}
