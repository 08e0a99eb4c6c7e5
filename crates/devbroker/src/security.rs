//! How the listeners are secured: the setting, and its checked form with the files read.
//!
//! Touches no socket: [`transport`](super::transport) speaks TLS, [`authentication`](super::authentication) SASL. Called
//! by [`Broker`](super::Broker) at the start and at each change, and by `server` for each connection.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::scram::{Credential, Hash};

/// How the listeners of all nodes are secured; by default not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// TLS 1.2 and 1.3.
    pub tls: Option<ServerTls>,
    /// With it clients have to authenticate.
    pub sasl: Option<Sasl>,
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

/// The server's side of SASL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    /// The mechanisms that clients may choose from.
    pub mechanisms: Vec<SaslMechanism>,
    /// Passwords by user, for PLAIN and SCRAM.
    pub users: BTreeMap<String, String>,
    /// The tokens that OAUTHBEARER accepts.
    pub tokens: Vec<String>,
    /// The time after which a client has to authenticate again (KIP-368; Kafka's `connections.max.reauth.ms`); without
    /// it never.
    pub lifetime: Option<Duration>,
    /// The iteration count of SCRAM, from 1; Kafka's default is 4096.
    pub iterations: u32,
}

impl Default for Sasl {
    /// Without mechanisms, users and tokens.
    fn default() -> Self {
        let (mechanisms, tokens) = (Vec::new(), Vec::new());
        Self { mechanisms, users: BTreeMap::new(), tokens, lifetime: None, iterations: 4096 }
    }
}

/// A mechanism of SASL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SaslMechanism {
    /// RFC 4616
    Plain,
    /// RFC 7677
    ScramSha256,
    /// RFC 5802 with SHA-512
    ScramSha512,
    /// RFC 7628
    OauthBearer,
}

impl SaslMechanism {
    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Why a [`Security`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the listeners cannot be secured: {0}")]
pub struct SecurityError(String);

/// A checked [`Security`].
#[derive(Default)]
pub(super) struct Secured {
    pub tls: Option<Arc<ServerConfig>>,
    pub sasl: Option<Arc<Accounts>>,
}

/// The accounts of SASL.
#[derive(Default)]
pub(super) struct Accounts {
    sasl: Sasl,
    credentials: BTreeMap<(SaslMechanism, String), Credential>,
}

impl Accounts {
    fn new(sasl: &Sasl) -> Result<Self, SecurityError> {
        let none = || SecurityError("the iteration count of SCRAM is 0".to_owned());
        let iterations = NonZeroU32::new(sasl.iterations).ok_or_else(none)?;
        let hashes = [(SaslMechanism::ScramSha256, Hash::Sha256), (SaslMechanism::ScramSha512, Hash::Sha512)];
        let credentials = hashes.iter().flat_map(|(mechanism, hash)| {
            let users = sasl.users.iter();
            users.map(|(user, password)| ((*mechanism, user.clone()), Credential::new(*hash, password, iterations)))
        });
        Ok(Self { sasl: sasl.clone(), credentials: credentials.collect() })
    }

    pub fn mechanisms(&self) -> &[SaslMechanism] {
        &self.sasl.mechanisms
    }

    pub fn lifetime(&self) -> Option<Duration> {
        self.sasl.lifetime
    }

    pub fn password(&self, user: &str) -> Option<&str> {
        self.sasl.users.get(user).map(String::as_str)
    }

    pub fn credential(&self, mechanism: SaslMechanism, user: &str) -> Option<&Credential> {
        self.credentials.get(&(mechanism, user.to_owned()))
    }

    pub fn accepts(&self, token: &str) -> bool {
        self.sasl.tokens.iter().any(|accepted| accepted == token)
    }
}

impl Security {
    /// Reads the files, and gives each account a new salt.
    pub(super) fn check(&self) -> Result<Secured, SecurityError> {
        let tls = self.tls.as_ref().map(ServerTls::config).transpose()?;
        let sasl = self.sasl.as_ref().map(Accounts::new).transpose()?;
        Ok(Secured { tls: tls.map(Arc::new), sasl: sasl.map(Arc::new) })
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
