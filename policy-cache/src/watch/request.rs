//! One request to the API server → its answer, or how it ended. The only place that speaks HTTP.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;

use super::connect::{Access, Way};
use super::course::Outcome;
use super::token::Token;

/// How much of an error's body is read.
const MAX_ERROR: usize = 64 << 10;
/// A client is not made anew more often than this.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// The way to the API server, shared by all who ask it.
#[derive(Debug)]
pub(crate) struct Door {
    access: Access,
    current: Mutex<Current>,
    answer_timeout: Duration,
}

struct Current {
    client: Client,
    token: Option<Token>,
    /// When the client was made, or could not be made anew.
    tried: tokio::time::Instant,
    /// Why it could not be, until it can.
    stale: Option<String>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("tried", &self.tried).finish_non_exhaustive()
    }
}

/// A request that failed, with what a person should know of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    /// The HTTP status, where there was an answer.
    pub(crate) status: Option<StatusCode>,
}

impl Failure {
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Broken, message: message.into(), status: None }
    }

    pub(crate) fn silent(limit: Duration) -> Self {
        Self { outcome: Outcome::Silent, message: format!("nothing came for {limit:?}"), status: None }
    }

    /// The same with the whole of a limit, when silence was waited for only through the rest of it.
    pub(crate) fn over(self, limit: Duration) -> Self {
        if self.outcome == Outcome::Silent {
            return Self { message: format!("nothing whole came for {limit:?}"), ..self };
        }
        self
    }
}

impl Door {
    pub(crate) fn new(access: Access, way: Way, answer_timeout: Duration) -> Self {
        Self { access, current: Mutex::new(Current::of(way)), answer_timeout }
    }

    /// How long the server may be silent where it has no reason to be.
    pub(crate) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// Asks for a path; the answer's body is still to come.
    pub(crate) async fn get(&self, path: &str) -> Result<Body, Failure> {
        let request = Request::get(path).body(Body::empty());
        self.send(request.map_err(|error| Failure::broken(error.to_string()))?).await
    }

