//! What `redirect.pod_interfaces` fits: everything that comes in by such an interface is taken for a pod's.

use redirect::survey::{Link, LinkKind, Source};

use super::facts::Facts;
use super::finding::{Finding, ok, shortened, warn};

const NAME: &str = "pod-interfaces";

pub(super) fn check(facts: &Facts) -> Option<Finding> {
    let patterns = &facts.config.redirect.pod_interfaces;
    if patterns.is_empty() {
        return None;
    }
    if let Some(unknown) =
        facts.unknown(NAME, &[Source::Links], "an interface that is no pod's may be taken for one")
    {
        return Some(unknown);
    }
    let fitting: Vec<&Link> =
        facts.survey.links.iter().filter(|link| redirect::fits_any(patterns, &link.name)).collect();
    // Pods hang on a pair of interfaces, or behind a bridge whose ports are such.
    let others: Vec<String> = fitting
        .iter()
        .filter(|link| !matches!(link.kind, LinkKind::Veth | LinkKind::Bridge))
        .map(|link| link.name.clone())
        .collect();
    let patterns = shortened(patterns);
    Some(if others.is_empty() {
        ok(NAME, format!("redirect.pod_interfaces {patterns} fits {} interfaces here", fitting.len()))
    } else {
        warn(
            NAME,
            format!(
                "redirect.pod_interfaces {patterns} fits {}, which is no end of a pair",
                shortened(&others)
            ),
            "what comes in there from addresses that no pod is known to have is held, and refused after \
             proxy.unknown_pod_timeout_ms",
            "name only interfaces that lead to pods: cali*, eni*, veth*",
        )
    })
}
