//! TLS of a client's connections: the trusted authorities, the client's certificate, and texts for what fails.
//!
//! Reads the files again when they change, so a rotation needs no restart; open connections keep what they have. Always
//! verifies the broker's certificate and its name. It moves no bytes: `transport` does. Made by each program, used by
//! every connection.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, InconsistentKeys, RootCertStore,
};

use super::stamp::Stamp;

/// The option with the authorities' certificates.
const AUTHORITIES: &str = "KAFKA_SSL_CA_FILE";
/// The option with the client's certificate.
const CERTIFICATE: &str = "KAFKA_SSL_CERTIFICATE_FILE";
/// The option with the key of the client's certificate.
const KEY: &str = "KAFKA_SSL_KEY_FILE";

/// Files of a client, in PEM (RFC 7468).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the trusted authorities; `None`: those of the operating system.
    pub authorities: Option<PathBuf>,
    /// The client's certificate, followed by those of its issuers, and its key (PKCS#8, PKCS#1 or SEC1, not encrypted).
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {}{problem}", shown(option, path.as_deref()))]
pub struct TlsFault {
    option: &'static str,
    path: Option<PathBuf>,
    problem: String,
}

/// The path of a key is not shown: the option may have the key itself.
fn shown(option: &str, path: Option<&Path>) -> String {
    match path {
        Some(_) if option == KEY => "value [hidden] ".to_owned(),
        Some(path) => format!("value {path:?} "),
        None => String::new(),
    }
}

/// What all connections of a client share: one configuration also resumes sessions across connections.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ClientConfig>,
    /// The state of the files when they were read last, even if they could not be used.
    stamps: Vec<Option<Stamp>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or has no usable certificate or key; key and certificate do not belong together; without a
    /// file, the operating system has no trusted authorities.
    pub fn load(files: TlsFiles) -> Result<Self, TlsFault> {
        let stamps = files.stamps();
        let config = Arc::new(files.read()?);
        Ok(Self { files, current: Mutex::new(Current { config, stamps }) })
    }

    /// Returns every fault of the files, where [`load`](Self::load) returns the first.
    pub fn faults(files: &TlsFiles) -> Vec<TlsFault> {
        let identity = files.identity.as_ref();
        let certificate = identity.and_then(|(certificate, _)| certificates(CERTIFICATE, certificate).err());
        let key = identity.and_then(|(_, key)| private_key(key).err());
        let faults: Vec<_> = [files.roots().err(), certificate, key].into_iter().flatten().collect();
        // Files that can be used one by one may not fit together.
        if faults.is_empty() { files.read().err().into_iter().collect() } else { faults }
    }

    /// Makes the session of a new connection to `host`, as the broker was addressed.
    ///
    /// # Errors
    /// `host` can be in no certificate.
    pub(super) fn session(&self, host: &str) -> Result<ClientConnection, Error> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Error::General(format!("{host:?} is neither a DNS name nor an address; no certificate fits"))
        })?;
        let mut session = ClientConnection::new(self.config(), name)?;
        // A request is written as a whole; its own deadline bounds it.
        session.set_buffer_limit(None);
        Ok(session)
    }

    /// Returns the configuration, from the files' present content if that is usable.
    fn config(&self) -> Arc<ClientConfig> {
        let stamps = self.files.stamps();
        {
            let current = self.current.lock();
            if current.stamps == stamps {
                return Arc::clone(&current.config);
            }
        }
        let read = self.files.read();
        let mut current = self.current.lock();
        current.stamps = stamps;
        let fault = match read {
            Ok(config) => {
                current.config = Arc::new(config);
                None
            }
            Err(fault) => Some(fault),
        };
        let config = Arc::clone(&current.config);
        drop(current);
        match fault {
            None => log::info!("read the changed certificates of TLS; new connections use them"),
            // Each change is reported once. Files that are replaced one after the other do not fit for a moment.
            Some(fault) => log::warn!("kept the former certificates of TLS: {fault}"),
        }
        config
    }

    /// Describes a failed session. `true`: the same connection would fail again until a person changes something.
    pub(super) fn describe(&self, error: &Error, host: &str) -> (String, bool) {
        match error {
            Error::InvalidCertificate(problem) => (
                certificate_problem(problem, host),
                !matches!(problem, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }),
            ),
            Error::AlertReceived(alert) => self.alert(*alert),
            Error::InvalidMessage(_) => {
                ("it does not answer in TLS; is this a listener for SSL or SASL_SSL?".to_owned(), true)
            }
            Error::PeerIncompatible(problem) => {
                (format!("it has no version or cipher of TLS in common with this client: {problem:?}"), true)
            }
            other => (other.to_string(), false),
        }
    }

    fn alert(&self, alert: AlertDescription) -> (String, bool) {
        use AlertDescription as A;
        let about_certificate = matches!(
            alert,
            A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::CertificateRequired
                | A::UnknownCA
                | A::AccessDenied
        );
        match (&self.files.identity, about_certificate) {
            (None, true) => {
                (format!("it wants a client certificate (alert {alert:?}); set {CERTIFICATE} and {KEY}"), true)
            }
            (Some((path, _)), true) => (
                format!(
                    "it refused the client certificate {path:?} (alert {alert:?}); its ssl.truststore must have the issuer"
                ),
                true,
            ),
            (_, false) => (
                format!("it ended TLS with the alert {alert:?}"),
                matches!(alert, A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity),
            ),
        }
    }
}