    /// Sends JSON, and passes over what comes back but for its status.
    pub(crate) async fn write(
        &self,
        method: Method,
        path: &str,
        content: &'static str,
        json: Vec<u8>,
    ) -> Result<(), Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content)
            .body(Body::from(json));
        self.send(request.map_err(|error| Failure::broken(error.to_string()))?).await.map(drop)
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Body, Failure> {
        let client = {
            let mut current = self.lock();
            if let Some(token) = &mut current.token {
                request.headers_mut().insert(header::AUTHORIZATION, token.header(Instant::now()));
            }
            current.client.clone()
        };
        let response = match tokio::time::timeout(self.answer_timeout, client.send(request)).await {
            Err(_) => {
                self.renew().await;
                return Err(Failure::silent(self.answer_timeout));
            }
            Ok(Err(error)) => {
                self.renew().await;
                return Err(Failure::broken(chain(&error)));
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status.is_success() {
            return match foreign(response.headers()) {
                None => Ok(response.into_body()),
                Some(message) => Err(Failure { status: Some(status), ..Failure::broken(message) }),
            };
        }
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok().map(Duration::from_secs));
        let response_location = header_text(response.headers(), &header::LOCATION).map(str::to_owned);
        let body = tokio::time::timeout(self.answer_timeout, bounded(response.into_body(), MAX_ERROR)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            self.renew().await;
        }
        let outcome = outcome(status, retry_after);
        let elsewhere = elsewhere(status, response_location);
        let message = format!("{status}{}{elsewhere}", reason(&body));
        Err(Failure { outcome, message, status: Some(status) })
    }

    /// Reads the credentials again: they may have been rotated.
    async fn renew(&self) {
        {
            let mut current = self.lock();
            if current.tried.elapsed() < RENEWAL_PAUSE {
                return;
            }
            current.tried = tokio::time::Instant::now();
        }
        match self.access.way().await {
            Ok(way) => *self.lock() = Current::of(way),
            Err(error) => {
                let why = error.to_string();
                let mut current = self.lock();
                if current.stale.as_ref() != Some(&why) {
                    tracing::warn!(
                        error = why,
                        "the credentials cannot be read again; the old ones are used"
                    );
                }
                current.stale = Some(why);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Current {
    fn of(way: Way) -> Self {
        Self { client: way.client, token: way.token, tried: tokio::time::Instant::now(), stale: None }
    }
}

/// What a status that is no success means.
pub(crate) fn outcome(status: StatusCode, retry_after: Option<Duration>) -> Outcome {
    match status {
        StatusCode::GONE => Outcome::Expired,
        StatusCode::NOT_FOUND => Outcome::NotServed,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Outcome::Invalid,
        _ => Outcome::Refused { retry_after },
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn bounded(mut body: Body, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::broken(chain(&error)))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Err(Failure::broken("the answer is too large"));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

/// Gives the next bytes of a body to `take`. False at its end.
pub(crate) async fn next(
    body: &mut Body,
    silence: Duration,
    take: impl FnOnce(&[u8]),
) -> Result<bool, Failure> {
    loop {
        match tokio::time::timeout(silence, body.frame()).await {
            Err(_) => return Err(Failure::silent(silence)),
            Ok(None) => return Ok(false),
            Ok(Some(Err(error))) => return Err(Failure::broken(chain(&error))),
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    take(data);
                    return Ok(true);
                }
            }
        }
    }
}

/// Why a successful answer is not what an API server says; `None` when it may be. A load balancer or a sign-in page
/// answers whatever it is asked with 200 and a page.
fn foreign(headers: &HeaderMap) -> Option<String> {
    let encoding = header_text(headers, &header::CONTENT_ENCODING).filter(|text| *text != "identity");
    if let Some(encoding) = encoding {
        return Some(format!("the answer is encoded as {:?}, which was not asked for", short(encoding)));
    }
    let content = header_text(headers, &header::CONTENT_TYPE)?;
    let is_json = content.split(';').next().is_some_and(|kind| kind.trim() == "application/json");
    (!is_json).then(|| {
        format!("the answer is {:?} and no JSON: another program than an API server gave it", short(content))
    })
}

/// Where a redirection leads. It is not followed, for it would take the credentials along.
fn elsewhere(status: StatusCode, location: Option<String>) -> String {
    match location {
        Some(location) if status.is_redirection() => {
            format!(": it leads to {:?}, and redirections are not followed", short(&location))
        }
        _ => String::new(),
    }
}

fn header_text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A stranger's text as it may stand in a line.
pub(crate) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The message of the Status that an error's body is.
fn reason(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Status {
        message: String,
    }
    let Ok(status) = serde_json::from_slice::<Status>(body) else { return String::new() };
    format!(": {}", short(&status.message))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A query string of these pairs, percent-encoded.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String does not fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(query(&[("a", "x y&="), ("b", "1-2")]), "?a=x%20y%26%3D&b=1-2");
        assert_eq!(query(&[]), "");
    }

    #[test]
    fn what_no_api_server_says_is_told_by_its_headers() {
        let told = |pairs: &[(HeaderName, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            foreign(&pairs.collect())
        };
        for content in
            ["application/json", "application/json;charset=utf-8", "application/json; stream=watch"]
        {
            assert_eq!(told(&[(header::CONTENT_TYPE, content)]), None, "{content}");
        }
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[(header::CONTENT_ENCODING, "identity")]), None);
        let page = told(&[(header::CONTENT_TYPE, "text/html; charset=utf-8")]).unwrap();
        assert!(page.contains("text/html"), "{page}");
        let packed =
            told(&[(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")]).unwrap();
        assert!(packed.contains("gzip"), "{packed}");
        let moved = elsewhere(StatusCode::FOUND, Some("https://sign.in/".to_owned()));
        assert!(moved.contains("https://sign.in/") && moved.contains("not followed"), "{moved}");
        assert_eq!(elsewhere(StatusCode::FOUND, None), "");
    }

    #[test]
    fn a_status_says_how_to_go_on() {
        let of = |code: u16| outcome(StatusCode::from_u16(code).unwrap(), None);
        assert_eq!(
            [of(410), of(404), of(400), of(422)],
            [Outcome::Expired, Outcome::NotServed, Outcome::Invalid, Outcome::Invalid]
        );
        for code in [401, 403, 409, 429, 500, 503, 504] {
            assert_eq!(of(code), Outcome::Refused { retry_after: None }, "{code}");
        }
    }
}
