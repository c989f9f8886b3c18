//! A kubeconfig file → the cluster and user of its current context; or what is wrong with it, by field and value.
//!
//! All of it is looked at before a client is made: kube takes some of these mistakes for something else (an unknown
//! user for nobody, an address without a scheme for a path), and tells of others only in every request's answer.
//! Secrets are never quoted.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use jiff::Timestamp;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, KubeconfigError};
use secrecy::{ExposeSecret, SecretString};

use super::certificate::not_after;
use super::connect::{ApiError, MAX_FILE_BYTES};
use super::token::Token;
use crate::manifest::files::{ReadError, read_text};
use crate::manifest::words;

/// How many names a message lists.
const MAX_NAMES: usize = 8;

/// What is wrong with a field of a kubeconfig; reads on from the field's name.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigProblem {
    /// The file has no content.
    #[error("is empty")]
    Empty,
    /// It is no YAML, or a field has another type.
    #[error("cannot be read: {message}{}", line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Syntax {
        /// Where, counted from 1.
        line: Option<u64>,
        /// What the parser says.
        message: String,
    },
    /// It says that it is something else.
    #[error("is {found:?}: the file is no kubeconfig")]
    Foreign {
        /// What it says.
        found: String,
    },
    /// There is no value.
    #[error("is missing{}", listed(known))]
    Missing {
        /// What there is to choose from.
        known: Vec<String>,
    },
    /// The name of something that is not there.
    #[error("is {name:?}, and there is no such {what}{}", listed(known))]
    Unknown {
        /// `cluster`, `user` or `context`.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A name that is given twice.
    #[error("stands twice in the file, so that it cannot be told which is meant")]
    Twice,
    /// An address that is none.
    #[error("is {value:?}: {problem}; it must be like https://10.0.0.1:6443")]
    Server {
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read.
    #[error("is {}: {cause}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        cause: ReadError,
    },
    /// A file of credentials is of no use.
    #[error("is {}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with its content.
        problem: Box<KubeconfigProblem>,
    },
    /// Data that cannot be decoded.
    #[error("is no base64 ({cause})")]
    Base64 {
        /// Why not.
        #[source]
        cause: base64::DecodeError,
    },
    /// Data in which nothing is that was looked for.
    #[error("has no {wanted} in PEM")]
    NoPem {
        /// `certificate` or `private key`.
        wanted: &'static str,
    },
    /// A certificate that cannot be read.
    #[error("has a certificate that cannot be read: {message}")]
    Certificate {
        /// Why not.
        message: String,
    },
    /// A certificate whose time is over.
    #[error("expired at {at}")]
    Expired {
        /// The end of its time.
        at: Timestamp,
    },
    /// A token that no request can carry.
    #[error("is no token: it is empty, or has spaces or control characters in it")]
    NoToken,
    /// A part that this program does not use.
    #[error(
        "is not used by this program, which runs no other program's code as root: give the user a tokenFile (kubectl \
         create token), or a client-certificate and client-key"
    )]
    Plugin,
    /// A way to the server that is not gone.
    #[error("is {value:?}: there is no support for proxies; name the server's own address")]
    Proxy {
        /// The value.
        value: String,
    },
}

fn listed(known: &[String]) -> String {
    let mut names: Vec<String> = known.iter().take(MAX_NAMES).map(|name| format!("{name:?}")).collect();
    if known.len() > MAX_NAMES {
        names.push(format!("and {} more", known.len() - MAX_NAMES));
    }
    if names.is_empty() { String::new() } else { format!("; the file has {}", names.join(", ")) }
}

/// What a client is made of.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// With the current context's cluster and user as they are used, and all else as it was.
    pub(crate) kubeconfig: Kubeconfig,
    /// Where the token is read from, again and again.
    pub(crate) token: Option<Token>,
    /// Nobody in particular: no user is named, or one without credentials.
    pub(crate) anonymous: bool,
}

/// A field and what is wrong with it.
type Fault = (String, KubeconfigProblem);

