//! Figures → a table for benches/README.md.

use policy_bench::Shape;

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    unit: &'static str,
    value: f64,
    /// At most this.
    target: Option<f64>,
}

impl Row {
    pub(crate) fn new(name: &'static str, unit: &'static str, value: f64, target: Option<f64>) -> Self {
        Self { name, unit, value, target }
    }

    pub(crate) fn is_missed(&self) -> bool {
        self.target.is_some_and(|target| self.value > target)
    }
}

/// Prints the table.
pub(crate) fn print(shape: &Shape, rows: &[Row]) {
    println!(
        "{} pods, {} namespaces, {} NetworkPolicies, {} policies of other tiers, {} nodes\n",
        shape.pods, shape.namespaces, shape.policies, shape.tier_policies, shape.nodes
    );
    println!("| figure | unit | measured | target | |");
    println!("|---|---|---:|---|---|");
    for row in rows {
        let (target, state) = match row.target {
            None => (String::new(), ""),
            Some(target) => (format!("≤ {target}"), if row.is_missed() { "missed" } else { "met" }),
        };
        println!("| {} | {} | {:.1} | {target} | {state} |", row.name, row.unit, row.value);
    }
}
