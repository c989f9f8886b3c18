//! One request to a collector, over gRPC or HTTP, and what its answer means.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use prost::Message;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::config::{OtlpHeader, OtlpProtocol, OtlpSink};

/// An answer is short: whatever is longer is none.
const ANSWER_BYTES: usize = 64 << 10;
const AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
const PROTOBUF: &str = "application/x-protobuf";

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// It was taken, but for so many records, and why.
    Taken { rejected: u64, message: String },
    /// It may be taken later, not before so long.
    Later { after: Option<Duration>, cause: ClientError },
    /// It will never be taken.
    Never { cause: ClientError },
}

/// A request was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// A file or variable of the settings.
    #[error("{what}: {cause}")]
    Setting {
        what: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("connect: {}", chain(&**.0))]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Grpc(Box<Status>),
    #[error("HTTP {0}: {1}")]
    Http(StatusCode, String),
    #[error("HTTP 200 with something else than an answer of a collector")]
    Garbage,
}

/// An error and what caused it, on one line.
fn chain(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

type HttpClient = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A way to a collector.
#[derive(Debug)]
pub(super) enum Client {
    Grpc(Box<LogsServiceClient<Channel>>),
    Http(Box<HttpClient>, Uri),
}

impl Client {
    /// Needs a runtime; connects with the first request.
    pub(super) fn new(config: &OtlpSink) -> Result<Self, ClientError> {
        let uri = config.uri().ok_or_else(|| setting("endpoint", "no URL"))?;
        match config.protocol {
            OtlpProtocol::Grpc => grpc(config, uri),
            OtlpProtocol::Http => http(config, uri),
        }
    }

    pub(super) async fn send(&mut self, config: &OtlpSink, request: ExportLogsServiceRequest) -> Answer {
        let headers = match headers(&config.headers) {
            Ok(headers) => headers,
            Err(cause) => return Answer::Later { after: None, cause },
        };
        let limit = Duration::from_millis(config.timeout_ms);
        let answer = async {
            match self {
                Self::Grpc(client) => send_grpc(client, request, headers).await,
                Self::Http(client, uri) => send_http(client, uri, config.gzip, request, headers).await,
            }
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Answer::Later { after: None, cause: ClientError::Silent(limit) },
        }
    }
}

fn grpc(config: &OtlpSink, uri: Uri) -> Result<Client, ClientError> {
    let is_tls = uri.scheme_str() == Some("https");
    let connect = |error: tonic::transport::Error| ClientError::Connect(error.into());
    let mut endpoint = Endpoint::from(uri)
        .user_agent(AGENT)
        .map_err(connect)?
        .connect_timeout(Duration::from_millis(config.timeout_ms))
        // A collector that is gone without a word is noticed.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    if is_tls {
        let mut tls = match &config.tls.ca_file {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&config.tls.cert_file, &config.tls.key_file) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        if let Some(name) = &config.tls.server_name {
            tls = tls.domain_name(name);
        }
        endpoint = endpoint.tls_config(tls).map_err(connect)?;
    }
    let mut client = LogsServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(ANSWER_BYTES);
    if config.gzip {
        client = client.send_compressed(CompressionEncoding::Gzip);
    }
    Ok(Client::Grpc(Box::new(client)))
}

fn http(config: &OtlpSink, uri: Uri) -> Result<Client, ClientError> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls(config)?).https_or_http();
    let connector = match &config.tls.server_name {
        Some(name) => {
            let name = ServerName::try_from(name.clone()).map_err(|error| setting("server_name", error))?;
            connector.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
        None => connector,
    };
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build(connector.enable_http1().build());
    let path = match uri.path() {
        "" | "/" => "/v1/logs",
        path => path,
    };
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let uri = Uri::builder()
        .scheme(uri.scheme_str().unwrap_or("http"))
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| setting("endpoint", error))?;
    Ok(Client::Http(Box::new(client), uri))
}

fn tls(config: &OtlpSink) -> Result<rustls::ClientConfig, ClientError> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setting("tls", error))?;
    let mut roots = rustls::RootCertStore::empty();
    match &config.tls.ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| setting(file.display(), error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = builder.with_root_certificates(roots);
    match (&config.tls.cert_file, &config.tls.key_file) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| setting(key.display(), error))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| setting(cert.display(), error))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    found.map_err(|error| setting(file.display(), error))
}

fn read(file: &PathBuf) -> Result<Vec<u8>, ClientError> {
    std::fs::read(file).map_err(|error| setting(file.display(), error))
}

fn setting(
    what: impl std::fmt::Display,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Setting { what: what.to_string(), cause: cause.into() }
}

