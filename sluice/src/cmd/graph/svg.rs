//! The graph as a picture: clients on the left, servers on the right.

use std::collections::BTreeMap;

use layout::backends::svg::SVGWriter;
use layout::core::base::Orientation;
use layout::core::color::Color;
use layout::core::geometry::{Point, get_size_for_str, pad_shape_scalar};
use layout::core::style::{LineStyleKind, StyleAttr};
use layout::std_shapes::shapes::{Arrow, Element, LineEndKind, ShapeKind};
use layout::topo::layout::VisualGraph;

use super::{Counts, Pair, is_only_denied, label, nodes};

/// Edges beyond which a picture is no help, and its layout takes minutes.
pub(super) const MOST_EDGES: usize = 500;

const FONT: usize = 14;
const WAY: Orientation = Orientation::LeftToRight;

/// SVG of all edges; `None` when there are more than [`MOST_EDGES`].
pub(super) fn svg(edges: &[(Pair, Counts)]) -> Option<String> {
    if edges.len() > MOST_EDGES {
        return None;
    }
    let mut graph = VisualGraph::new(WAY);
    let names = nodes(edges);
    let handles: BTreeMap<&str, _> = names.keys().map(|name| (*name, graph.add_node(node(name)))).collect();
    for (pair, counts) in edges {
        let (line, color) = if is_only_denied(counts) {
            (LineStyleKind::Dashed, "red")
        } else {
            (LineStyleKind::Normal, "black")
        };
        let look = StyleAttr::new(Color::fast(color), 1, None, 0, FONT);
        let label = label(pair, counts);
        let arrow = Arrow::new(LineEndKind::None, LineEndKind::Arrow, line, &label, &look, &None, &None);
        graph.add_edge(arrow, handles[&*pair.from], handles[&*pair.to]);
    }
    let mut writer = SVGWriter::new();
    if !handles.is_empty() {
        graph.do_it(false, false, false, &mut writer);
    }
    Some(writer.finalize() + "\n")
}

fn node(name: &str) -> Element {
    let look = StyleAttr::new(Color::fast("black"), 1, Some(Color::fast("white")), 4, FONT);
    let size: Point = pad_shape_scalar(get_size_for_str(name, FONT), 10.0);
    Element::create(ShapeKind::new_box(name), look, WAY, size)
}
