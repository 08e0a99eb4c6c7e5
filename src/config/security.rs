//! How connections to Kafka are secured: the options `KAFKA_SECURITY_PROTOCOL`, `KAFKA_SASL_*` and `KAFKA_SSL_*`.
//!
//! Checks that the options fit together, and makes TLS and login of the client. Secrets are in files, and neither their
//! content nor the values of their options are ever shown. Called by `parse`, [`Common`](super::Common) and the drill.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use kafka_share::login::{Login, SecretSource};
use kafka_share::sasl::Mechanism;
use kafka_share::tls::{Tls, TlsFault, TlsFiles};
use kafka_share::{BrokerAddress, ClientOptions};
use program::logging::escape;
use program::options::Faults;
use program::options::values::{self, Read};

use super::options::SecurityOptions;

/// How connections to Kafka are secured.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// `KAFKA_SECURITY_PROTOCOL`
    pub protocol: SecurityProtocol,
    /// `KAFKA_SASL_MECHANISM`
    pub sasl_mechanism: Option<Mechanism>,
    /// `KAFKA_SASL_USERNAME`
    pub sasl_username: Option<String>,
    /// `KAFKA_SASL_PASSWORD_FILE`
    pub sasl_password_file: Option<PathBuf>,
    /// `KAFKA_SASL_TOKEN_FILE`
    pub sasl_token_file: Option<PathBuf>,
    /// `KAFKA_SASL_TOKEN_COMMAND`
    pub sasl_token_command: Option<String>,
    /// `KAFKA_SSL_CA_FILE`
    pub ssl_ca_file: Option<PathBuf>,
    /// `KAFKA_SSL_CERTIFICATE_FILE`
    pub ssl_certificate_file: Option<PathBuf>,
    /// `KAFKA_SSL_KEY_FILE`
    pub ssl_key_file: Option<PathBuf>,
}

impl Security {
    /// Checks the options, and adds each fault.
    pub fn read(options: &SecurityOptions, faults: &mut Faults) -> Self {
        let mut security = Self::default();
        let protocol = &options.kafka_security_protocol;
        faults.set(&mut security.protocol, "KAFKA_SECURITY_PROTOCOL", protocol, security_protocol);
        if let Some(text) = &options.kafka_sasl_mechanism {
            let mechanism = |text: &str| sasl_mechanism(text).map(Some);
            faults.set(&mut security.sasl_mechanism, "KAFKA_SASL_MECHANISM", text, mechanism);
        }
        security.sasl_username.clone_from(&options.kafka_sasl_username);
        security.sasl_token_command.clone_from(&options.kafka_sasl_token_command);
        for (path, name, text) in [
            (&mut security.sasl_password_file, "KAFKA_SASL_PASSWORD_FILE", &options.kafka_sasl_password_file),
            (&mut security.sasl_token_file, "KAFKA_SASL_TOKEN_FILE", &options.kafka_sasl_token_file),
            (&mut security.ssl_key_file, "KAFKA_SSL_KEY_FILE", &options.kafka_ssl_key_file),
        ] {
            // The text is not shown: a user may have set the secret itself, which must not get into a log.
            match text.as_deref().map(values::readable_file).transpose() {
                Ok(file) => *path = file,
                Err(problem) => faults.add_hidden(name, &problem),
            }
        }
        let file = |text: &str| values::readable_file(text).map(Some);
        for (path, name, text) in [
            (&mut security.ssl_ca_file, "KAFKA_SSL_CA_FILE", &options.kafka_ssl_ca_file),
            (&mut security.ssl_certificate_file, "KAFKA_SSL_CERTIFICATE_FILE", &options.kafka_ssl_certificate_file),
        ] {
            if let Some(text) = text {
                faults.set(path, name, text, file);
            }
        }
        security.check_fit(options, faults);
        security
    }

