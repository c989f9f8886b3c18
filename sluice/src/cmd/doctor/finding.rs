//! One thing that was looked at, and what it means.

use serde::Serialize;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// Something may go wrong that opens nothing, or could not be looked at.
    Warn,
    /// Enforcement cannot be guaranteed.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at. Stable; several findings may have the same.
    pub(super) name: &'static str,
    /// How it is.
    pub(super) state: State,
    /// What was found.
    pub(super) found: String,
    /// What follows; null when it is as it should be.
    pub(super) consequence: Option<String>,
    /// What to do; null when there is nothing to do.
    pub(super) remedy: Option<String>,
}

/// It is as it should be.
pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    Finding { name, state: State::Ok, found: found.into(), consequence: None, remedy: None }
}

/// Something may go wrong.
pub(super) fn warn(
    name: &'static str,
    found: impl Into<String>,
    consequence: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    bad(State::Warn, name, found.into(), consequence.into(), remedy.into())
}

/// Enforcement cannot be guaranteed.
pub(super) fn fail(
    name: &'static str,
    found: impl Into<String>,
    consequence: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    bad(State::Fail, name, found.into(), consequence.into(), remedy.into())
}

fn bad(state: State, name: &'static str, found: String, consequence: String, remedy: String) -> Finding {
    Finding { name, state, found, consequence: Some(consequence), remedy: Some(remedy) }
}

/// A list for a person: the first few, and how many more there are.
pub(super) fn shortened(items: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
