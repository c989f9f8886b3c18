//! Where the API server is and who we are there → a client. Made anew when the server no longer knows us, which
//! reads rotated tokens and certificates at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

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
            Self::Kubeconfig(path) => from_file(path)
                .await
                .map_err(|cause| ApiError::Kubeconfig { path: path.clone(), cause: Box::new(cause) })?,
            Self::InCluster => {
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

async fn from_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}
