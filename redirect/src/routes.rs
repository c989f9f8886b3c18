//! The routing rule and the route that carry the proxy's packets to the local table, in each family.
//!
//! Both are written with routing protocol number 93, so that leftovers are known for ours whatever the
//! configuration says by then.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::spec::RedirectSpec;
use crate::survey::MarkRule;

/// Not in iproute2's etc/rt_protos.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(93);
/// The loopback device is the first of every namespace (LOOPBACK_IFINDEX, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Why a routing rule or a route could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No rtnetlink socket.
    #[error("open rtnetlink")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{action}: {cause}{}", hint(cause))]
    Refused {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        cause: io::Error,
    },
    /// Something else stands in the table.
    #[error(
        "routing table {table} holds {found}, which is not Sluice's: give redirect.route_table the number of a table that nobody uses"
    )]
    Occupied {
        /// The table.
        table: u32,
        /// The first such route.
        found: String,
    },
    /// The rule and the route are in place, and lead nowhere: somebody's rule comes before.
    #[error(
        "the proxy's packets for {address} are not delivered to this node ({found}): an `ip rule` before \
         redirect.rule_priority {priority} leads them elsewhere; take it away, or give Sluice's a lower number"
    )]
    Diverted {
        /// What was asked for, a pod where one is known.
        address: IpAddr,
        /// What the kernel does instead.
        found: String,
        /// The priority of our rule.
        priority: u32,
    },
    /// The exchange itself failed.
    #[error("{action}")]
    Exchange {
        /// What was asked.
        action: &'static str,
        /// What went wrong.
        #[source]
        cause: Box<rtnetlink::Error>,
    },
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NetworkDown => " (is lo down? `ip link set lo up`)",
        // A route by lo of a family that is turned off there (net/ipv6/route.c, fib6_nh_init).
        _ if cause.raw_os_error() == Some(EACCES) => {
            " (is IPv6 turned off? `sysctl net.ipv6.conf.lo.disable_ipv6`; without it, start Sluice again)"
        }
        io::ErrorKind::PermissionDenied => " (needs CAP_NET_ADMIN: run as root)",
        _ => "",
    }
}

impl RouteError {
    pub(crate) fn of(action: &'static str, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused { action, cause: message.to_io() },
            error => Self::Exchange { action, cause: Box::new(error) },
        }
    }

    fn number(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the caller lacks the privilege.
    pub(crate) fn not_permitted(&self) -> bool {
        self.number() == Some(EPERM)
    }
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;

/// What must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteSpec {
    pub(crate) mark: u32,
    pub(crate) table: u32,
    pub(crate) priority: u32,
    pub(crate) ipv6: bool,
}

impl RouteSpec {
    pub(crate) fn of(spec: &RedirectSpec) -> Self {
        Self {
            mark: spec.marks.proxy,
            table: spec.route_table,
            priority: spec.rule_priority,
            ipv6: spec.ipv6,
        }
    }

    fn versions(self) -> impl Iterator<Item = IpVersion> {
        [IpVersion::V4, IpVersion::V6].into_iter().take(if self.ipv6 { 2 } else { 1 })
    }
}

/// An rtnetlink connection, in the network namespace of the thread that opened it.
pub(crate) struct Routes {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Routes {
    pub(crate) fn open() -> Result<Self, RouteError> {
        // Strict checking makes the kernel filter dumps by table (Linux 4.20); without it the answer is
        // longer and the same.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .map_err(RouteError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// For other questions to the same namespace.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Adds what is missing and removes rules of ours that are not wanted. Says what it did. A default
    /// route of somebody else in our route's place is not ours to replace, and an error; other routes are theirs.
    pub(crate) async fn ensure(&self, want: RouteSpec) -> Result<Vec<&'static str>, RouteError> {
        let mut done = Vec::new();
        for version in want.versions() {
            let mut found = false;
            for rule in self.rules(version.clone()).await? {
                if wanted(&rule, want) && !found {
                    found = true;
                } else if ours(&rule, None) {
                    self.delete_rule(rule).await?;
                    done.push("stale routing rule");
                }
            }
            let routes = self.routes(version.clone(), want.table).await?;
            if !routes.iter().any(is_local_default) {
                let is_default = |route: &&RouteMessage| route.header.destination_prefix_length == 0;
                if let Some(foreign) = routes.iter().find(is_default) {
                    return Err(RouteError::Occupied { table: want.table, found: described(foreign) });
                }
                self.add_route(version.clone(), want.table).await?;
                done.push("route");
            }
            if !found {
                self.add_rule(version, want).await?;
                done.push("routing rule");
            }
        }
        Ok(done)
    }

