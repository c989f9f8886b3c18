//! `sluice explain`: why a connection is allowed or denied, for a person. No kernel and no privilege is needed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use flow::Generation;
use policy_cache::Question;

use super::verdict::{node_note, options};

/// The words of a question. They may follow the paths directly, which then seem to go on.
const WORDS: usize = 3;

/// Arguments of `sluice explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Manifest files, and folders that are read with their subfolders
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    manifests: Vec<String>,
    /// Decide as this node does: an unknown address in its pod ranges is refused
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The node's configuration file, for what its `policy:` section says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Who connects (namespace/pod or an IP address), to whom (also namespace/service; where a pod and a Service
    /// have one name, pod/namespace/name or service/namespace/name), and the port that is dialled, TCP unless /UDP or
    /// /SCTP follows
    #[arg(value_names = ["SRC", "DST", "PORT[/PROTO]"], num_args = 3)]
    question: Vec<String>,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For a person
    Text,
    /// One JSON object
    Json,
}

/// Runs the command. Exits with 0 when the connection is allowed, 1 when it is denied, 2 on bad input.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let Args { mut manifests, mut question, .. } = args;
    if question.is_empty() && manifests.len() > WORDS {
        question = manifests.split_off(manifests.len() - WORDS);
    }
    let [source, destination, port] = &question[..] else {
        anyhow::bail!("SRC DST PORT[/PROTO] are required");
    };
    let question = Question::parse(source, destination, port)?;
    let manifests: Vec<PathBuf> = manifests.into_iter().map(PathBuf::from).collect();
    let objects = match policy_cache::load(&manifests) {
        Ok(objects) => objects,
        Err(error) => {
            crate::complaint::complain(&error);
            return Ok(ExitCode::from(2));
        }
    };
    print_notes(&objects.notes());
    let options = options(args.node, args.config.as_deref())?;
    let snapshot = policy_cache::compile(&objects, &options, Generation(1));
    print_notes(&node_note(&options, &snapshot));
    let explanation = policy_cache::explain(&objects, &snapshot, &question)?;
    let text = match args.output {
        Output::Text => crate::complaint::harmless(&explanation.to_string()),
        Output::Json => serde_json::to_string_pretty(&explanation)? + "\n",
    };
    print(&text)?;
    Ok(ExitCode::from(u8::from(!explanation.is_allowed())))
}

/// Says on standard error what was not used.
pub(crate) fn print_notes(notes: &[String]) {
    for note in notes {
        // A note is one line, whatever the names in it.
        crate::complaint::complain(format_args!("note: {}", note.replace('\n', "\\n")));
    }
}

/// Prints an answer; a reader that has seen enough is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("print the answer"),
    }
}
