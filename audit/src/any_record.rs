//! Records of every shape, for tests that compare two ways of writing them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow::{
    ClientAddr, Decision, EndCause, Endpoint, Generation, Labels, OrigDst, Owner, Pod, Policies, PolicyKind,
    PolicyRef, Protocol, Reason, Service, SideVerdict, Tier, Tuple, Uid, UpstreamSource, Verdict, Workload,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::record::{Action, ConnectionId, LegInfo, Legs, Record, Timing, Tls, Traffic};

/// Text as names and messages have it, or as somebody hostile has.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z][a-z0-9.-]{0,40}", 1 => ".{0,12}", 1 => Just("\"\\\n\u{1}\u{7f}ß{}".to_owned())]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// Mostly as clocks are, sometimes far off.
fn moment() -> impl Strategy<Value = SystemTime> {
    let usual = (1_700_000_000_u64..1_900_000_000, 0_u32..1_000_000_000)
        .prop_map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
    let far = (0_u64..1 << 41).prop_map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let before = (0_u64..1 << 33, 0_u32..1_000_000_000)
        .prop_map(|(seconds, nanos)| SystemTime::UNIX_EPOCH - Duration::new(seconds, nanos));
    prop_oneof![20 => usual, 1 => far, 1 => before]
}

fn span() -> impl Strategy<Value = Duration> {
    prop_oneof![
        9 => (0_u64..1 << 40).prop_map(Duration::from_nanos),
        1 => (any::<u64>(), 0_u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos)),
    ]
}

fn pod() -> impl Strategy<Value = Endpoint> {
    let uid =
        prop_oneof![Just(String::new()), text(), Just("0f8fad5b-d9cb-469f-a165-70867728950e".to_owned())];
    let owner = option::of((text(), text()))
        .prop_map(|owner| owner.map(|(kind, name)| Owner { kind: kind.into(), name: name.into() }));
    let labels = vec((text(), text()), 0..4).prop_map(Labels::from_iter);
    (text(), text(), uid, option::of(text()), any::<bool>(), owner, labels).prop_map(
        |(namespace, name, uid, node, local, owner, labels)| {
            let workload = Arc::new(Workload { namespace: namespace.into(), labels, owner });
            let (uid, node) = (Uid::new(&uid), node.map(Into::into));
            Endpoint::Pod(Arc::new(Pod { workload, name: name.into(), uid, node, local }))
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    prop_oneof![
        4 => pod(),
        1 => (text(), any::<bool>()).prop_map(|(name, own)| Endpoint::Node { name: name.into(), own }),
        1 => select(vec![Endpoint::UnknownLocal, Endpoint::External]),
    ]
}

fn side() -> impl Strategy<Value = SideVerdict> {
    let kinds = vec![
        PolicyKind::NetworkPolicy,
        PolicyKind::ClusterNetworkPolicy,
        PolicyKind::AdminNetworkPolicy,
        PolicyKind::BaselineAdminNetworkPolicy,
    ];
    let policy = (select(kinds), option::of(text()), text(), option::of(any::<u32>())).prop_map(
        |(kind, namespace, name, rule)| PolicyRef {
            kind,
            namespace: namespace.map(Into::into),
            name: name.into(),
            rule,
        },
    );
    let policies = option::of(vec(policy, 0..3))
        .prop_map(|policies| policies.map(|list| Policies::from(Arc::<[PolicyRef]>::from(list))));
    let tiers = vec![Tier::Admin, Tier::NetworkPolicy, Tier::Baseline, Tier::Default];
    let reasons = vec![Reason::NotApplicable, Reason::OtherNode, Reason::RuleMatched, Reason::NoRuleMatched];
    (any::<bool>(), option::of(select(tiers)), policies, select(reasons)).prop_map(
        |(is_allow, tier, policies, reason)| SideVerdict {
            verdict: if is_allow { Verdict::Allow } else { Verdict::Deny },
            tier,
            policies,
            reason,
        },
    )
}

fn decision() -> impl Strategy<Value = Decision> {
    let generation = prop_oneof![9 => 0_u64..100_000, 1 => any::<u64>()];
    (generation, side(), side()).prop_map(|(generation, egress, ingress)| Decision {
        generation: Generation(generation),
        egress,
        ingress,
    })
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let count = || prop_oneof![9 => 0_u64..1 << 42, 1 => any::<u64>()];
    (count(), count(), option::of(count()), option::of(count()), any::<bool>()).prop_map(
        |(client_bytes, server_bytes, client_packets, server_packets, uncounted)| Traffic {
            client_bytes,
            server_bytes,
            client_packets,
            server_packets,
            uncounted,
        },
    )
}

fn legs() -> impl Strategy<Value = Legs> {
    let leg = || {
        option::of((any::<u32>(), any::<u32>()))
            .prop_map(|leg| leg.map(|(rtt_us, retransmits)| LegInfo { rtt_us, retransmits }))
    };
    (leg(), leg()).prop_map(|(client, server)| Legs { client, server })
}

fn tls() -> impl Strategy<Value = Option<Box<Tls>>> {
    option::of((option::of(text()), vec(text(), 0..3))).prop_map(|tls| {
        tls.map(|(name, protocols)| {
            let protocols = protocols.into_iter().map(Into::into).collect();
            Box::new(Tls { server_name: name.map(Into::into), protocols })
        })
    })
}

fn service() -> impl Strategy<Value = Option<Service>> {
    option::of((text(), text(), address())).prop_map(|service| {
        service.map(|(namespace, name, address)| Service {
            namespace: namespace.into(),
            name: name.into(),
            address,
        })
    })
}

/// Any record that the datapath could describe, and some that it could not.
pub(crate) fn any_record() -> impl Strategy<Value = Record> {
    let actions = vec![Action::Started, Action::Updated, Action::Ended, Action::Denied, Action::Failed];
    let protocols = vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let causes = EndCause::ALL.to_vec();
    let who = (select(actions), select(protocols), address(), address(), endpoint(), endpoint(), service());
    let said = (decision(), option::of(decision()), option::of(select(causes)), option::of(text()), tls());
    let when = (moment(), option::of(moment()), option::of(span()), option::of(span()), option::of(span()));
    let counted = (traffic(), legs(), option::of(address()), any::<bool>());
    (who, said, when, counted).prop_map(|(who, said, when, counted)| {
        let (action, protocol, client, server, source, destination, service) = who;
        let (decision, revoked_by, cause, detail, tls) = said;
        let (start, end, duration, decide, connect) = when;
        let (traffic, legs, upstream, hairpin) = counted;
        Record {
            action,
            id: ConnectionId::next(),
            tuple: Tuple { protocol, client: ClientAddr(client), destination: OrigDst(server) },
            source,
            destination,
            service,
            decision,
            cause,
            revoked_by,
            start,
            end,
            duration,
            traffic,
            upstream_source: upstream.map(UpstreamSource),
            hairpin,
            timing: Timing { decide, connect },
            legs,
            tls,
            detail,
        }
    })
}
