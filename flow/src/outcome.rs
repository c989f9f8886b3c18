//! How a connection ended.

/// What became of a connection, in the three ways a record can close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was carried, then ended.
    Ended,
    /// A decision refused it.
    Denied,
    /// It was allowed, and could not be established.
    Failed,
}

/// Who or what ended a connection, and in which way. The name goes into `sluice.end_cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndCause {
    /// The client closed first and both directions finished.
    ClientClosed,
    /// The server closed first and both directions finished.
    ServerClosed,
    /// The client reset it.
    ClientReset,
    /// The server reset it.
    ServerReset,
    /// Policy refused it before it was established.
    PolicyDenied,
    /// A change of policy, labels or pods ended it while it was live.
    PolicyRevoked,
    /// The server answered the connection attempt with a reset.
    Refused,
    /// The network answered the connection attempt with an ICMP error.
    Unreachable,
    /// The server did not answer within the limit.
    ConnectTimeout,
    /// The client gave up before the connection was established.
    ClientGone,
    /// No byte moved for the configured limit.
    IdleTimeout,
    /// A flow that the kernel carries, of UDP or SCTP and sometimes of TCP: without a packet for conntrack's limit, or
    /// closed by its ends.
    FlowTimeout,
    /// The process was told to stop and the drain limit passed.
    Shutdown,
    /// A limit of this process was reached: descriptors, pending connections, memory.
    Overload,
    /// One client has as many as a limit of this process leaves to each.
    ClientLimit,
    /// Its record could not have been kept, and connections without one are not wanted.
    RecordsFull,
    /// A leg stopped answering: keepalive or retransmission ran out.
    PeerTimeout,
    /// An error of this process: a failed system call or a panic. Never an allow.
    InternalError,
}

impl EndCause {
    /// Every cause, for tables and metrics.
    pub const ALL: [Self; 18] = [
        Self::ClientClosed,
        Self::ServerClosed,
        Self::ClientReset,
        Self::ServerReset,
        Self::PolicyDenied,
        Self::PolicyRevoked,
        Self::Refused,
        Self::Unreachable,
        Self::ConnectTimeout,
        Self::ClientGone,
        Self::IdleTimeout,
        Self::FlowTimeout,
        Self::Shutdown,
        Self::Overload,
        Self::ClientLimit,
        Self::RecordsFull,
        Self::PeerTimeout,
        Self::InternalError,
    ];

    /// The name in records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client-closed",
            Self::ServerClosed => "server-closed",
            Self::ClientReset => "client-reset",
            Self::ServerReset => "server-reset",
            Self::PolicyDenied => "policy-denied",
            Self::PolicyRevoked => "policy-revoked",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect-timeout",
            Self::ClientGone => "client-gone",
            Self::IdleTimeout => "idle-timeout",
            Self::FlowTimeout => "flow-timeout",
            Self::Shutdown => "shutdown",
            Self::Overload => "overload",
            Self::ClientLimit => "client-limit",
            Self::RecordsFull => "records-full",
            Self::PeerTimeout => "peer-timeout",
            Self::InternalError => "internal-error",
        }
    }
}