    /// Reports options that are missing, and options without an effect: connections would look secured by these.
    fn check_fit(&self, options: &SecurityOptions, faults: &mut Faults) {
        let protocol = format!("KAFKA_SECURITY_PROTOCOL {}", self.protocol.name());
        // With an unknown mechanism, only the mechanism is a fault.
        let unknown = self.sasl_mechanism.is_none() && options.kafka_sasl_mechanism.is_some();
        let (has_sasl, has_tls) = (self.protocol.has_sasl(), self.protocol.has_tls());
        let has_token = self.sasl_mechanism == Some(Mechanism::OauthBearer);
        let (password, token) = (has_sasl && !has_token, has_sasl && has_token);
        let (file, command) = (options.kafka_sasl_token_file.is_some(), options.kafka_sasl_token_command.is_some());
        for (name, given, fits, is_needed, with) in [
            (
                "KAFKA_SASL_MECHANISM",
                options.kafka_sasl_mechanism.is_some(),
                has_sasl,
                true,
                "SASL_PLAINTEXT or SASL_SSL",
            ),
            ("KAFKA_SASL_USERNAME", options.kafka_sasl_username.is_some(), password, true, "PLAIN or SCRAM"),
            ("KAFKA_SASL_PASSWORD_FILE", options.kafka_sasl_password_file.is_some(), password, true, "PLAIN or SCRAM"),
            ("KAFKA_SASL_TOKEN_FILE", file, token, !command, "OAUTHBEARER"),
            ("KAFKA_SASL_TOKEN_COMMAND", command, token, false, "OAUTHBEARER"),
        ] {
            if given && !fits && !unknown {
                faults.note(format!("{name}: set; expected only with {with}"));
            } else if fits && is_needed && !given && !unknown {
                faults.note(format!("{name}: not set; expected with {protocol}"));
            }
        }
        if file && command {
            faults.note("KAFKA_SASL_TOKEN_COMMAND: set; expected only without KAFKA_SASL_TOKEN_FILE".to_owned());
        }
        let (certificate, key) = (options.kafka_ssl_certificate_file.is_some(), options.kafka_ssl_key_file.is_some());
        for (name, given) in [
            ("KAFKA_SSL_CA_FILE", options.kafka_ssl_ca_file.is_some()),
            ("KAFKA_SSL_CERTIFICATE_FILE", certificate),
            ("KAFKA_SSL_KEY_FILE", key),
        ] {
            if given && !has_tls {
                faults.note(format!("{name}: set; expected only with SSL or SASL_SSL"));
            }
        }
        if certificate && !key {
            faults.note("KAFKA_SSL_KEY_FILE: not set; expected with KAFKA_SSL_CERTIFICATE_FILE".to_owned());
        }
        if key && !certificate {
            faults.note("KAFKA_SSL_CERTIFICATE_FILE: not set; expected with KAFKA_SSL_KEY_FILE".to_owned());
        }
    }

    /// Checks what a start checks after the options: whether the files of TLS can be used.
    pub(super) fn check_files(&self, options: &SecurityOptions, faults: &mut Faults) {
        // An unreadable file is a fault already, and does not mean the system's authorities.
        if options.kafka_ssl_ca_file.is_some() && self.ssl_ca_file.is_none() {
            return;
        }
        for fault in self.tls_files().iter().flat_map(Tls::faults) {
            faults.note(escape(&fault.to_string()).to_string());
        }
    }

    /// Options of a client of this Kafka. Reads the files of TLS.
    ///
    /// # Errors
    /// One of the files cannot be used.
    pub fn client_options(&self, bootstrap: Vec<BrokerAddress>, client_id: &str) -> Result<ClientOptions, TlsFault> {
        let mut options = ClientOptions::new(bootstrap, client_id);
        options.tls = self.tls()?;
        options.login = self.login();
        Ok(options)
    }

