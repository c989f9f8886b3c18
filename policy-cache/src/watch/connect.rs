//! Where the API server is and who we are there → a client. Made anew when the server no longer knows us, which
//! reads rotated tokens and certificates at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use super::kubeconfig::{self, KubeconfigProblem};
use super::token::Token;
use crate::manifest::files::{ReadError, read_text};

/// The largest file of credentials that is read.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a connection may take to be established.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Where the credentials for the API are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In a kubeconfig file, in its current context.
    Kubeconfig(PathBuf),
    /// In the service account of the pod this process runs in.
    InCluster,
}

/// The API cannot be reached, for a reason that waiting does not mend.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {field} {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The field, from the top of the file: `clusters[NAME].cluster.server`.
        field: String,
        /// What is wrong with it.
        problem: Box<KubeconfigProblem>,
    },
    /// The kubeconfig, or a file of the service account, cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: ReadError,
    },
    /// There is no service account to use.
    #[error("this is no pod with a service account: {cause}; name a file with --kubeconfig, or manifests")]
    InCluster {
        /// What is missing.
        #[source]
        cause: Box<kube::config::InClusterError>,
    },
    /// The service account's token cannot be used.
    #[error("the token of this pod's service account {0}")]
    Token(#[source] Box<KubeconfigProblem>),
    /// The credentials cannot be used together: a key that is another certificate's, say.
    #[error("the credentials of {place} cannot be used: {cause}")]
    Client {
        /// The kubeconfig, or the service account.
        place: String,
        /// Why.
        #[source]
        cause: Box<kube::Error>,
    },
    /// A thread or its runtime cannot be made.
    #[error("start the thread {name}: {cause}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// A client, and what its requests carry.
pub(crate) struct Way {
    pub(crate) client: Client,
    /// Where the token comes from, when it is in a file.
    pub(crate) token: Option<Token>,
    /// No credentials are sent.
    pub(crate) anonymous: bool,
}

impl Access {
    /// A client with what the files say now.
    pub(crate) async fn way(&self) -> Result<Way, ApiError> {
        let (mut config, token, anonymous) = match self {
            Self::Kubeconfig(path) => from_file(path).await?,
            Self::InCluster => in_cluster()?,
        };
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.write_timeout = Some(CONNECT_LIMIT);
        // Silence is judged by whoever reads, and failures by the course of a collection.
        config.read_timeout = None;
        config.default_retry = false;
        config.disable_compression = true;
        // From the environment: what is meant for images and packages is not the way to the API server.
        config.proxy_url = None;
        let client = Client::try_from(config)
            .map_err(|cause| ApiError::Client { place: self.place(), cause: Box::new(cause) })?;
        Ok(Way { client, token, anonymous })
    }

    /// What it is called.
    pub fn place(&self) -> String {
        match self {
            Self::Kubeconfig(path) => path.display().to_string(),
            Self::InCluster => "the pod's service account".to_owned(),
        }
    }
}

async fn from_file(path: &Path) -> Result<(Config, Option<Token>, bool), ApiError> {
    let kubeconfig::Chosen { kubeconfig, token, anonymous } = kubeconfig::load(path)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let config = config.map_err(|error| ApiError::Kubeconfig {
        path: path.to_owned(),
        field: "the file".to_owned(),
        problem: Box::new(KubeconfigProblem::Syntax { line: None, message: error.to_string() }),
    })?;
    Ok((config, token, anonymous))
}

fn in_cluster() -> Result<(Config, Option<Token>, bool), ApiError> {
    let authority = Path::new(SERVICE_ACCOUNT).join("ca.crt");
    if authority.exists() {
        // kube reads it whole, whatever it is.
        read_text(&authority, MAX_FILE_BYTES).map_err(|cause| ApiError::File { path: authority, cause })?;
    }
    let mut config = Config::incluster().map_err(|cause| ApiError::InCluster { cause: Box::new(cause) })?;
    let token = config.auth_info.token_file.take();
    let token = token.map(|file| Token::read(Path::new(&file))).transpose();
    let token = token.map_err(|problem| ApiError::Token(Box::new(problem)))?;
    let anonymous = token.is_none();
    Ok((config, token, anonymous))
}
