//! `sluice lab`: a cluster of network namespaces on this machine, the nine example policies, one `sluice run`
//! per node, real connections, and a table of what was expected and what was seen.
//!
//! What is expected is written down in [`scenario`]; no policy engine has a say in it.

mod bulk;
pub(crate) mod interrupt;
mod probe;
mod rehearsal;
mod scenario;
mod state;
mod table;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::rights::{NET_ADMIN, Rights, SYS_ADMIN};
use interrupt::Interrupted;

/// Arguments of `sluice lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything up at the end, for `sluice lab shell`
    #[arg(long)]
    keep: bool,

    /// How pods hang on their nodes: routed, bridge or vxlan
    #[arg(long, default_value_t, value_name = "SHAPE")]
    topology: lab::Topology,

    /// Addresses: 4, 6 or dual
    #[arg(long, default_value_t, value_name = "FAMILY")]
    family: lab::Families,

    /// What holds the rules on both nodes: auto, iptables-nft or iptables-legacy
    #[arg(long, default_value_t, value_name = "BACKEND")]
    backend: lab::Backend,

    /// Name of the lab; several can be up at once
    #[arg(long, global = true, default_value = state::DEFAULT_NAME, value_name = "NAME")]
    name: state::LabName,

    #[command(subcommand)]
    command: Option<LabCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum LabCommand {
    /// Remove a lab that was kept, or that was killed before it could remove itself
    Down,
    /// Run a command, by default a shell, inside a pod, a node or the external host of a lab that is up
    Shell {
        /// A pod as NAMESPACE/NAME, node1, node2 or external
        place: String,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Greet and count on these ports until killed: the program in the lab's pods
    #[command(hide = true)]
    Serve {
        /// TCP ports on every address
        #[arg(required = true)]
        ports: Vec<u16>,
        /// UDP ports on every address
        #[arg(long)]
        udp: Vec<u16>,
    },
}

/// Runs the command.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(LabCommand::Serve { ports, udp }) => serve(&ports, &udp),
        Some(LabCommand::Down) => {
            require_root()?;
            state::down(&args.name)
        }
        Some(LabCommand::Shell { place, command }) => {
            require_root()?;
            state::shell(&args.name, &place, &command)
        }
        None => {
            require_root()?;
            match rehearsal::run(&args.name, (args.topology, args.family, args.backend), args.keep) {
                Ok(true) => Ok(ExitCode::SUCCESS),
                Ok(false) => Ok(ExitCode::from(1)),
                Err(error) => match error.downcast_ref::<Interrupted>() {
                    Some(interrupted) => {
                        eprintln!("sluice: {interrupted}; the lab is removed");
                        Ok(ExitCode::from(interrupted.exit_code()))
                    }
                    None => Err(error),
                },
            }
        }
    }
}

/// A container's root may less than a host's.
fn require_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces and needs root for it: run it with sudo"
    );
    let own = Rights::own();
    let needed = [(SYS_ADMIN, "CAP_SYS_ADMIN"), (NET_ADMIN, "CAP_NET_ADMIN")];
    let lacking: Vec<&str> =
        needed.into_iter().filter(|(right, _)| !own.has(*right)).map(|(_, name)| name).collect();
    anyhow::ensure!(
        lacking.is_empty(),
        "the lab makes network namespaces, and this root lacks {} for it: run it on the host, or in a container with --privileged",
        lacking.join(" and ")
    );
    Ok(())
}

fn serve(ports: &[u16], udp: &[u16]) -> anyhow::Result<ExitCode> {
    let _servers = ports
        .iter()
        .map(|&port| {
            let listener = every_address(|address| std::net::TcpListener::bind((address, port)))
                .with_context(|| format!("listen on port {port}"))?;
            lab::Server::start(listener).with_context(|| format!("serve on port {port}"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let _udp_servers = udp
        .iter()
        .map(|&port| {
            let socket = every_address(|address| std::net::UdpSocket::bind((address, port)))
                .with_context(|| format!("bind UDP port {port}"))?;
            lab::UdpServer::start(socket).with_context(|| format!("serve on UDP port {port}"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    loop {
        std::thread::park();
    }
}

/// Binds a socket of both families, or of IPv4 where the kernel has nothing else.
fn every_address<T>(bind: impl Fn(IpAddr) -> io::Result<T>) -> io::Result<T> {
    bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
}
