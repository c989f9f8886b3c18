//! Settings of the node that only records and refusals need, and whether they are as they were after the installation.
//! Where they cannot be set, nothing else differs.

use crate::accounting;
use crate::bridge_settings::{self, Setting};
use crate::spec::RedirectSpec;

/// What holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// Conntrack counts, as it is asked to.
    counts: bool,
    /// No pod on a bridge is told of the shorter way.
    quiet: bool,
}

impl Kept {
    /// Looks at the network namespace of the calling thread.
    pub(crate) fn now(spec: &RedirectSpec) -> Self {
        let bridges = &spec.bridges;
        let quiet = || {
            !Setting::SendRedirects.is_on()
                && !bridges.iter().any(|bridge| bridge_settings::sends_redirects(&bridge.name))
        };
        Self {
            counts: spec.conntrack_accounting && accounting::is_on(),
            quiet: spec.bridge_settings && !bridges.is_empty() && quiet(),
        }
    }

    /// The settings that held and do so no more, by name.
    pub(crate) fn turned_back(self, now: Self) -> impl Iterator<Item = &'static str> {
        let counts = (self.counts && !now.counts).then_some(accounting::NAME);
        let quiet = (self.quiet && !now.quiet).then_some(Setting::SendRedirects.name());
        counts.into_iter().chain(quiet)
    }
}
