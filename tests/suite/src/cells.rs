//! Turns the rows of the support matrix and one shape of cluster into results, and results into the table that
//! `tests/README.md` shows.
//!
//! Every cell has a file under `tests/suite/matrix`, written from what its rows did when `UPDATE_MATRIX` is set and
//! compared with it otherwise. The table is made of those files and of nothing else.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use lab::{Backend, Families, Topology};

/// What a row says of a shape.
pub const HOLDS: &str = "yes";
/// A row that does not concern the shape.
pub const NOT_CONCERNED: &str = "–";

/// A kind of cluster: one more value of any part is one more column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// How pods hang on nodes, and nodes on each other.
    pub topology: Topology,
    /// The families of addresses.
    pub families: Families,
    /// What holds the rules.
    pub backend: Backend,
}

impl Shape {
    /// Every shape that is tried, in the table's order: all of them with the backend that a node chooses, those of
    /// routed pods with each other one, and both families of the other topologies, where the bridge's own rules are the
    /// same whatever holds the others.
    pub fn all() -> Vec<Self> {
        let families = |topology, backend| Families::ALL.map(|families| Self { topology, families, backend });
        let mut all: Vec<Self> =
            Topology::ALL.into_iter().flat_map(|topology| families(topology, Backend::Auto)).collect();
        for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
            all.extend(families(Topology::Routed, backend));
        }
        let dual = |topology, backend| Self { topology, families: Families::Dual, backend };
        all.push(dual(Topology::Bridge, Backend::IptablesLegacy));
        all.push(dual(Topology::Vxlan, Backend::IptablesNft));
        all.push(dual(Topology::Bridge, Backend::IptablesNft));
        all.push(dual(Topology::Vxlan, Backend::IptablesLegacy));
        all
    }

    fn file(self) -> PathBuf {
        let Self { topology, families, backend } = self;
        folder().join(match backend {
            Backend::Auto => format!("{topology}-{families}.json"),
            backend => format!("{topology}-{families}-{backend}.json"),
        })
    }
}

/// One row of the table, and what must be so for it to hold.
#[derive(Debug)]
pub struct Row<S> {
    /// As the table names it.
    pub name: &'static str,
    /// The shapes it speaks of.
    pub concerns: fn(Shape) -> bool,
    /// Panics unless it holds.
    pub check: fn(&S),
}

/// What the rows say of one shape, by name.
pub type Results = BTreeMap<String, String>;

/// Runs every row that concerns the shape, also after one has failed. What failed is told with its reason.
pub fn run<S>(shape: Shape, rows: &[Row<S>], scene: &S) -> Results {
    let result = |row: &Row<S>| {
        if !(row.concerns)(shape) {
            return NOT_CONCERNED.to_owned();
        }
        match panic::catch_unwind(AssertUnwindSafe(|| (row.check)(scene))) {
            Ok(()) => HOLDS.to_owned(),
            Err(panic) => format!("no: {}", reason(&*panic)),
        }
    };
    rows.iter().map(|row| (row.name.to_owned(), result(row))).collect()
}

/// Holds the results to the file of the shape, or writes it.
///
/// # Panics
/// When a row that concerns the shape does not hold, and when the file says something else.
pub fn hold(shape: Shape, results: &Results) {
    let failed: Vec<_> = results.iter().filter(|(_, result)| result.starts_with("no")).collect();
    assert!(failed.is_empty(), "{shape:?}: {failed:#?}");
    let text = serde_json::to_string_pretty(results).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_MATRIX").is_some() {
        fs::create_dir_all(folder()).expect("the folder of the matrix");
        fs::write(shape.file(), &text).expect("write the results");
    }
    let kept = fs::read_to_string(shape.file()).unwrap_or_default();
    assert_eq!(kept, text, "{} is not what the rows gave; UPDATE_MATRIX=1 writes it", shape.file().display());
}

/// The table of all shapes from their files, in the order of `names`.
///
/// # Panics
/// When a file is missing.
pub fn table<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let shapes = Shape::all();
    let results: Vec<Results> = shapes
        .iter()
        .map(|shape| {
            let text = fs::read_to_string(shape.file()).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
            serde_json::from_str(&text).expect("results")
        })
        .collect();
    let mut table = String::from("| |");
    for Shape { topology, families, backend } in &shapes {
        let _ = match backend {
            Backend::Auto => write!(table, " {topology} {families} |"),
            backend => write!(table, " {topology} {families} {backend} |"),
        };
    }
    let _ = write!(table, "\n|---|{}\n", "---|".repeat(shapes.len()));
    for name in names {
        let _ = write!(table, "| {name} |");
        for results in &results {
            let _ = write!(table, " {} |", results.get(name).map_or("", String::as_str));
        }
        table.push('\n');
    }
    table
}

/// Holds the matrix in `tests/README.md` to `table`, or writes it there.
///
/// # Panics
/// When it differs, or its markers are missing.
pub fn hold_readme(table: &str) {
    hold_between("matrix", "make matrix", table);
}

/// Holds what stands in `tests/README.md` between the markers of this name to `table`, or writes it there. `command` is
/// what writes it.
///
/// # Panics
/// When it differs, or the markers are missing.
pub fn hold_between(name: &str, command: &str, table: &str) {
    let begin = format!("<!-- {name}: written by {command} -->\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(&path).expect("tests/README.md");
    let (before, rest) = text.split_once(&begin).expect("the first marker");
    let (kept, after) = rest.split_once(&format!("<!-- end of {name} -->")).expect("the last marker");
    if std::env::var_os("UPDATE_MATRIX").is_some() && kept != table {
        fs::write(&path, format!("{before}{begin}{table}<!-- end of {name} -->{after}")).expect("write it");
        return;
    }
    assert_eq!(kept, table, "the table in tests/README.md is not what was seen; `{command}` writes it");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("matrix")
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