    /// The variables that give another program the same options. An option that is not set has an empty variable, which
    /// counts as unset and hides the variable of this process.
    pub fn variables(&self) -> [(&'static str, String); 9] {
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        [
            ("KAFKA_SECURITY_PROTOCOL", self.protocol.name().to_owned()),
            ("KAFKA_SASL_MECHANISM", self.sasl_mechanism.map(Mechanism::name).unwrap_or_default().to_owned()),
            ("KAFKA_SASL_USERNAME", self.sasl_username.clone().unwrap_or_default()),
            ("KAFKA_SASL_PASSWORD_FILE", file(&self.sasl_password_file)),
            ("KAFKA_SASL_TOKEN_FILE", file(&self.sasl_token_file)),
            ("KAFKA_SASL_TOKEN_COMMAND", self.sasl_token_command.clone().unwrap_or_default()),
            ("KAFKA_SSL_CA_FILE", file(&self.ssl_ca_file)),
            ("KAFKA_SSL_CERTIFICATE_FILE", file(&self.ssl_certificate_file)),
            ("KAFKA_SSL_KEY_FILE", file(&self.ssl_key_file)),
        ]
    }

    fn tls(&self) -> Result<Option<Arc<Tls>>, TlsFault> {
        self.tls_files().map(|files| Tls::load(files).map(Arc::new)).transpose()
    }

    /// The files of TLS, if the protocol has it.
    fn tls_files(&self) -> Option<TlsFiles> {
        let identity = self.ssl_certificate_file.clone().zip(self.ssl_key_file.clone());
        self.protocol.has_tls().then(|| TlsFiles { authorities: self.ssl_ca_file.clone(), identity })
    }

    fn login(&self) -> Option<Arc<Login>> {
        let mechanism = self.sasl_mechanism.filter(|_| self.protocol.has_sasl())?;
        let file = if mechanism == Mechanism::OauthBearer { &self.sasl_token_file } else { &self.sasl_password_file };
        let file = file.clone().map(SecretSource::File);
        let secret = file.or_else(|| self.sasl_token_command.clone().map(SecretSource::Command))?;
        Some(Arc::new(Login::new(mechanism, self.sasl_username.clone().unwrap_or_default(), secret)))
    }
}

/// Kafka's `security.protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without TLS.
    SaslPlaintext,
    /// SASL inside TLS.
    SaslSsl,
}

impl SecurityProtocol {
    const ALL: [Self; 4] = [Self::Plaintext, Self::Ssl, Self::SaslPlaintext, Self::SaslSsl];

    /// The name in Kafka's configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
        }
    }

    fn has_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    pub(crate) fn has_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// Shows the protocol and mechanism, but hides the user name and the paths of secrets.
impl fmt::Debug for Security {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |set: bool| if set { "[hidden]" } else { "None" };
        formatter
            .debug_struct("Security")
            .field("protocol", &self.protocol)
            .field("sasl_mechanism", &self.sasl_mechanism)
            .field("sasl_username", &format_args!("{}", hidden(self.sasl_username.is_some())))
            .field("sasl_password_file", &format_args!("{}", hidden(self.sasl_password_file.is_some())))
            .field("sasl_token_file", &format_args!("{}", hidden(self.sasl_token_file.is_some())))
            .field("sasl_token_command", &format_args!("{}", hidden(self.sasl_token_command.is_some())))
            .field("ssl_ca_file", &self.ssl_ca_file)
            .field("ssl_certificate_file", &self.ssl_certificate_file)
            .field("ssl_key_file", &format_args!("{}", hidden(self.ssl_key_file.is_some())))
            .finish()
    }
}

fn security_protocol(text: &str) -> Read<SecurityProtocol> {
    let known = SecurityProtocol::ALL.into_iter().find(|known| known.name() == text);
    known.ok_or_else(|| "is no security protocol; expected PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL".to_owned())
}

fn sasl_mechanism(text: &str) -> Read<Mechanism> {
    let known = Mechanism::ALL.into_iter().find(|known| known.name() == text);
    known.ok_or_else(|| "is no SASL mechanism; expected PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER".to_owned())
}
