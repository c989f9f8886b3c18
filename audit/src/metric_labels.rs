//! Labels that take only values listed here, and counters for each of these values.

use std::fmt;
use std::sync::Arc;

use flow::{Decision, EndCause};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A closed set of values for one metric label.
pub trait Label: Copy + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value.
    const ALL: &'static [Self];
    /// The value as it is exported.
    fn value(self) -> &'static str;
    /// Where the value stands in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value),* }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Which side refused a connection.
    DeniedSide, "side" {
        /// Egress at the source, whatever ingress said.
        Egress = "egress",
        /// Ingress at the destination, egress having allowed.
        Ingress = "ingress",
        /// Neither: no side had a say, and it was refused all the same.
        None = "none",
    }
}

label! {
    /// Which way bytes went.
    ByteDirection, "direction" {
        /// From clients to servers.
        Sent = "sent",
        /// From servers to clients.
        Received = "received",
    }
}

label! {
    /// Why the gate dropped a packet without a decision.
    GateDrop, "reason" {
        /// A limit of the whole process was reached.
        Overload = "overload",
        /// One client holds too many attempts.
        Flood = "flood",
        /// A retransmission of a SYN that is already held.
        Duplicate = "duplicate",
        /// No TCP SYN that could be read.
        Malformed = "malformed",
        /// The kernel's queue was full, and the packet never reached this process.
        QueueFull = "queue-full",
        /// The process is stopping.
        Shutdown = "shutdown",
    }
}

impl Label for EndCause {
    const NAME: &'static str = "cause";
    const ALL: &'static [Self] = &EndCause::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl DeniedSide {
    /// The side that `decision` was refused by; egress is asked first.
    pub fn of(decision: &Decision) -> Self {
        if !decision.egress.verdict.is_allow() {
            Self::Egress
        } else if !decision.ingress.verdict.is_allow() {
            Self::Ingress
        } else {
            Self::None
        }
    }
}

/// One counter for every value of a label, found without a lock.
#[derive(Debug)]
pub struct PerLabel<L> {
    counters: Arc<[Counter]>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> PerLabel<L> {
    /// The counter for `value`.
    pub fn of(&self, value: L) -> &Counter {
        &self.counters[value.index()]
    }
}

impl<L> Clone for PerLabel<L> {
    fn clone(&self) -> Self {
        Self { counters: Arc::clone(&self.counters), label: std::marker::PhantomData }
    }
}

impl<L: Label> Default for PerLabel<L> {
    fn default() -> Self {
        Self {
            counters: L::ALL.iter().map(|_| Counter::default()).collect(),
            label: std::marker::PhantomData,
        }
    }
}

impl<L> TypedMetric for PerLabel<L> {
    const TYPE: MetricType = MetricType::Counter;
}

impl<L: Label> EncodeMetric for PerLabel<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for value in L::ALL {
            let labels = [(L::NAME, value.value())];
            self.of(*value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
