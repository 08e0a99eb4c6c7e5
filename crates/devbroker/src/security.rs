//! How the listeners are secured: the setting, and its checked form with the files read.
//!
//! Touches no socket: [`transport`](super::transport) speaks TLS. Called by [`Broker`](super::Broker) at the start and
//! at each change, and by `server` for each connection.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// How the listeners of all nodes are secured; by default not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// TLS 1.2 and 1.3.
    pub tls: Option<ServerTls>,
}

/// The server's side of TLS. The files are read when the setting is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The certificate of the nodes and its intermediates, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
    /// The authorities of the clients' certificates, in PEM. If set, each client must present a certificate.
    pub client_authorities: Option<PathBuf>,
}

/// Why a [`Security`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the listeners cannot be secured: {0}")]
pub struct SecurityError(String);

/// A checked [`Security`].
#[derive(Default)]
pub(super) struct Secured {
    pub tls: Option<Arc<ServerConfig>>,
}

impl Security {
    /// Reads the files.
    pub(super) fn check(&self) -> Result<Secured, SecurityError> {
        let tls = self.tls.as_ref().map(ServerTls::config).transpose()?;
        Ok(Secured { tls: tls.map(Arc::new) })
    }
}

impl ServerTls {
    fn config(&self) -> Result<ServerConfig, SecurityError> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config.with_safe_default_protocol_versions().map_err(|error| SecurityError(error.to_string()))?;
        let config = match &self.client_authorities {
            None => config.with_no_client_auth(),
            Some(file) => {
                let mut authorities = RootCertStore::empty();
                for certificate in certificates(file)? {
                    authorities.add(certificate).map_err(unusable(file))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
                config.with_client_cert_verifier(verifier.map_err(unusable(file))?)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(unusable(&self.key))?;
        config.with_single_cert(certificates(&self.certificate)?, key).map_err(unusable(&self.certificate))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(unusable(file))
}

fn unusable<E: Display>(file: &Path) -> impl Fn(E) -> SecurityError {
    move |error| SecurityError(format!("{}: {error}", file.display()))
}