/// Reads a kubeconfig file and all that its current context names.
pub(crate) fn load(path: &Path) -> Result<Chosen, ApiError> {
    let text =
        read_text(path, MAX_FILE_BYTES).map_err(|cause| ApiError::File { path: path.to_owned(), cause })?;
    let fault = |(field, problem): Fault| ApiError::Kubeconfig {
        path: path.to_owned(),
        field,
        problem: Box::new(problem),
    };
    if text.trim().is_empty() {
        return Err(fault(("the file".to_owned(), KubeconfigProblem::Empty)));
    }
    let kubeconfig = Kubeconfig::from_yaml(text.trim_start_matches('\u{feff}'))
        .map_err(|error| fault(("the file".to_owned(), unread(&error))))?;
    choose(kubeconfig, path.parent().unwrap_or(Path::new("")), Timestamp::now()).map_err(fault)
}

fn unread(error: &KubeconfigError) -> KubeconfigProblem {
    match error {
        KubeconfigError::Parse(error) => KubeconfigProblem::Syntax {
            line: error.location().map(|location| location.line()).filter(|line| *line > 0),
            message: words::message(error),
        },
        error => KubeconfigProblem::Syntax { line: None, message: error.to_string() },
    }
}

/// `folder` is where files without a folder of their own are.
fn choose(mut kubeconfig: Kubeconfig, folder: &Path, now: Timestamp) -> Result<Chosen, Fault> {
    if let Some(found) = kubeconfig.kind.as_ref().filter(|kind| *kind != "Config") {
        return Err(("kind".to_owned(), KubeconfigProblem::Foreign { found: found.clone() }));
    }
    let contexts = names(&kubeconfig.contexts, |named| &named.name);
    let current = kubeconfig.current_context.clone().filter(|name| !name.is_empty());
    let current = current.ok_or_else(|| {
        ("current-context".to_owned(), KubeconfigProblem::Missing { known: contexts.clone() })
    })?;
    let place = find("context", "current-context", &current, &contexts)?;
    let context = kubeconfig.contexts.get(place).and_then(|named| named.context.clone());
    let field = format!("contexts[{current}].context");
    let Context { cluster, user, .. } =
        context.ok_or_else(|| (field.clone(), KubeconfigProblem::Missing { known: Vec::new() }))?;

    let clusters = names(&kubeconfig.clusters, |named| &named.name);
    let place = find("cluster", &format!("{field}.cluster"), &cluster, &clusters)?;
    let at = format!("clusters[{cluster}].cluster");
    let chosen = kubeconfig.clusters.get_mut(place).and_then(|named| named.cluster.as_mut());
    check_cluster(
        chosen.ok_or_else(|| (at.clone(), KubeconfigProblem::Missing { known: Vec::new() }))?,
        &at,
        folder,
    )?;

    let mut token = None;
    let mut anonymous = true;
    if let Some(user) = user.filter(|user| !user.is_empty()) {
        let users = names(&kubeconfig.auth_infos, |named| &named.name);
        let place = find("user", &format!("{field}.user"), &user, &users)?;
        let at = format!("users[{user}].user");
        let chosen = kubeconfig.auth_infos.get_mut(place).and_then(|named| named.auth_info.as_mut());
        let chosen = chosen.ok_or_else(|| (at.clone(), KubeconfigProblem::Missing { known: Vec::new() }))?;
        token = check_user(chosen, &at, folder, now)?;
        anonymous = token.is_none()
            && chosen.token.is_none()
            && chosen.username.is_none()
            && chosen.client_certificate.is_none()
            && chosen.client_certificate_data.is_none();
    }
    Ok(Chosen { kubeconfig, token, anonymous })
}

fn names<T>(all: &[T], name: impl Fn(&T) -> &String) -> Vec<String> {
    all.iter().map(|named| name(named).clone()).collect()
}

