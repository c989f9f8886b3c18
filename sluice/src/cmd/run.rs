//! `sluice run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use audit::Sink;
use policy_cache::Access;

use crate::agent::{self, AgentOptions};
use crate::config::Config;
use crate::logging;
use crate::source::Origin;

/// Arguments of `sluice run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of this node, as in spec.nodeName of its pods
    #[arg(long, value_name = "NAME", required_unless_present = "check_config")]
    node: Option<String>,
    /// Manifest files and folders: NetworkPolicies, Pods, Namespaces, Nodes, Services, EndpointSlices; reloaded when
    /// they change
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "kubeconfig")]
    manifests: Vec<PathBuf>,
    /// Follow the Kubernetes API that this kubeconfig leads to. Without this and without --manifests: the API of
    /// the cluster whose pod this is
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Configuration file (YAML); every key has a default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration file and stop
    #[arg(long, requires = "config")]
    check_config: bool,
    /// Where connection records go: a file, reopened on SIGHUP, or - for standard output
    #[arg(long, value_name = "FILE|-", default_value = "-")]
    records: PathBuf,
    /// A folder of Sluice's own: records are kept there for questions, in records/, and for collectors that are
    /// away, in spool-NAME/, unless the configuration says elsewhere
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    if args.check_config {
        println!("the configuration is valid");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(data) = &args.data {
        config.records.keep_in(data);
    }
    let _log = logging::start(&config.log)?;
    let sink = if args.records.as_os_str() == "-" { Sink::Stdout } else { Sink::File(args.records) };
    // Clap has seen to it that there is a node.
    let node = args.node.unwrap_or_default();
    let origin = match args.kubeconfig {
        Some(file) => Origin::Api(Access::Kubeconfig(file)),
        None if args.manifests.is_empty() => Origin::Api(Access::InCluster),
        None => Origin::Manifests(args.manifests),
    };
    agent::run(AgentOptions { node, origin, config, sink, admin: args.admin })
}
