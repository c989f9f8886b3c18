//! A collector of OTLP logs over gRPC that counts what it takes and throws it away.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

#[derive(Debug, Default)]
struct Taken {
    records: AtomicU64,
    bytes: AtomicU64,
}

struct Collector(Arc<Taken>);

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let request = request.into_inner();
        let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
        let records: usize = scopes.map(|scope| scope.log_records.len()).sum();
        self.0.records.fetch_add(records as u64, Ordering::Relaxed);
        self.0.bytes.fetch_add(request.encoded_len() as u64, Ordering::Relaxed);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// Serves on a free port of the loopback address, prints it, and what it has taken when standard input ends.
pub(crate) fn run() -> anyhow::Result<()> {
    let taken = Arc::new(Taken::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let of_server = Arc::clone(&taken);
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        let service = LogsServiceServer::new(Collector(of_server))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(64 << 20);
        let served = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]).map(drop));
        tokio::select! {
            served = served => served?,
            ended = ended => ended??,
        }
        anyhow::Ok(())
    })?;
    println!("{} {}", taken.records.load(Ordering::Relaxed), taken.bytes.load(Ordering::Relaxed));
    Ok(())
}

/// The collector in a process of its own.
pub(crate) struct Receiver(Child);

impl Receiver {
    pub(crate) fn start() -> anyhow::Result<(Self, String)> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("receive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the collector")?;
        let mut port = Vec::new();
        let output = child.stdout.as_mut().context("the collector's output")?;
        let mut byte = [0];
        while output.read(&mut byte)? == 1 && byte[0] != b'\n' {
            port.push(byte[0]);
        }
        let port = String::from_utf8(port)?;
        anyhow::ensure!(!port.is_empty(), "the collector did not start");
        Ok((Self(child), format!("http://127.0.0.1:{port}")))
    }

    /// Records and bytes that it has taken, before compression.
    pub(crate) fn stop(mut self) -> anyhow::Result<(u64, u64)> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().context("the collector's output")?.read_to_string(&mut text)?;
        self.0.wait()?;
        let (records, bytes) = text.trim().split_once(' ').context("what the collector has taken")?;
        Ok((records.parse()?, bytes.parse()?))
    }
}