    /// Asks the kernel where it would send a packet of the proxy to each of these addresses: to this node, else something
    /// stands before our rule.
    pub(crate) async fn verify(&self, want: RouteSpec, to: &[IpAddr]) -> Result<(), RouteError> {
        for address in to {
            let mut request = towards(*address);
            request.attributes.push(RouteAttribute::Mark(want.mark));
            let mut answers = Box::pin(self.handle.route().get(request).execute());
            let found = match answers.try_next().await {
                Ok(Some(route)) if route.header.kind == RouteType::Local => continue,
                Ok(Some(route)) => described(&route),
                Ok(None) => "nowhere".to_owned(),
                Err(rtnetlink::Error::NetlinkError(message)) => message.to_io().to_string(),
                Err(error) => return Err(RouteError::of("ask for a route", error)),
            };
            return Err(RouteError::Diverted { address: *address, found, priority: want.priority });
        }
        Ok(())
    }

    /// Removes our rules and routes in both families; `want` adds those that look like ours without bearing
    /// the protocol number. Gives back a line for each.
    pub(crate) async fn remove(&self, want: RouteSpec) -> Result<Vec<String>, RouteError> {
        let mut removed = Vec::new();
        for version in want.versions() {
            let family = if version == IpVersion::V4 { "-4" } else { "-6" };
            let mut tables = vec![want.table];
            for rule in self.rules(version.clone()).await? {
                if ours(&rule, Some(want)) {
                    let (mark, table, priority) =
                        (mark_of(&rule).unwrap_or(0), table_of(&rule), priority_of(&rule));
                    tables.push(table);
                    self.delete_rule(rule).await?;
                    removed.push(format!(
                        "ip {family} rule priority {priority} fwmark {mark:#x}/{mark:#x} lookup {table}"
                    ));
                }
            }
            tables.sort_unstable();
            tables.dedup();
            for table in tables {
                for route in self.routes(version.clone(), table).await? {
                    if is_local_default(&route) {
                        self.delete_route(route).await?;
                        removed.push(format!("ip {family} route local default dev lo table {table}"));
                    }
                }
            }
        }
        Ok(removed)
    }

    /// Every rule that asks for a mark.
    pub(crate) async fn mark_rules(&self, version: IpVersion) -> Result<Vec<MarkRule>, RouteError> {
        let family = if version == IpVersion::V4 { 4 } else { 6 };
        let rules = self.rules(version).await?;
        let asks = rules.iter().filter_map(|rule| {
            let mark = mark_of(rule)?;
            Some(MarkRule {
                family,
                priority: priority_of(rule),
                mark,
                mask: mask_of(rule).unwrap_or(u32::MAX),
                table: table_of(rule),
                ours: ours(rule, None),
            })
        });
        Ok(asks.collect())
    }

    /// Whether the kernel routes by rules at all (CONFIG_IP_MULTIPLE_TABLES).
    pub(crate) async fn has_rules(&self, version: IpVersion) -> bool {
        self.rules(version).await.is_ok_and(|rules| !rules.is_empty())
    }

    async fn rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, RouteError> {
        let rules = self.handle.rule().get(version).execute().try_collect().await;
        rules.map_err(|error| RouteError::of("list routing rules", error))
    }

