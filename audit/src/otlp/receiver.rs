//! A real receiver of OTLP logs, over gRPC and HTTP, that answers as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

const LIMIT: Duration = Duration::from_secs(20);

/// How the next request is answered. Without any, requests are taken.
#[derive(Clone, Debug)]
pub(super) enum Mood {
    /// HTTP status and gRPC code, and when to come again.
    Refuse(u16, Code, Option<Duration>),
    /// Takes all but so many records.
    Partial(i64),
    /// Answers after so long.
    Slow(Duration),
    /// Answers with bytes that are no answer.
    Garbage,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Got {
    pub(super) at: Instant,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) request: ExportLogsServiceRequest,
    pub(super) taken: bool,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) got: Vec<Got>,
    pub(super) moods: VecDeque<Mood>,
}

impl Log {
    fn note(&mut self, headers: BTreeMap<String, String>, request: ExportLogsServiceRequest) -> Option<Mood> {
        let mood = self.moods.pop_front();
        let taken = matches!(mood, None | Some(Mood::Partial(_) | Mood::Slow(_)));
        self.got.push(Got { at: Instant::now(), headers, request, taken });
        mood
    }
}

/// Certificate, key, and the authority that clients must be signed by.
pub(super) type Tls = Option<(String, String, String)>;

/// Listens until it is dropped.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) log: Arc<Mutex<Log>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    pub(super) fn grpc(address: SocketAddr, tls: Tls) -> Self {
        Self::start(address, move |listener, log| async move {
            let service = LogsServiceServer::new(Service(log)).accept_compressed(CompressionEncoding::Gzip);
            let mut server = Server::builder();
            if let Some((cert, key, ca)) = tls {
                let tls = ServerTlsConfig::new()
                    .identity(Identity::from_pem(cert, key))
                    .client_ca_root(Certificate::from_pem(ca));
                server = server.tls_config(tls).unwrap();
            }
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let _ = server.add_service(service).serve_with_incoming(incoming).await;
        })
    }

    pub(super) fn http(address: SocketAddr) -> Self {
        Self::start(address, |listener, log| async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, Arc::clone(&log)));
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        })
    }

    fn start<F: Future<Output = ()>>(
        address: SocketAddr,
        serve: impl FnOnce(TcpListener, Arc<Mutex<Log>>) -> F + Send + 'static,
    ) -> Self {
        let log = Arc::<Mutex<Log>>::default();
        let shared = Arc::clone(&log);
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, log, stop: Some(stop), thread: Some(thread) }
    }

    pub(super) fn will(&self, moods: impl IntoIterator<Item = Mood>) {
        self.log.lock().unwrap().moods.extend(moods);
    }

    pub(super) fn got(&self) -> Vec<Got> {
        self.log.lock().unwrap().got.clone()
    }

    /// The numbers of the records that were taken, in the order in which they came.
    pub(super) fn numbers(&self) -> Vec<i64> {
        let got = self.got();
        got.iter().filter(|got| got.taken).flat_map(|got| records(&got.request)).filter_map(number).collect()
    }

    /// Waits until so many records were taken.
    pub(super) fn wait(&self, records: usize) -> Vec<i64> {
        let started = Instant::now();
        loop {
            let numbers = self.numbers();
            if numbers.len() >= records {
                return numbers;
            }
            assert!(started.elapsed() < LIMIT, "{} of {records} within {LIMIT:?}", numbers.len());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

pub(super) fn records(request: &ExportLogsServiceRequest) -> Vec<&LogRecord> {
    let scopes = request.resource_logs.iter().flat_map(|logs| &logs.scope_logs);
    scopes.flat_map(|logs| &logs.log_records).collect()
}

/// `event.sequence`; lines of losses have none here.
fn number(record: &LogRecord) -> Option<i64> {
    if record.event_name == "records-lost" {
        return None;
    }
    let pair = record.attributes.iter().find(|pair| pair.key == "event.sequence")?;
    match pair.value.as_ref()?.value.as_ref()? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

struct Service(Arc<Mutex<Log>>);

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let headers =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let mood = self.0.lock().unwrap().note(headers.collect(), request.into_inner());
        match mood {
            Some(Mood::Refuse(_, code, Some(after))) => {
                let mut details = ErrorDetails::new();
                details.set_retry_info(Some(after));
                Err(Status::with_error_details(code, "come again", details))
            }
            Some(Mood::Refuse(_, code, None)) => Err(Status::new(code, "no")),
            Some(Mood::Garbage) => Err(Status::unknown("garbage")),
            Some(Mood::Slow(after)) => {
                tokio::time::sleep(after).await;
                Ok(Response::new(ExportLogsServiceResponse::default()))
            }
            Some(Mood::Partial(rejected)) => Ok(Response::new(partial(rejected))),
            None => Ok(Response::new(ExportLogsServiceResponse::default())),
        }
    }
}

fn partial(rejected: i64) -> ExportLogsServiceResponse {
    let error_message = "too old".to_owned();
    let partial_success = Some(ExportLogsPartialSuccess { rejected_log_records: rejected, error_message });
    ExportLogsServiceResponse { partial_success }
}

async fn answer(
    request: http::Request<Incoming>,
    log: Arc<Mutex<Log>>,
) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let (head, body) = request.into_parts();
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let mut headers: BTreeMap<String, String> = head.headers.iter().map(header).collect();
    headers.insert(":path".to_owned(), head.uri.path().to_owned());
    let mut body = body.collect().await.unwrap().to_bytes().to_vec();
    if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
        let mut plain = Vec::new();
        GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
        body = plain;
    }
    let request = ExportLogsServiceRequest::decode(&*body).unwrap();
    let mood = log.lock().unwrap().note(headers, request);
    let mut response = http::Response::builder().header("content-type", "application/x-protobuf");
    let mut answer = ExportLogsServiceResponse::default().encode_to_vec();
    match mood {
        Some(Mood::Refuse(status, _, after)) => {
            response = response.status(status);
            if let Some(after) = after {
                response = response.header("retry-after", after.as_secs());
            }
        }
        Some(Mood::Garbage) => answer = b"<html>please log in</html>".to_vec(),
        Some(Mood::Partial(rejected)) => answer = partial(rejected).encode_to_vec(),
        Some(Mood::Slow(after)) => tokio::time::sleep(after).await,
        None => {}
    }
    Ok(response.body(Full::new(answer.into())).unwrap())
}