fn certificate_problem(problem: &CertificateError, host: &str) -> String {
    match problem {
        // An authority with the same name and another key, as after a rotation, is a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!(
                "the issuer of its certificate is not trusted; set {AUTHORITIES} to a file with the issuer's certificate"
            )
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!("its certificate has expired, {} ago by this machine's clock", between(*not_after, *time))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!(
                "its certificate is valid in {} by this machine's clock; is the clock right?",
                between(*time, *not_before)
            )
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "its certificate is for {}, not for {host}; address the broker by one of these names (KAFKA_BOOTSTRAP_SERVERS, \
             and the broker's advertised.listeners)",
            if presented.is_empty() { "no name".to_owned() } else { names(presented) }
        ),
        other => format!("its certificate is not acceptable: {other}"),
    }
}

/// Names of a certificate, which come as `DnsName("kafka")` or `IpAddress(127.0.0.1)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner);
        inner.trim_end_matches(')').trim_matches('"').escape_debug().to_string()
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

/// The time between two times, in its largest unit.
fn between(earlier: UnixTime, later: UnixTime) -> String {
    let seconds = later.as_secs().saturating_sub(earlier.as_secs());
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl TlsFiles {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(identity).map(|path| Stamp::of(path)).collect()
    }

    fn read(&self) -> Result<ClientConfig, TlsFault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let fault = |option, path: Option<&PathBuf>, problem| TlsFault { option, path: path.cloned(), problem };
        let unusable = |error: Error| fault(AUTHORITIES, self.authorities.as_ref(), error.to_string());
        let builder = versions.map_err(unusable)?.with_root_certificates(self.roots()?);
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates(CERTIFICATE, certificate)?;
        builder.with_client_auth_cert(chain, private_key(key)?).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                fault(KEY, Some(key), format!("is not the key of the certificate in {certificate:?}"))
            }
            error => fault(KEY, Some(key), format!("cannot be used: {error}")),
        })
    }

    fn roots(&self) -> Result<RootCertStore, TlsFault> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.authorities else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if !roots.is_empty() {
                return Ok(roots);
            }
            let problem =
                "not set, and this system has no trusted authorities; expected a file with their certificates";
            return Err(TlsFault { option: AUTHORITIES, path: None, problem: problem.to_owned() });
        };
        for certificate in certificates(AUTHORITIES, path)? {
            let added = roots.add(certificate);
            let problem = |error: Error| format!("has a certificate that cannot be used: {error}");
            added.map_err(|error| TlsFault {
                option: AUTHORITIES,
                path: Some(path.clone()),
                problem: problem(error),
            })?;
        }
        Ok(roots)
    }
}

fn read_file(option: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
    let problem = |error: io::Error| format!("cannot be read ({error}); expected the path of a readable file");
    std::fs::read(path).map_err(|error| TlsFault { option, path: Some(path.to_owned()), problem: problem(error) })
}

/// Reads at least one certificate.
fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let text = read_file(option, path)?;
    let fault = |problem| TlsFault { option, path: Some(path.to_owned()), problem };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match read {
        Ok(chain) if chain.is_empty() => {
            Err(fault("has no certificate; expected \"-----BEGIN CERTIFICATE-----\"".to_owned()))
        }
        Ok(chain) => Ok(chain),
        Err(error) => Err(fault(format!("is no valid PEM: {error}"))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    let text = zeroize::Zeroizing::new(read_file(KEY, path)?);
    let fault = |problem: &str| TlsFault { option: KEY, path: Some(path.to_owned()), problem: problem.to_owned() };
    // "BEGIN ENCRYPTED PRIVATE KEY" (PKCS#8), or the header "Proc-Type: 4,ENCRYPTED" (PKCS#1, SEC1).
    if text.windows(9).any(|part| part == b"ENCRYPTED") {
        return Err(fault("is encrypted; expected a key without a passphrase (openssl pkey removes it)"));
    }
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| fault("has no key; expected \"-----BEGIN PRIVATE KEY-----\" (PKCS#8), or a key in PKCS#1 or SEC1"))
}

/// The error of a session inside the error of its transport.
pub(super) fn session_error(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

#[cfg(test)]
mod tests;
