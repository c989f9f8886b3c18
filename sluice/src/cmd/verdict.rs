//! `sluice verdict`: probes in, decisions out, one JSON object a line. No kernel and no privilege is needed.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use flow::Generation;
use policy_cache::{Options, Prober, ReadError, Snapshot, Tally};

use super::explain::print_notes;
use crate::config::Config;

/// What `--probes` says for standard input.
const STDIN: &str = "-";

/// Arguments of `sluice verdict`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Manifest files, and folders that are read with their subfolders
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// A file of probes, one JSON object a line; "-" reads standard input
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    /// Decide as this node does: an unknown address in its pod ranges is refused
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The node's configuration file, for what its `policy:` section says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command. Exits with 2 when the manifests are unusable or any probe could not be decided.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let objects = match policy_cache::load(&args.manifests) {
        Ok(objects) => objects,
        Err(error) => {
            crate::complaint::complain(&error);
            return Ok(ExitCode::from(2));
        }
    };
    print_notes(&objects.notes());
    let options = options(args.node, args.config.as_deref())?;
    let snapshot = Arc::new(policy_cache::compile(&objects, &options, Generation(1)));
    print_notes(&node_note(&options, &snapshot));
    let prober = Prober::new(&objects, snapshot);
    drop(objects);
    let input = open(&args.probes).with_context(|| format!("open {}", args.probes.display()))?;
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match policy_cache::answer_stream(&Arc::new(prober), input, io::stdout().lock(), threads) {
        Ok(Tally { failed: 0, .. }) => Ok(ExitCode::SUCCESS),
        Ok(Tally { probes, failed }) => {
            let which = if failed == 1 { "its answer says why" } else { "their answers say why" };
            crate::complaint::complain(format_args!(
                "sluice: {failed} of {probes} probes could not be decided; {which}"
            ));
            Ok(ExitCode::from(2))
        }
        // The reader of the answers has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("answer probes"),
    }
}

/// What decisions depend on besides the manifests.
pub(super) fn options(node: Option<String>, config: Option<&Path>) -> anyhow::Result<Options> {
    let policy = config.map(Config::load).transpose()?.unwrap_or_default().policy;
    Ok(Options { node, own_node_egress: policy.own_node_egress, ..Options::default() })
}

/// What to say of a node that is asked for and not there: its decisions are those of no node at all.
pub(super) fn node_note(options: &Options, snapshot: &Snapshot) -> Vec<String> {
    let unknown = options.node.as_ref().filter(|_| !snapshot.knows_own_node());
    let note = |name| {
        format!(
            "--node {name}: no Node is called so and no pod's spec.nodeName says so in the manifests; it has no pods of its own"
        )
    };
    unknown.map(note).into_iter().collect()
}

/// Standard input, or a regular file: with anything else it could wait for ever.
fn open(probes: &Path) -> Result<Box<dyn Read + Send>, ReadError> {
    if probes == Path::new(STDIN) {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(policy_cache::open_regular(probes)?))
}
