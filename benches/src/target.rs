//! What Sluice has to reach, as ratios in one run or as plain bounds.

use std::fmt;

/// A bound on one figure.
#[derive(Debug)]
pub(crate) struct Target {
    /// The figure's name in the table.
    pub(crate) figure: &'static str,
    /// The subject whose figure it is divided by; `None` for the figure itself.
    pub(crate) against: Option<&'static str>,
    pub(crate) bound: Bound,
}

/// Inclusive.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const fn ratio(figure: &'static str, against: &'static str, bound: Bound) -> Target {
    Target { figure, against: Some(against), bound }
}

/// Beside HAProxy and beside no proxy.
pub(crate) const TARGETS: &[Target] = &[
    ratio("bulk, 1 stream", "haproxy", Bound::AtLeast(1.0)),
    ratio("bulk, 1 stream", "direct", Bound::AtLeast(0.9)),
    ratio("bulk, 1 stream, proxy CPU", "haproxy", Bound::AtMost(0.8)),
    ratio("connections, 16 clients", "haproxy", Bound::AtLeast(1.0)),
    ratio("connections, 16 clients, p99", "haproxy", Bound::AtMost(0.8)),
    ratio("connections, 16 clients, proxy CPU", "haproxy", Bound::AtMost(1.0)),
    ratio("exchange 64 B, 1 connection, p50", "haproxy", Bound::AtMost(1.0)),
    ratio("exchange 64 B, 1 connection, p99", "haproxy", Bound::AtMost(1.0)),
    ratio("64 B beside a bulk stream, p99", "haproxy", Bound::AtMost(1.0)),
    Target { figure: "memory per idle connection", against: None, bound: Bound::AtMost(2.0) },
    Target { figure: "10,000 denied SYN/s, proxy CPU", against: None, bound: Bound::AtMost(0.5) },
];

impl Target {
    pub(crate) fn is_met_by(&self, value: f64) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.against {
            Some(against) => write!(f, "{} ÷ {against}", self.figure)?,
            None => f.write_str(self.figure)?,
        }
        match self.bound {
            Bound::AtLeast(bound) => write!(f, " | ≥ {bound}"),
            Bound::AtMost(bound) => write!(f, " | ≤ {bound}"),
        }
    }
}