/// The place of a name among those that there are.
fn find(what: &'static str, field: &str, name: &str, known: &[String]) -> Result<usize, Fault> {
    let Some(place) = known.iter().position(|other| other == name) else {
        let problem = if name.is_empty() {
            KubeconfigProblem::Missing { known: known.to_vec() }
        } else {
            KubeconfigProblem::Unknown { what, name: name.to_owned(), known: known.to_vec() }
        };
        return Err((field.to_owned(), problem));
    };
    if known.iter().filter(|other| *other == name).count() > 1 {
        return Err((format!("{what}s[{name}]"), KubeconfigProblem::Twice));
    }
    Ok(place)
}

fn check_cluster(cluster: &mut Cluster, at: &str, folder: &Path) -> Result<(), Fault> {
    let server = cluster.server.as_deref().unwrap_or_default();
    server_address(server).map_err(|problem| (format!("{at}.server"), problem))?;
    unset_empty(&mut cluster.proxy_url);
    if let Some(value) = &cluster.proxy_url {
        let value = value.clone();
        return Err((format!("{at}.proxy-url"), KubeconfigProblem::Proxy { value }));
    }
    unset_empty(&mut cluster.tls_server_name);
    find_file(&mut cluster.certificate_authority, folder);
    unset_empty(&mut cluster.certificate_authority_data);
    let (field, data) = pem(
        at,
        "certificate-authority",
        cluster.certificate_authority_data.as_deref(),
        &cluster.certificate_authority,
    )?;
    data.map_or(Ok(()), |data| certificates(&data, None)).map_err(|problem| {
        (
            field,
            in_file(problem, cluster.certificate_authority_data.is_none(), &cluster.certificate_authority),
        )
    })
}

fn server_address(value: &str) -> Result<(), KubeconfigProblem> {
    if value.is_empty() {
        return Err(KubeconfigProblem::Missing { known: Vec::new() });
    }
    let bad =
        |problem: &str| KubeconfigProblem::Server { value: value.to_owned(), problem: problem.to_owned() };
    let uri: Uri = value.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
    match uri.scheme_str() {
        Some("https" | "http") => {}
        Some(other) => return Err(bad(&format!("the scheme {other:?} is none of an API server"))),
        None => return Err(bad("it has no scheme")),
    }
    let Some(authority) = uri.authority() else { return Err(bad("it has no host")) };
    if authority.host().is_empty() || authority.host() == "[]" {
        return Err(bad("it has no host"));
    }
    // A port that is no number is taken for none, and requests would go to another.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    if host_and_port.len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(bad("its port is none"));
    }
    if uri.query().is_some() {
        return Err(bad("it has a query"));
    }
    Ok(())
}

/// Takes a file's token out, which is read by others than kube.
fn check_user(user: &mut AuthInfo, at: &str, folder: &Path, now: Timestamp) -> Result<Option<Token>, Fault> {
    for (field, is_there) in [("exec", user.exec.is_some()), ("auth-provider", user.auth_provider.is_some())]
    {
        if is_there {
            return Err((format!("{at}.{field}"), KubeconfigProblem::Plugin));
        }
    }
    find_file(&mut user.token_file, folder);
    find_file(&mut user.client_certificate, folder);
    find_file(&mut user.client_key, folder);
    unset_empty(&mut user.client_certificate_data);
    let is_set = |secret: &SecretString| !secret.expose_secret().is_empty();
    user.token = user.token.take().filter(is_set);
    user.client_key_data = user.client_key_data.take().filter(is_set);

    check_identity(user, at, now)?;
    if let Some(token) = &user.token
        && !is_token(token.expose_secret())
    {
        return Err((format!("{at}.token"), KubeconfigProblem::NoToken));
    }
    // As client-go does: the file goes before the value.
    let Some(file) = user.token_file.take() else { return Ok(None) };
    user.token = None;
    let token = Token::read(Path::new(&file)).map_err(|problem| (format!("{at}.tokenFile"), problem))?;
    Ok(Some(token))
}

