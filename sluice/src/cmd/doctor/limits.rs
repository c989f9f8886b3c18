//! What runs out: conntrack entries, descriptors, pipes, the listener's queue.

use super::facts::Facts;
use super::finding::{Finding, ok, warn};
use crate::rights::{SYS_ADMIN, SYS_RESOURCE};

/// Below this many entries a handful of busy pods fills the table.
const SMALL_TABLE: i64 = 32_768;
const FULL_PERCENT: i64 = 80;
const FEW_CONNECTIONS: u64 = 4_096;
const PAGE: u64 = 4_096;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = conntrack(facts);
    findings.extend(descriptors(facts));
    findings.extend(pipes(facts));
    findings.extend(backlog(facts));
    findings
}

fn conntrack(facts: &Facts) -> Vec<Finding> {
    let Some(max) = facts.number("net/netfilter/nf_conntrack_max") else {
        return vec![warn(
            "conntrack.size",
            "there is no net.netfilter.nf_conntrack_max: conntrack is not loaded, or does not show its settings here",
            "how many connections fit is not known",
            "modprobe nf_conntrack, and run sluice doctor in the node's own network namespace",
        )];
    };
    let mut findings = vec![if max < SMALL_TABLE {
        warn(
            "conntrack.size",
            format!("net.netfilter.nf_conntrack_max={max}"),
            "when it is full, new connections and flows are dropped: each pod connection takes one entry, and each \
             that leaves the cluster two",
            "sysctl -w net.netfilter.nf_conntrack_max=262144",
        )
    } else {
        ok("conntrack.size", format!("net.netfilter.nf_conntrack_max={max}"))
    }];
    if let Some(count) = facts.number("net/netfilter/nf_conntrack_count") {
        let percent = count.saturating_mul(100) / max.max(1);
        let found = format!("{count} of {max} entries, {percent} %");
        findings.push(if percent >= FULL_PERCENT {
            warn(
                "conntrack.fill",
                found,
                "when it is full, new connections and flows are dropped",
                format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4)),
            )
        } else {
            ok("conntrack.fill", found)
        });
    }
    findings
}

fn descriptors(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "limits.descriptors";
    let limit = facts.descriptors?;
    let connections = limit.saturating_sub(facts.config.proxy.reserved_descriptors) / 2;
    let found = format!("{limit} descriptors: {connections} TCP connections at a time");
    Some(if connections < FEW_CONNECTIONS {
        let reserved = facts.config.proxy.reserved_descriptors;
        warn(
            NAME,
            found,
            "more are refused (overload)",
            format!(
                "raise the hard limit: LimitNOFILE= of the container runtime's unit, or ulimit -Hn; \
                 proxy.reserved_descriptors keeps {reserved} of them back"
            ),
        )
    } else {
        ok(NAME, found)
    })
}

/// Beyond the soft limit a user without the right gets pipes of two pages (pipe(7)).
fn pipes(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "limits.pipes";
    let soft = u64::try_from(facts.number("fs/pipe-user-pages-soft")?).ok()?;
    let proxy = &facts.config.proxy;
    let wanted = (proxy.max_pipes as u64).saturating_mul((proxy.pipe_bytes as u64).div_ceil(PAGE));
    let found = format!("fs.pipe-user-pages-soft={soft}; proxy.max_pipes and pipe_bytes take up to {wanted}");
    if soft == 0 || soft >= wanted || facts.may(SYS_RESOURCE) || facts.may(SYS_ADMIN) {
        return Some(ok(NAME, found));
    }
    let streams = soft / (proxy.pipe_bytes as u64).div_ceil(PAGE).max(1);
    Some(warn(
        NAME,
        found,
        format!(
            "of more than {streams} bulk streams at a time, those beyond have small pipes and are slower"
        ),
        format!("sysctl -w fs.pipe-user-pages-soft={wanted}, or fewer proxy.max_pipes"),
    ))
}

fn backlog(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "limits.somaxconn";
    let queue = facts.number("net/core/somaxconn")?;
    let pending = i64::try_from(facts.config.proxy.max_pending).unwrap_or(i64::MAX);
    let found = format!("net.core.somaxconn={queue}, proxy.max_pending {pending}");
    Some(if queue <= pending {
        warn(
            NAME,
            found,
            "beyond somaxconn the kernel answers with SYN cookies, and those connections hang",
            format!(
                "sysctl -w net.core.somaxconn={}, or a smaller proxy.max_pending",
                pending.saturating_mul(2)
            ),
        )
    } else {
        ok(NAME, found)
    })
}