fn headers(headers: &[OtlpHeader]) -> Result<Vec<(HeaderName, HeaderValue)>, ClientError> {
    let value = |header: &OtlpHeader| match (&header.value, &header.file, &header.env) {
        (Some(value), ..) => Ok(value.clone()),
        (_, Some(file), _) => std::fs::read_to_string(file)
            .map(|text| text.trim().to_owned())
            .map_err(|error| setting(file.display(), error)),
        (.., Some(name)) => std::env::var(name).map_err(|error| setting(name, error)),
        _ => Ok(String::new()),
    };
    headers
        .iter()
        .map(|header| {
            let name = HeaderName::try_from(&header.name).map_err(|error| setting(&header.name, error))?;
            let mut value =
                HeaderValue::try_from(value(header)?).map_err(|error| setting(&header.name, error))?;
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect()
}

async fn send_grpc(
    client: &mut LogsServiceClient<Channel>,
    request: ExportLogsServiceRequest,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Answer {
    let mut request = tonic::Request::new(request);
    for (name, value) in headers {
        let name = MetadataKey::<Ascii>::from_bytes(name.as_str().as_bytes());
        let value = MetadataValue::<Ascii>::try_from(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.metadata_mut().insert(name, value);
        }
    }
    match client.export(request).await {
        Ok(response) => taken(response.into_inner()),
        Err(status) => {
            let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let may_be_taken = is_retryable(status.code(), after.is_some());
            let cause = ClientError::Grpc(Box::new(status));
            if may_be_taken { Answer::Later { after, cause } } else { Answer::Never { cause } }
        }
    }
}

/// As the OTLP specification lists them. What is wrong with the settings and not with the records (credentials, a
/// path, a service that is not there) may be mended, so those wait as well.
const fn is_retryable(code: Code, says_when: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::NotFound => true,
        Code::ResourceExhausted => says_when,
        // Where an answer is no gRPC at all.
        Code::Unknown => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Internal => false,
    }
}

async fn send_http(
    client: &HttpClient,
    uri: &Uri,
    gzip: bool,
    request: ExportLogsServiceRequest,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Answer {
    let mut body = request.encode_to_vec();
    let mut request = Request::post(uri.clone())
        .header(CONTENT_TYPE, PROTOBUF)
        .header(ACCEPT, PROTOBUF)
        .header(USER_AGENT, AGENT);
    if gzip {
        body = zipped(&body);
        request = request.header(CONTENT_ENCODING, "gzip");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = match request.body(Full::new(Bytes::from(body))) {
        Ok(request) => request,
        Err(error) => return Answer::Later { after: None, cause: setting("headers", error) },
    };
    match client.request(request).await {
        Ok(response) => understood(response).await,
        Err(error) => Answer::Later { after: None, cause: ClientError::Connect(error.into()) },
    }
}

fn zipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

async fn understood(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let is_protobuf =
        head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(PROTOBUF.as_bytes()));
    let after = head.headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    let body = Limited::new(body, ANSWER_BYTES).collect().await.map(|body| body.to_bytes());
    let status = head.status;
    if status.is_success() {
        return match body.ok().and_then(|body| ExportLogsServiceResponse::decode(body).ok()) {
            Some(response) if is_protobuf => taken(response),
            // Something that answers everybody, a proxy's login page, say, has taken nothing.
            _ => Answer::Later { after: None, cause: ClientError::Garbage },
        };
    }
    let text = body.map(|body| excerpt(&body)).unwrap_or_default();
    let cause = ClientError::Http(status, text);
    match status.as_u16() {
        429 | 502 | 503 | 504 => Answer::Later { after, cause },
        // Credentials, a path, a proxy: settings, which may be mended. See `is_retryable`.
        300..=399 | 401 | 403 | 404 | 405 | 407 | 408 => Answer::Later { after, cause },
        _ => Answer::Never { cause },
    }
}

/// Seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value.trim()).ok()?;
    SystemTime::from(date.timestamp()).duration_since(SystemTime::now()).ok()
}

/// What the answer says, as far as a log line has room; it is somebody else's text.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn taken(response: ExportLogsServiceResponse) -> Answer {
    let partial = response.partial_success.unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
    Answer::Taken { rejected, message: excerpt(partial.error_message.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        let soon = jiff::Zoned::now().checked_add(jiff::Span::new().seconds(90)).unwrap();
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&soon.timestamp())
            .unwrap();
        let after = retry_after(&date).unwrap();
        assert!((80..=90).contains(&after.as_secs()), "{after:?} of {date}");
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), None, "long past");
        assert_eq!(retry_after("soon"), None);
    }
}
