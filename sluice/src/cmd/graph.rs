//! `sluice graph`: who talks to whom, from records, as a graph for other tools.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use super::observe::Selection;
use super::observe::edges::{Counts, Edges, Pair};
use super::observe::print::scaled;

mod svg;

/// Arguments of `sluice graph`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// What to print
    #[arg(long, short, value_enum, default_value_t = Form::Dot)]
    output: Form,
}

/// The form of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For Graphviz: `| dot -Tsvg`
    Dot,
    /// For Markdown
    Mermaid,
    /// A picture, of up to 500 edges
    Svg,
    /// Nodes and edges with their counts
    Json,
}

/// Runs the command.
pub(crate) fn execute(args: &Args) -> anyhow::Result<ExitCode> {
    let mut edges = Edges::default();
    args.selection.add_up(&mut edges)?;
    let edges = edges.all();
    let text = match args.output {
        Form::Dot => dot(&edges),
        Form::Mermaid => mermaid(&edges),
        Form::Svg => svg::svg(&edges).with_context(|| {
            format!("more than {} edges are no picture: filter, or -o dot for Graphviz", svg::MOST_EDGES)
        })?,
        Form::Json => json(&edges) + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Every name and its number.
fn nodes(edges: &[(Pair, Counts)]) -> BTreeMap<&str, usize> {
    let mut nodes: BTreeMap<&str, usize> =
        edges.iter().flat_map(|(pair, _)| [&*pair.from, &*pair.to]).map(|name| (name, 0)).collect();
    nodes.values_mut().enumerate().for_each(|(number, node)| *node = number);
    nodes
}

/// What stands at an edge.
fn label(pair: &Pair, counts: &Counts) -> String {
    let mut label = format!("{}/{}", pair.port, pair.protocol);
    if counts.carried > 0 {
        let _ = write!(label, ", {} carried, {}B", counts.carried, scaled(counts.bytes));
    }
    if counts.denied > 0 {
        let _ = write!(label, ", {} denied", counts.denied);
    }
    if counts.failed > 0 {
        let _ = write!(label, ", {} failed", counts.failed);
    }
    label
}

fn is_only_denied(counts: &Counts) -> bool {
    counts.carried == 0 && counts.denied > 0
}

fn dot(edges: &[(Pair, Counts)]) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = "digraph sluice {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for name in nodes(edges).keys() {
        let _ = writeln!(text, "  \"{}\";", quoted(name));
    }
    for (pair, counts) in edges {
        let style = if is_only_denied(counts) { ", color=red, style=dashed" } else { "" };
        let (from, to) = (quoted(&pair.from), quoted(&pair.to));
        let _ =
            writeln!(text, "  \"{from}\" -> \"{to}\" [label=\"{}\"{style}];", quoted(&label(pair, counts)));
    }
    text + "}\n"
}

fn mermaid(edges: &[(Pair, Counts)]) -> String {
    let quoted = |text: &str| text.replace('"', "#quot;");
    let nodes = nodes(edges);
    let mut text = "graph LR\n".to_owned();
    for (name, number) in &nodes {
        let _ = writeln!(text, "  n{number}[\"{}\"]", quoted(name));
    }
    for (pair, counts) in edges {
        let arrow = if is_only_denied(counts) { "-.->" } else { "-->" };
        let (from, to) = (nodes[&*pair.from], nodes[&*pair.to]);
        let _ = writeln!(text, "  n{from} {arrow}|\"{}\"| n{to}", quoted(&label(pair, counts)));
    }
    text
}

fn json(edges: &[(Pair, Counts)]) -> String {
    let nodes: Vec<&str> = nodes(edges).into_keys().collect();
    let edges: Vec<_> = edges
        .iter()
        .map(|(pair, counts)| {
            json!({
                "from": pair.from, "to": pair.to, "port": pair.port, "protocol": pair.protocol,
                "carried": counts.carried, "denied": counts.denied, "failed": counts.failed, "bytes": counts.bytes,
            })
        })
        .collect();
    format!("{:#}", json!({"nodes": nodes, "edges": edges}))
}

#[cfg(test)]
mod tests {
    use audit::Glance;