    pub(crate) async fn routes(
        &self,
        version: IpVersion,
        table: u32,
    ) -> Result<Vec<RouteMessage>, RouteError> {
        let mut request = RouteMessage::default();
        request.header.address_family = match version {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        request.attributes.push(RouteAttribute::Table(table));
        let routes: Result<Vec<RouteMessage>, _> =
            self.handle.route().get(request).execute().try_collect().await;
        match routes.map_err(|error| RouteError::of("list routes", error)) {
            Ok(routes) => Ok(routes.into_iter().filter(|route| route_table(route) == table).collect()),
            // A table that nobody has written to does not exist.
            Err(error) if error.number() == Some(ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn add_rule(&self, version: IpVersion, want: RouteSpec) -> Result<(), RouteError> {
        let mut request = self.handle.rule().add().action(RuleAction::ToTable);
        request = request.table_id(want.table).priority(want.priority).fw_mark(want.mark);
        let message = request.message_mut();
        message.header.family = match version {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        message.attributes.push(RuleAttribute::FwMask(want.mark));
        message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
        done_or(request.execute().await, "add routing rule", EEXIST)
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<(), RouteError> {
        done_or(self.handle.rule().del(rule).execute().await, "delete routing rule", ENOENT)
    }

    async fn add_route(&self, version: IpVersion, table: u32) -> Result<(), RouteError> {
        let (address, scope) = match version {
            IpVersion::V4 => (IpAddr::from(Ipv4Addr::UNSPECIFIED), RouteScope::Host),
            IpVersion::V6 => (IpAddr::from(Ipv6Addr::UNSPECIFIED), RouteScope::Universe),
        };
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .table_id(table)
            .kind(RouteType::Local)
            .protocol(PROTOCOL)
            .scope(scope)
            .output_interface(LOOPBACK)
            .build();
        route.header.address_family =
            if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        done_or(self.handle.route().add(route).execute().await, "add route", EEXIST)
    }

    async fn delete_route(&self, route: RouteMessage) -> Result<(), RouteError> {
        done_or(self.handle.route().del(route).execute().await, "delete route", ESRCH)
    }
}

/// Success, also when the kernel says with `already` that there was nothing to do.
fn done_or(
    outcome: Result<(), rtnetlink::Error>,
    action: &'static str,
    already: i32,
) -> Result<(), RouteError> {
    match outcome.map_err(|error| RouteError::of(action, error)) {
        Err(error) if error.number() == Some(already) => Ok(()),
        outcome => outcome,
    }
}

/// The question for the way to one address.
pub(crate) fn towards(address: IpAddr) -> RouteMessage {
    let (family, length, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request.attributes.push(RouteAttribute::Destination(destination));
    request
}

/// A route for people: what it does, and by which interface.
fn described(route: &RouteMessage) -> String {
    let kind = match route.header.kind {
        RouteType::Unicast => "a route",
        RouteType::Local => "a local route",
        RouteType::BlackHole => "a blackhole",
        RouteType::Unreachable | RouteType::Prohibit => "a refusal",
        _ => "another kind of route",
    };
    let interface = route
        .attributes
        .iter()
        .find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None });
    match interface {
        Some(index) => format!("{kind} by interface {index}"),
        None => kind.to_owned(),
    }
}

fn mark_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|a| if let RuleAttribute::FwMark(mark) = a { Some(*mark) } else { None })
}

fn mask_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|a| if let RuleAttribute::FwMask(mask) = a { Some(*mask) } else { None })
}

fn priority_of(rule: &RuleMessage) -> u32 {
    let priority = |a: &RuleAttribute| if let RuleAttribute::Priority(p) = a { Some(*p) } else { None };
    rule.attributes.iter().find_map(priority).unwrap_or(0)
}

fn table_of(rule: &RuleMessage) -> u32 {
    let table = |a: &RuleAttribute| if let RuleAttribute::Table(table) = a { Some(*table) } else { None };
    rule.attributes.iter().find_map(table).unwrap_or(u32::from(rule.header.table))
}

fn route_table(route: &RouteMessage) -> u32 {
    let table = |a: &RouteAttribute| if let RouteAttribute::Table(table) = a { Some(*table) } else { None };
    route.attributes.iter().find_map(table).unwrap_or(u32::from(route.header.table))
}

/// A rule of this shape: one mark bit leads to a table, and nothing else is asked.
fn plain(rule: &RuleMessage) -> bool {
    let selective = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
        )
    };
    rule.header.action == RuleAction::ToTable
        && rule.header.flags.is_empty()
        && rule.header.tos == 0
        && mark_of(rule).is_some_and(|mark| mark.is_power_of_two() && mask_of(rule) == Some(mark))
        && !rule.attributes.iter().any(selective)
}

fn wanted(rule: &RuleMessage, want: RouteSpec) -> bool {
    plain(rule)
        && mark_of(rule) == Some(want.mark)
        && table_of(rule) == want.table
        && priority_of(rule) == want.priority
}

/// By the protocol number or, given `want`, by the same mark and table.
fn ours(rule: &RuleMessage, want: Option<RouteSpec>) -> bool {
    let signed = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
    let same = want.is_some_and(|want| mark_of(rule) == Some(want.mark) && table_of(rule) == want.table);
    plain(rule) && (signed || same)
}

fn is_local_default(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}
