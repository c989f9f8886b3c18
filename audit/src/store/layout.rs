//! How a file of the store is laid out.
//!
//! What many records say alike is kept once: who stands at an end, what a side decided, names of things. A row has
//! numbers of those and what is its own, some hundred bytes. The view `records` puts the columns that people ask for
//! and the whole line together again, in SQL alone, so that any sqlite3 reads them.
//!
//! Rows are only ever appended, and no index is kept while they are. Every [`BLOCK`] rows a row of `blocks` says what
//! is among them: their times, the words, ports and decisions in them, and who stands at their ends, row by row. The rows behind the last
//! block, or all of them when a process was killed early, are simply read.

use crate::line::{ECS_VERSION, SCHEMA, outcome, types};
use crate::record::Action;

/// `PRAGMA user_version` of a file; another one is another layout.
pub(super) const LAYOUT: i32 = 3;
/// Rows that are told of together.
pub(super) const BLOCK: usize = 4096;

const TABLES: &str = "
CREATE TABLE about (node TEXT NOT NULL, process TEXT NOT NULL);     -- one row: who wrote this file
CREATE TABLE words (id INTEGER PRIMARY KEY, text TEXT NOT NULL);    -- actions, causes, protocols, directions
CREATE TABLE parts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);    -- decisions, Services, reasons, hellos, as JSON
CREATE TABLE ends (
    id INTEGER PRIMARY KEY,
    ip TEXT NOT NULL,
    namespace TEXT, pod TEXT,
    k8s TEXT NOT NULL               -- as JSON
);
CREATE TABLE connections (
    number INTEGER PRIMARY KEY,     -- in the order in which they were written
    time INTEGER NOT NULL,          -- nanoseconds since 1970
    action INTEGER NOT NULL,        -- a word, as all that follow
    cause INTEGER, protocol INTEGER, direction INTEGER,
    source INTEGER NOT NULL,        -- an end; 0 where nobody is known behind the address
    destination INTEGER NOT NULL,
    source_ip TEXT, destination_ip TEXT,    -- where no end has them
    source_port INTEGER, destination_port INTEGER,
    connection INTEGER,             -- the second half of event.id
    duration INTEGER,
    source_bytes INTEGER, destination_bytes INTEGER,
    egress INTEGER, ingress INTEGER,        -- parts, as the three that follow
    service INTEGER, reason INTEGER, tls INTEGER,
    upstream_port INTEGER,          -- of the leg to the server, where it differs from the client's
    sequence INTEGER NOT NULL,
    age INTEGER,                    -- time less event.start
    has_end INTEGER,
    source_packets INTEGER, destination_packets INTEGER,
    generation INTEGER,
    decide_us INTEGER, connect_us INTEGER,
    client_rtt_us INTEGER, client_retransmits INTEGER,
    server_rtt_us INTEGER, server_retransmits INTEGER,
    hairpin INTEGER,
    community TEXT,                 -- network.community_id behind its version
    upstream_ip TEXT,               -- where it is not the client's
    line TEXT                       -- the whole line, where the columns cannot tell it
);
CREATE TABLE blocks (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL,   -- numbers of its rows
    oldest INTEGER NOT NULL, newest INTEGER NOT NULL,   -- times
    words INTEGER NOT NULL,         -- a bit for each of the words 0 to 62; the sign where a row has a line
    ports INTEGER NOT NULL,         -- a bit for each port of a server; some share one
    parts INTEGER NOT NULL,         -- and for each decision and Service
    longest INTEGER NOT NULL, largest INTEGER NOT NULL, -- duration, and bytes both ways; -1 where no row tells
    ends BLOB NOT NULL              -- for each end its rows; see blocks.rs of Sluice's sources
);
";

/// Columns of `connections`, in their order.
pub(super) const COLUMNS: usize = 38;

/// Everything that makes a new file, but for what `about` says.
pub(super) fn schema() -> String {
    format!("{TABLES}{}PRAGMA user_version = {LAYOUT};", view())
}

/// A field that is left out where its value is NULL: joining text to NULL gives NULL.
fn optional(before: &str, value: &str, after: &str) -> String {
    format!("coalesce('{before}' || {value} || '{after}', '')")
}

/// Nanoseconds since 1970 as RFC 3339.
fn time(nanos: &str) -> String {
    format!(
        "strftime('%Y-%m-%dT%H:%M:%S', ({nanos}) / 1000000000, 'unixepoch') || printf('.%09dZ', ({nanos}) % 1000000000)"
    )
}

/// One end of a connection, without its closing brace.
fn end(side: &str, joined: &str) -> String {
    let bytes = optional(",\"bytes\":", &format!("c.{side}_bytes"), "");
    let packets = optional(",\"packets\":", &format!("c.{side}_packets"), "");
    let k8s = optional(",\"k8s\":", &format!("{joined}.k8s"), "");
    format!(
        "'\"{side}\":{{\"ip\":\"' || coalesce(c.{side}_ip, {joined}.ip) || '\",\"port\":' || c.{side}_port || \
         {bytes} || {packets} || {k8s}"
    )
}

