//! Where the API server is and who we are there → a client. Made anew when the server no longer knows us, which
//! reads rotated tokens and certificates at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::manifest::files::{ReadError, read_text};

/// The largest file of credentials that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;
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
    #[error("kubeconfig {}: {cause}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<kube::config::KubeconfigError>,
    },
    /// A file of credentials, or the kubeconfig, cannot be read.
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
    /// The credentials cannot be used.
    #[error("the credentials for the API server cannot be used: {0}")]
    Client(#[source] Box<kube::Error>),
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

impl Access {
    /// A client with what the files say now.
    pub(crate) async fn client(&self) -> Result<Client, ApiError> {
        let mut config = match self {
            Self::Kubeconfig(path) => from_file(path).await?,
            Self::InCluster => {
                let files = ["token", "ca.crt"].map(|name| Path::new(SERVICE_ACCOUNT).join(name));
                files.iter().filter(|path| path.exists()).try_for_each(|path| readable(path))?;
                Config::incluster().map_err(|cause| ApiError::InCluster { cause: Box::new(cause) })?
            }
        };
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.write_timeout = Some(CONNECT_LIMIT);
        // Silence is judged by whoever reads, and failures by the course of a collection.
        config.read_timeout = None;
        config.default_retry = false;
        config.disable_compression = true;
        Client::try_from(config).map_err(|cause| ApiError::Client(Box::new(cause)))
    }
}

async fn from_file(path: &Path) -> Result<Config, ApiError> {
    let unusable = |cause| ApiError::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    readable(path)?;
    let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
    for file in credentials(&kubeconfig) {
        readable(Path::new(file))?;
    }
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)
}

/// Whoever reads these files later reads them whole, and waits for them.
fn readable(path: &Path) -> Result<(), ApiError> {
    match read_text(path, MAX_FILE_BYTES) {
        // Bytes that are no text are for whoever reads them to refuse.
        Ok(_) | Err(ReadError::NotUtf8) => Ok(()),
        Err(cause) => Err(ApiError::File { path: path.to_owned(), cause }),
    }
}

/// The files that the current context's cluster and user name.
fn credentials(kubeconfig: &Kubeconfig) -> impl Iterator<Item = &str> {
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig.contexts.iter().find(|named| named.name == current);
    let context = context.and_then(|named| named.context.as_ref());
    let (cluster, user) =
        context.map(|context| (context.cluster.as_str(), context.user.as_deref())).unwrap_or_default();
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == cluster);
    let user = kubeconfig.auth_infos.iter().find(|named| Some(named.name.as_str()) == user);
    let authority = cluster.and_then(|named| named.cluster.as_ref()?.certificate_authority.as_deref());
    let user = user.and_then(|named| named.auth_info.as_ref());
    let files = user.map(|user| [&user.token_file, &user.client_certificate, &user.client_key]);
    authority.into_iter().chain(files.into_iter().flatten().filter_map(|file| file.as_deref()))
}