    use super::super::observe::edges::tests::record;
    use super::*;

    fn edges() -> Vec<(Pair, Counts)> {
        let mut edges = Edges::default();
        let mut denied = record("connection-denied", "2", 0);
        denied["source"] = json!({"ip": "192.0.2.1", "port": 1});
        denied["destination"]["k8s"]["pod"] = json!("d\"b");
        for record in [record("connection-ended", "1", 2048), denied] {
            edges.add(&Glance::from(&record));
        }
        edges.all()
    }

    #[test]
    fn a_graph_for_graphviz_and_one_for_markdown_name_every_node_and_edge() {
        assert_eq!(
            dot(&edges()),
            "digraph sluice {\n  rankdir=LR;\n  node [shape=box];\n  \"external\";\n  \"shop/d\\\"b\";\n  \
             \"shop/db\";\n  \"shop/web\";\n  \"external\" -> \"shop/d\\\"b\" [label=\"5432/TCP, 1 denied\", \
             color=red, style=dashed];\n  \"shop/web\" -> \"shop/db\" [label=\"5432/TCP, 1 carried, 2.0KB\"];\n}\n"
        );
        assert_eq!(
            mermaid(&edges()),
            "graph LR\n  n0[\"external\"]\n  n1[\"shop/d#quot;b\"]\n  n2[\"shop/db\"]\n  n3[\"shop/web\"]\n  \
             n0 -.->|\"5432/TCP, 1 denied\"| n1\n  n3 -->|\"5432/TCP, 1 carried, 2.0KB\"| n2\n"
        );
    }

    #[test]
    fn a_picture_names_every_node_and_edge_and_marks_what_is_only_denied() {
        let picture = svg::svg(&edges()).unwrap();
        for text in ["external", "shop/web", "shop/db", "shop/d&quot;b", "1 carried, 2.0KB", "1 denied"] {
            assert!(picture.contains(text), "{text} in {picture}");
        }
        assert!(picture.contains("stroke-dasharray") && picture.contains("#ff0000"), "{picture}");
        let (opened, closed) = (picture.matches("<svg").count(), picture.matches("</svg>").count());
        assert_eq!((opened, closed), (1, 1));
        assert!(svg::svg(&[]).unwrap().contains("<svg"), "nothing is an empty picture");
    }

    /// A pair's edges in both directions, on many ports, and to itself; chains and stars.
    #[test]
    fn a_picture_is_made_of_any_graph_of_bounded_size() {
        let edge = |from: &str, to: &str, port: u16| {
            let mut edge = record("connection-ended", "1", 1);
            edge["source"]["k8s"]["owner"]["name"] = json!(from);
            edge["destination"]["k8s"] = json!({"namespace": "shop", "pod": to});
            edge["destination"]["port"] = json!(port);
            edge
        };
        let mut edges = Edges::default();
        for number in 0..60_u16 {
            let name = |number: u16| format!("w{}", number % 20);
            edges.add(&Glance::from(&edge(&name(number), &name(number + 1), 80)));
            edges.add(&Glance::from(&edge(&name(number + 1), &name(number), number)));
            edges.add(&Glance::from(&edge("hub", &name(number), 443)));
            edges.add(&Glance::from(&edge("hub", "hub", number)));
        }
        assert!(edges.all().len() > 100);
        assert!(svg::svg(&edges.all()).unwrap().contains("shop/w19"));
        for port in 0..=u16::try_from(svg::MOST_EDGES).unwrap() {
            edges.add(&Glance::from(&edge("hub", "w1", port)));
        }
        assert_eq!(svg::svg(&edges.all()), None);
    }

    #[test]
    fn a_graph_as_json_has_the_counts() {
        let graph: serde_json::Value = serde_json::from_str(&json(&edges())).unwrap();
        assert_eq!(graph["nodes"].as_array().unwrap().len(), 4);
        assert_eq!(
            graph["edges"][1],
            json!({"from": "shop/web", "to": "shop/db", "port": 5432, "protocol": "TCP", "carried": 1, "denied": 0,
                   "failed": 0, "bytes": 2048})
        );
    }
}
