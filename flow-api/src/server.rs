//! The server: a thread and a runtime of its own, so that no client can slow the datapath, and bounded guests.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use audit::Recorder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::config::HubbleConfig;
use crate::history::History;
use crate::hub::Hub;
use crate::observer::{Flows, Reached};
use crate::peers::{Nodes, Peers};
use crate::proto::observer::observer_server::ObserverServer;
use crate::proto::peer::peer_server::PeerServer;
use crate::tls::{Certificates, TlsError};

/// Connections at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 128;
/// Requests of one connection at a time.
const REQUESTS: u32 = 64;
/// A client's TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Requests are filters; answers are not decoded here.
const REQUEST_BYTES: usize = 1 << 20;
const HEADER_BYTES: u32 = 64 << 10;
/// What Hubble's tools ask grpc.health.v1 for, before they ask for anything else.
const HEALTH_NAMES: [&str; 2] = ["hubble.server.Observer", "peer.Peer"];

/// The flow API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("listen on hubble.listen {address}: {cause}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The certificates cannot be used.
    #[error("hubble.tls: {0}")]
    Tls(#[from] TlsError),
    /// The thread or its runtime cannot be made.
    #[error("start the thread of the flow API: {0}")]
    Start(#[source] io::Error),
}

/// The running API; dropping it ends the API.
#[derive(Debug)]
pub struct FlowApi {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FlowApi {
    /// Serves the records of `recorder`, which `node` writes, and tells of `nodes`. `None` when no address is
    /// configured.
    pub fn start(
        config: &HubbleConfig,
        recorder: &Recorder,
        node: &str,
        nodes: watch::Receiver<Arc<Nodes>>,
    ) -> Result<Option<Self>, ServeError> {
        let Some(address) = config.listen else { return Ok(None) };
        let (recorder, name, cluster) = (recorder.clone(), node.to_owned(), config.cluster_name.clone());
        let past = recorder.store_folder().map(ToOwned::to_owned);
        let history = move || {
            let hub = Hub::start(&recorder, &name, &cluster);
            (hub.clone(), History::new(hub, past))
        };
        Self::serve(config, address, node, nodes, history).map(Some)
    }

    /// `flows` is called on the API's own runtime.
    fn serve(
        config: &HubbleConfig,
        address: SocketAddr,
        node: &str,
        nodes: watch::Receiver<Arc<Nodes>>,
        flows: impl FnOnce() -> (Hub, History) + Send + 'static,
    ) -> Result<Self, ServeError> {
        let certificates = config.tls.as_ref().map(Certificates::read).transpose()?;
        let listen = |cause| ServeError::Listen { address, cause };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Start)?;
        let (stop, stopped) = oneshot::channel();
        let (config, node) = (config.clone(), node.to_owned());
        let serve = async move {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the flow API is not served"),
            };
            let (hub, history) = flows();
            let reached = Reached { address: address.to_string(), server_name: config.server_name(&node) };
            let flows = ObserverServer::new(Flows::new(hub, history, reached));
            let peers = PeerServer::new(Peers::new(config, address.port(), nodes));
            let (reporter, health) = tonic_health::server::health_reporter();
            for name in HEALTH_NAMES {
                reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
            }
            let (guests, incoming) = mpsc::channel(1);
            tokio::spawn(accept(listener, certificates, guests));
            let served = Server::builder()
                .max_concurrent_streams(REQUESTS)
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(HANDSHAKE))
                .http2_max_header_list_size(HEADER_BYTES)
                .add_service(flows.max_decoding_message_size(REQUEST_BYTES))
                .add_service(peers.max_decoding_message_size(REQUEST_BYTES))
                .add_service(health.max_decoding_message_size(REQUEST_BYTES))
                .serve_with_incoming(ReceiverStream::new(incoming));
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::error!(%error, "the flow API has ended");
                },
                _ = stopped => {}
            }
        };
        let thread = std::thread::Builder::new()
            .name("flow-api".to_owned())
            .spawn(move || {
                runtime.block_on(serve);
                // Whoever reads the past is not waited for.
                runtime.shutdown_background();
            })
            .map_err(ServeError::Start)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address listened on, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FlowApi {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the flow API panicked");
        }
    }
}

async fn accept(
    listener: TcpListener,
    mut certificates: Option<Certificates>,
    guests: mpsc::Sender<io::Result<Guest>>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, as a rule: trying again at once would spin (accept(2)).
                tracing::warn!(%error, "connection to the flow API not accepted");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let acceptor = certificates.as_mut().map(Certificates::acceptor);
        let guests = guests.clone();
        tokio::spawn(async move {
            let line = match acceptor {
                None => Line::Plain(stream),
                Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => Line::Tls(Box::new(stream)),
                    Ok(Err(error)) => {
                        return tracing::debug!(%error, "TLS with a client of the flow API failed");
                    }
                    Err(_) => return tracing::debug!("TLS with a client of the flow API took too long"),
                },
            };
            let _ = guests.send(Ok(Guest { line, _permit: permit })).await;
        });
    }
}

/// A connection, and its place among those that there may be.
struct Guest {
    line: Line,
    _permit: OwnedSemaphorePermit,
}

enum Line {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Guest {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

macro_rules! on_line {
    ($guest:expr, $line:ident => $do:expr) => {
        match &mut $guest.get_mut().line {
            Line::Plain($line) => {
                let $line = Pin::new($line);
                $do
            }
            Line::Tls($line) => {
                let $line = Pin::new(&mut **$line);
                $do
            }
        }
    };
}

impl AsyncRead for Guest {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_line!(self, line => line.poll_read(context, into))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_line!(self, line => line.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, line => line.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, line => line.poll_shutdown(context))
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