/// Looks at the client certificate and its key.
fn check_identity(user: &AuthInfo, at: &str, now: Timestamp) -> Result<(), Fault> {
    let missing = |field: &str| (format!("{at}.{field}"), KubeconfigProblem::Missing { known: Vec::new() });
    let (certificate, key) = (&user.client_certificate_data, &user.client_key_data);
    let (field, data) = pem(at, "client-certificate", certificate.as_deref(), &user.client_certificate)?;
    let (key_field, key_data) =
        pem(at, "client-key", key.as_ref().map(ExposeSecret::expose_secret), &user.client_key)?;
    match (data, key_data) {
        (None, None) => Ok(()),
        (Some(_), None) => Err(missing("client-key")),
        (None, Some(_)) => Err(missing("client-certificate")),
        (Some(data), Some(key_data)) => {
            certificates(&data, Some(now)).map_err(|problem| {
                (field, in_file(problem, certificate.is_none(), &user.client_certificate))
            })?;
            private_key(&key_data)
                .map_err(|problem| (key_field, in_file(problem, key.is_none(), &user.client_key)))
        }
    }
}

/// The field that is used of a pair `NAME` and `NAME-data`, and what it leads to.
fn pem(
    at: &str,
    name: &str,
    data: Option<&str>,
    file: &Option<String>,
) -> Result<(String, Option<Vec<u8>>), Fault> {
    match (data, file) {
        (Some(data), _) => {
            let field = format!("{at}.{name}-data");
            match STANDARD.decode(data) {
                Ok(bytes) => Ok((field, Some(bytes))),
                Err(cause) => Err((field, KubeconfigProblem::Base64 { cause })),
            }
        }
        (None, Some(file)) => {
            let field = format!("{at}.{name}");
            match read_text(Path::new(file), MAX_FILE_BYTES) {
                Ok(text) => Ok((field, Some(text.into_bytes()))),
                Err(cause) => Err((field, KubeconfigProblem::File { file: file.into(), cause })),
            }
        }
        (None, None) => Ok((at.to_owned(), None)),
    }
}

fn in_file(problem: KubeconfigProblem, is_file: bool, file: &Option<String>) -> KubeconfigProblem {
    match file {
        Some(file) if is_file => KubeconfigProblem::Content { file: file.into(), problem: Box::new(problem) },
        _ => problem,
    }
}

/// At least one certificate is there, all can be read, and the first, which is the client's, has not expired.
fn certificates(bytes: &[u8], now: Option<Timestamp>) -> Result<(), KubeconfigProblem> {
    let unreadable = |message: String| KubeconfigProblem::Certificate { message };
    let blocks = pem::parse_many(bytes).map_err(|error| unreadable(error.to_string()))?;
    let mut ends = Vec::new();
    for block in blocks.iter().filter(|block| block.tag() == "CERTIFICATE") {
        let end = not_after(block.contents());
        ends.push(end.ok_or_else(|| unreadable("it is no X.509 in DER".to_owned()))?);
    }
    match (ends.first(), now) {
        (None, _) => Err(KubeconfigProblem::NoPem { wanted: "certificate" }),
        (Some(at), Some(now)) if *at < now => Err(KubeconfigProblem::Expired { at: *at }),
        _ => Ok(()),
    }
}

fn private_key(bytes: &[u8]) -> Result<(), KubeconfigProblem> {
    const TAGS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
    let blocks = pem::parse_many(bytes).unwrap_or_default();
    if blocks.iter().any(|block| TAGS.contains(&block.tag())) {
        Ok(())
    } else {
        Err(KubeconfigProblem::NoPem { wanted: "private key" })
    }
}

/// Whether a request can carry it: RFC 6750 allows less, and API servers more.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace) && HeaderValue::from_str(text).is_ok()
}

/// Files are named from where the kubeconfig is, and an empty name is none.
fn find_file(file: &mut Option<String>, folder: &Path) {
    unset_empty(file);
    if let Some(name) = file {
        *name = folder.join(&*name).display().to_string();
    }
}

fn unset_empty(value: &mut Option<String>) {
    if value.as_deref() == Some("") {
        *value = None;
    }
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;
