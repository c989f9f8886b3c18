//! `sluice rules`: prints what `sluice run` would install on this node, without installing it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use redirect::{GateBackend, IptablesVariant, LocalPods, RedirectSpec, Ruleset};

use crate::config::Config;

/// Arguments of `sluice rules`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Addresses of local pods that policies isolate
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    isolated: Vec<IpAddr>,
    /// Addresses of the other local pods
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    observed: Vec<IpAddr>,
    /// Ranges this node gives its pods addresses from
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<ipnet::IpNet>,
    /// The parts of the kernel; without it this node is asked, which needs root
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Leave IPv6 out; only with --backend, else this node is asked
    #[arg(long, requires = "backend")]
    ipv4_only: bool,
}

/// The parts of the kernel that intercept and hold packets.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Backend {
    /// nft, with its `queue`
    Nft,
    /// nft, with iptables' NFQUEUE
    NftNfqueue,
    /// iptables' nf_tables variant and ipset, without nft
    IptablesNft,
    /// iptables' older variant and ipset, without nft
    IptablesLegacy,
}

impl Backend {
    fn gate(self) -> GateBackend {
        match self {
            Self::Nft => GateBackend::NftQueue,
            Self::NftNfqueue => GateBackend::IptablesNfqueue,
            Self::IptablesNft => GateBackend::Iptables(IptablesVariant::Nft),
            Self::IptablesLegacy => GateBackend::Iptables(IptablesVariant::Legacy),
        }
    }
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let Config { redirect: config, proxy, .. } =
        args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (gate, ipv6) = match args.backend {
        Some(backend) => (backend.gate(), !args.ipv4_only),
        None => {
            let node = runtime.block_on(redirect::probe_for(config.backend));
            (node.choose(config.backend)?, node.ipv6)
        }
    };
    let pods = LocalPods {
        isolated: args.isolated.into_iter().collect(),
        observed: args.observed.into_iter().collect(),
        passed: Default::default(),
        // One within another is none of its own; sets of nft take no two that overlap.
        ranges: ipnet::IpNet::aggregate(&args.pod_cidrs).into_iter().collect(),
    };
    let mut spec = RedirectSpec::new(&config, gate, ipv6, pods)?;
    spec.upstream_ports = proxy.upstream_ports.first..=proxy.upstream_ports.last;
    if args.backend.is_none() {
        (spec.bridges, spec.owners) =
            runtime.block_on(redirect::pod_bridges(&spec.pods, &spec.pod_interfaces))?;
    }
    print!("{}", text(&redirect::ruleset(&spec)));
    Ok(ExitCode::SUCCESS)
}

/// An nft script whose comments hold what is not nft's.
fn text(ruleset: &Ruleset) -> String {
    let mut text = String::from("# routes\n");
    ruleset.routes.iter().for_each(|command| text.push_str(&format!("# {command}\n")));
    if let Some(gate) = &ruleset.gate {
        let scripts = [("iptables", Some(&gate.v4)), ("ip6tables", gate.v6.as_ref())];
        for (command, script) in scripts.into_iter().filter_map(|(c, script)| Some((c, script?))) {
            text.push_str(&format!("#\n# {command}-nft-restore --noflush\n"));
            script.lines().for_each(|line| text.push_str(&format!("# {line}\n")));
        }
    }
    if let Some(scripts) = &ruleset.iptables {
        let word = scripts.variant.word();
        let restore = |command: &str| format!("{command}-{word}-restore --noflush");
        let scripts = [
            ("ipset restore".to_owned(), Some(&scripts.sets)),
            (restore("iptables"), Some(&scripts.v4)),
            (restore("ip6tables"), scripts.v6.as_ref()),
        ];
        for (command, script) in scripts.into_iter().filter_map(|(c, script)| Some((c, script?))) {
            text.push_str(&format!("#\n# {command}\n"));
            script.lines().for_each(|line| text.push_str(&format!("# {line}\n")));
        }
    }
    if !ruleset.nft.is_empty() {
        text.push_str("#\n# nft -f -\n");
        text.push_str(&ruleset.nft);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_not_for_nft_is_a_comment() {
        let spec = RedirectSpec::new(
            &redirect::RedirectConfig::default(),
            GateBackend::IptablesNfqueue,
            true,
            LocalPods { isolated: [IpAddr::from([10, 0, 0, 1])].into(), ..LocalPods::default() },
        );
        let ruleset = redirect::ruleset(&spec.unwrap());
        let text = text(&ruleset);
        let script: String =
            text.lines().filter(|line| !line.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert_eq!(script, ruleset.nft);
        for line in ["# ip -6 rule add", "# ip6tables-nft-restore --noflush", "# -I INPUT 1", "# COMMIT"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn rules_of_iptables_are_shown_with_their_tools_and_no_table_of_nft() {
        for (variant, restore) in [
            (IptablesVariant::Nft, "# ip6tables-nft-restore --noflush"),
            (IptablesVariant::Legacy, "# ip6tables-legacy-restore --noflush"),
        ] {
            let spec = RedirectSpec::new(
                &redirect::RedirectConfig::default(),
                GateBackend::Iptables(variant),
                true,
                LocalPods { isolated: [IpAddr::from([10, 0, 0, 1])].into(), ..LocalPods::default() },
            );
            let text = text(&redirect::ruleset(&spec.unwrap()));
            for line in [
                "# ipset restore",
                "# add sluice-isolated4 10.0.0.1",
                restore,
                "# *mangle",
                "# ip -6 rule add",
            ] {
                assert!(text.contains(line), "{line}: {text}");
            }
            assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        }
    }

    #[test]
    fn addresses_are_given_as_lists() {
        let args =
            Cli::parse_from(["rules", "--isolated", "10.0.0.1,fd00::1", "--observed", "10.0.0.2"]).args;
        assert_eq!((args.isolated.len(), args.observed.len()), (2, 1));
        assert!(Cli::try_parse_from(["rules", "--isolated", "10.0.0"]).is_err());
    }
}