/// Both legs, if anything is known of one of them.
fn legs() -> String {
    let leg = |name: &str| {
        format!(
            "'\"{name}\":{{\"rtt_us\":' || c.{name}_rtt_us || ',\"retransmits\":' || c.{name}_retransmits || '}}'"
        )
    };
    let (client, server) = (leg("client"), leg("server"));
    let both = format!("coalesce({client} || ',' || {server}, {client}, {server})");
    optional("\"tcp\":{", &both, "},")
}

fn timing() -> String {
    let (decide, connect) = ("'\"decide_us\":' || c.decide_us", "'\"connect_us\":' || c.connect_us");
    format!("'\"timing\":{{' || coalesce({decide} || ',' || {connect}, {decide}, {connect}, '') || '}}'")
}

/// What follows from the action.
fn action() -> String {
    let actions =
        [Action::Started, Action::Updated, Action::Ended, Action::Denied, Action::Failed].map(|action| {
            format!(
                "WHEN '{name}' THEN '[{types}],\"action\":\"{name}\",\"outcome\":\"{outcome}\"'",
                name = action.as_str(),
                types = types(action),
                outcome = outcome(action)
            )
        });
    format!("CASE a.text {} END", actions.join(" "))
}

/// The line of a record, piece by piece, as `line.rs` writes it.
fn line() -> String {
    let pieces = [
        format!(
            "'{{\"@timestamp\":\"' || {} || '\",\"ecs\":{{\"version\":\"{ECS_VERSION}\"}},'",
            time("c.time")
        ),
        format!("'\"event\":{{\"kind\":\"event\",\"category\":[\"network\"],\"type\":' || {}", action()),
        "',\"id\":\"' || about.process || '-' || printf('%x', c.connection) || '\",\"sequence\":' || c.sequence"
            .to_owned(),
        format!("',\"start\":\"' || {} || '\"'", time("c.time - c.age")),
        format!("CASE WHEN c.has_end THEN ',\"end\":\"' || {} || '\"' ELSE '' END", time("c.time")),
        optional(",\"duration\":", "c.duration", ""),
        optional(",\"reason\":", "r.text", ""),
        "'},\"network\":{\"transport\":\"' || p.text || '\",\"type\":\"'".to_owned(),
        "CASE WHEN instr(coalesce(c.source_ip, s.ip), ':') THEN 'ipv6' ELSE 'ipv4' END".to_owned(),
        "'\",\"direction\":\"' || w.text || '\",\"community_id\":\"1:' || c.community || '\"},'".to_owned(),
        end("source", "s"),
        "'},'".to_owned(),
        end("destination", "d"),
        optional(",\"service\":", "v.text", ""),
        "'},'".to_owned(),
        legs(),
        optional("\"tls\":", "t.text", ","),
        "'\"observer\":{\"name\":' || about.node || ',\"product\":\"sluice\"},'".to_owned(),
        format!("'\"sluice\":{{\"schema\":{SCHEMA},\"generation\":' || c.generation"),
        "',\"egress\":' || e.text || ',\"ingress\":' || i.text".to_owned(),
        optional(",\"end_cause\":\"", "b.text", "\""),
        optional(
            ",\"upstream\":{\"ip\":\"",
            "coalesce(c.upstream_ip, c.source_ip, s.ip) || '\",\"port\":' || c.upstream_port",
            "}",
        ),
        "CASE WHEN c.hairpin THEN ',\"hairpin\":true' ELSE '' END".to_owned(),
        format!("',' || {} || '}}}}'", timing()),
    ];
    pieces.join(" || ")
}

fn view() -> String {
    format!(
        "CREATE VIEW records AS SELECT
    c.number, c.time, c.sequence, a.text AS action,
    about.process || '-' || printf('%x', c.connection) AS id,
    coalesce(c.source_ip, s.ip) AS source_ip, c.source_port,
    s.namespace AS source_namespace, s.pod AS source_pod,
    coalesce(c.destination_ip, d.ip) AS destination_ip, c.destination_port,
    d.namespace AS destination_namespace, d.pod AS destination_pod,
    b.text AS end_cause, c.duration, c.source_bytes, c.destination_bytes,
    coalesce(c.line, {line}) AS line
FROM connections AS c CROSS JOIN about
LEFT JOIN ends AS s ON s.id = c.source LEFT JOIN ends AS d ON d.id = c.destination
LEFT JOIN words AS a ON a.id = c.action LEFT JOIN words AS b ON b.id = c.cause
LEFT JOIN words AS p ON p.id = c.protocol LEFT JOIN words AS w ON w.id = c.direction
LEFT JOIN parts AS e ON e.id = c.egress LEFT JOIN parts AS i ON i.id = c.ingress
LEFT JOIN parts AS v ON v.id = c.service LEFT JOIN parts AS r ON r.id = c.reason
LEFT JOIN parts AS t ON t.id = c.tls;
",
        line = line()
    )
}
