//! Certificates from files, read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use crate::config::HubbleTls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// Why.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// What new connections are met with.
pub(crate) struct Certificates {
    config: HubbleTls,
    acceptor: TlsAcceptor,
    changed: Vec<Option<SystemTime>>,
    looked: Instant,
}

impl Certificates {
    pub(crate) fn read(config: &HubbleTls) -> Result<Self, TlsError> {
        let changed = changed(config);
        let acceptor = acceptor(config)?;
        Ok(Self { config: config.clone(), acceptor, changed, looked: Instant::now() })
    }

    /// For the next connection. Files that cannot be used leave the last ones in use.
    pub(crate) fn acceptor(&mut self) -> TlsAcceptor {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.look();
        }
        self.acceptor.clone()
    }

    fn look(&mut self) {
        let changed = changed(&self.config);
        if changed == self.changed {
            return;
        }
        match acceptor(&self.config) {
            Ok(acceptor) => {
                tracing::info!("the certificates of the flow API were renewed");
                self.acceptor = acceptor;
                self.changed = changed;
            }
            Err(error) => tracing::error!(%error, "the certificates of the flow API stay the old ones"),
        }
    }
}

fn changed(config: &HubbleTls) -> Vec<Option<SystemTime>> {
    let files = [Some(&config.cert_file), Some(&config.key_file), config.client_ca_file.as_ref()];
    let changed = |file: &PathBuf| std::fs::metadata(file).and_then(|file| file.modified()).ok();
    files.into_iter().flatten().map(changed).collect()
}

fn acceptor(config: &HubbleTls) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|cause| fault(&config.cert_file, cause))?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|cause| fault(file, cause))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|cause| fault(file, cause))?)
        }
    };
    let key =
        PrivateKeyDer::from_pem_file(&config.key_file).map_err(|cause| fault(&config.key_file, cause))?;
    let mut tls = builder
        .with_single_cert(certificates(&config.cert_file)?, key)
        .map_err(|cause| fault(&config.cert_file, cause))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found = found.map_err(|cause| fault(file, cause))?;
    if found.is_empty() { Err(fault(file, "no certificate in it")) } else { Ok(found) }
}

fn fault(file: &Path, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TlsError {
    TlsError { file: file.to_owned(), cause: cause.into() }
}
