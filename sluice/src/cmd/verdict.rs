//! `sluice verdict`: probes in, decisions out, one JSON object a line. No kernel and no privilege is needed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use flow::Generation;
use policy_cache::{Options, Prober};

use super::explain::print_notes;

/// What `--probes` says for standard input.
const STDIN: &str = "-";
const BUFFER_BYTES: usize = 64 << 10;

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
}

/// Runs the command. Exits with 2 when the manifests are unusable or any probe could not be decided.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let objects = match policy_cache::load(&args.manifests) {
        Ok(objects) => objects,
        Err(error) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(2));
        }
    };
    print_notes(&objects.notes());
    let options = Options { node: args.node, ..Options::default() };
    let snapshot = Arc::new(policy_cache::compile(&objects, &options, Generation(1)));
    let prober = Prober::new(&objects, snapshot);
    drop(objects);
    let input = open(&args.probes).with_context(|| format!("open {}", args.probes.display()))?;
    let output = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    match answer_all(&prober, input, output) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(2)),
        // The reader of the answers has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("answer probes"),
    }
}

fn open(probes: &Path) -> io::Result<Box<dyn BufRead>> {
    if probes == Path::new(STDIN) {
        return Ok(Box::new(io::stdin().lock()));
    }
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, File::open(probes)?)))
}

/// Answers every line that is not blank. True when every probe could be decided.
fn answer_all(prober: &Prober, mut input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    let mut all_decided = true;
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            let answer = prober.answer(text);
            all_decided &= !answer.is_failed();
            serde_json::to_writer(&mut output, &answer)?;
            output.write_all(b"\n")?;
        }
        line.clear();
    }
    output.flush()?;
    Ok(all_decided)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}\n---\n\
                        {apiVersion: v1, kind: Pod, metadata: {name: b}, status: {podIP: 10.0.0.2}}";
    const GOOD: &str = r#"{"id":"good","src":{"pod":"default/a"},"dst":{"pod":"default/b"},"port":80}"#;

    fn answers(input: &[u8]) -> (bool, Vec<serde_json::Value>) {
        let objects = policy_cache::parse([(Path::new("pods.yaml"), PODS)]).unwrap();
        let snapshot = policy_cache::compile(&objects, &Options::default(), Generation(1));
        let prober = Prober::new(&objects, Arc::new(snapshot));
        let mut output = Vec::new();
        let all_decided = answer_all(&prober, input, &mut output).unwrap();
        let lines = String::from_utf8(output).unwrap();
        (all_decided, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    #[test]
    fn each_probe_gets_one_line_and_a_bad_one_does_not_stop_the_rest() {
        let (all_decided, lines) = answers(format!("{GOOD}\n\nnonsense\n  \r\n{GOOD}").as_bytes());
        assert!(!all_decided);
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["id"], &lines[0]["verdict"]), (&"good".into(), &"allow".into()));
        assert!(lines[1]["error"].is_string() && lines[1]["id"].is_null());
        assert_eq!(lines[2], lines[0]);
    }

    #[test]
    fn bytes_that_are_no_text_are_a_bad_probe() {
        let (all_decided, lines) = answers(&[b"\xff\xfe\n", GOOD.as_bytes(), b"\n"].concat());
        assert!(!all_decided);
        assert!(lines[0]["error"].is_string());
        assert_eq!(lines[1]["verdict"], "allow");
    }

    #[test]
    fn all_probes_decided_is_success() {
        assert!(answers(GOOD.as_bytes()).0);
        assert!(answers(b"").0);
    }
}
