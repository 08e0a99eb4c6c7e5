//! A broker whose listeners want TLS and logins, and how programs reach each of them.
//!
//! Apache Kafka has all listeners at once. The embedded broker has one, which [`Secured::open`] changes.

use std::{collections::BTreeMap, fmt, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use devbroker::{Sasl, SaslMechanism, Security, ServerTls};

use super::{
    Rig,
    broker::{self, Broker},
    certificates::Authority,
    program::Launch,
};

/// The password of the user alice. No program may show it.
pub const PASSWORD: &str = "staple-7291-battery";
/// The user of all logins by password.
pub const USER: &str = "alice";
/// Hosts of the brokers' certificates; `localhost` is not among them.
const HOST: &str = "127.0.0.1";

/// A listener of a secured broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Plaintext,
    Ssl,
    /// Wants a client certificate.
    Mutual,
    SaslPlaintext,
    SaslSsl,
    /// Offers SCRAM-SHA-512 only.
    Single,
    /// Its certificate has expired.
    Expired,
}

impl Listener {
    const SECURED: [Listener; 6] = [
        Listener::Ssl,
        Listener::Mutual,
        Listener::SaslPlaintext,
        Listener::SaslSsl,
        Listener::Single,
        Listener::Expired,
    ];

    /// `KAFKA_SECURITY_PROTOCOL`
    pub fn protocol(self) -> &'static str {
        match self {
            Listener::Plaintext => "PLAINTEXT",
            Listener::Ssl | Listener::Mutual | Listener::Expired => "SSL",
            Listener::SaslPlaintext | Listener::Single => "SASL_PLAINTEXT",
            Listener::SaslSsl => "SASL_SSL",
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_uppercase()
    }

    fn mechanisms(self) -> &'static [&'static str] {
        match self {
            Listener::SaslPlaintext | Listener::SaslSsl => &MECHANISMS,
            Listener::Single => &MECHANISMS[2..3],
            _ => &[],
        }
    }
}

/// All mechanisms.
pub const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];

/// A listener and the login there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub listener: Listener,
    pub mechanism: Option<&'static str>,
}

impl fmt::Debug for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {}", self.listener, self.mechanism.unwrap_or_default())
    }
}

impl Way {
    pub fn new(listener: Listener, mechanism: Option<&'static str>) -> Way {
        Way { listener, mechanism }
    }

    /// Every combination that works.
    pub fn all() -> Vec<Way> {
        let logins = [Listener::SaslPlaintext, Listener::SaslSsl].into_iter();
        let logins = logins.flat_map(|listener| MECHANISMS.map(|mechanism| Way::new(listener, Some(mechanism))));
        [Listener::Ssl, Listener::Mutual].map(|listener| Way::new(listener, None)).into_iter().chain(logins).collect()
    }
}

/// A broker with secured listeners, and the files with their secrets.
pub struct Secured {
    pub rig: Rig,
    pub files: Authority,
    /// The authority and the secrets after a rotation.
    later: Authority,
}

impl Secured {
    /// `lifetime_ms`: after this time a login has to be renewed (`connections.max.reauth.ms`).
    pub fn new(name: &str, lifetime_ms: Option<u64>) -> Secured {
        let files = files();
        let arguments = if broker::is_apache() { arguments(&files, lifetime_ms) } else { Vec::new() };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Secured { rig: Rig::quiet_with_own_broker(name, &arguments), files, later: Authority::new() }
    }

    /// As [`Secured::new`], for tests that inject faults: always an embedded broker.
    pub fn with_faults(name: &str) -> Secured {
        Secured { rig: Rig::with_faults(name, 1), files: files(), later: Authority::new() }
    }

    /// Other topics and another group on the broker.
    pub fn rig(&self, name: &str) -> Rig {
        Rig::beside(&self.rig, name)
    }

    /// The embedded broker takes new connections by this listener only; Apache Kafka has all of them.
    pub fn open(&self, listener: Listener, lifetime: Option<Duration>) {
        if let Broker::Embedded { broker, .. } = self.rig.broker() {
            broker.set_security(self.security(listener, lifetime)).expect("usable files");
        }
    }

    /// Gives the embedded broker a certificate of another authority and another password. The programs' files stay.
    pub fn rotate(&self, listener: Listener, password: &str) {
        let Broker::Embedded { broker, .. } = self.rig.broker() else { panic!("only the embedded broker changes") };
        self.later.issue("server", &[HOST], 4000);
        self.later.write("password", password);
        let mut security = self.security(listener, None);
        security.tls.iter_mut().for_each(|tls| {
            (tls.certificate, tls.key) = (self.later.path("server.pem"), self.later.path("server.key"));
        });
        security.sasl.iter_mut().for_each(|sasl| drop(sasl.users.insert(USER.to_owned(), password.to_owned())));
        broker.set_security(security).expect("usable files");
    }

    /// Gives the programs what [`Secured::rotate`] has made.
    pub fn hand_out(&self) {
        for name in ["ca.pem", "password"] {
            self.files.write(name, &std::fs::read_to_string(self.later.path(name)).expect("rotated before"));
        }
    }

    fn security(&self, listener: Listener, lifetime: Option<Duration>) -> Security {
        let name = if listener == Listener::Expired { "expired" } else { "server" };
        let tls = listener.protocol().ends_with("SSL").then(|| ServerTls {
            certificate: self.files.path(&format!("{name}.pem")),
            key: self.files.path(&format!("{name}.key")),
            client_authorities: (listener == Listener::Mutual).then(|| self.files.path("ca.pem")),
        });
        let offered = listener.mechanisms();
        let sasl = (!offered.is_empty()).then(|| Sasl {
            mechanisms: offered.iter().map(|name| mechanism(name)).collect(),
            users: BTreeMap::from([(USER.to_owned(), PASSWORD.to_owned())]),
            tokens: vec![token(USER)],
            lifetime,
            iterations: 4096,
        });
        Security { tls, sasl }
    }

    /// `host:port` of a listener.
    pub fn address(&self, listener: Listener) -> String {
        let (broker, plain) = (self.rig.broker(), self.rig.broker().address());
        let place = Listener::SECURED.iter().position(|it| *it == listener);
        let (Some(place), Broker::Apache(_)) = (place, broker) else { return plain.to_owned() };
        let (host, port) = plain.rsplit_once(':').expect("host:port");
        format!("{host}:{}", port.parse::<usize>().expect("a port") + FIRST_PORT + place)
    }

    /// Has a program connect this way, with everything right.
    pub fn by(&self, way: Way, launch: Launch) -> Launch {
        let file = |name: &str| self.files.path(name).display().to_string();
        let mut launch = launch
            .env("KAFKA_BOOTSTRAP_SERVERS", self.address(way.listener))
            .env("KAFKA_SECURITY_PROTOCOL", way.listener.protocol());
        if way.listener.protocol().ends_with("SSL") {
            launch = launch.env("KAFKA_SSL_CA_FILE", file("ca.pem"));
        }
        if way.listener == Listener::Mutual {
            launch = launch
                .env("KAFKA_SSL_CERTIFICATE_FILE", file("client.pem"))
                .env("KAFKA_SSL_KEY_FILE", file("client.key"));
        }
        match way.mechanism {
            None => launch,
            Some("OAUTHBEARER") => {
                launch.env("KAFKA_SASL_MECHANISM", "OAUTHBEARER").env("KAFKA_SASL_TOKEN_FILE", file("token"))
            }
            Some(mechanism) => launch
                .env("KAFKA_SASL_MECHANISM", mechanism)
                .env("KAFKA_SASL_USERNAME", USER)
                .env("KAFKA_SASL_PASSWORD_FILE", file("password")),
        }
    }
}

fn mechanism(name: &str) -> SaslMechanism {
    use SaslMechanism::{OauthBearer, Plain, ScramSha256, ScramSha512};
    let all = [Plain, ScramSha256, ScramSha512, OauthBearer];
    all.into_iter().find(|known| known.name() == name).expect("a mechanism")
}

/// The first secured listener's port, counted from the broker's port.
const FIRST_PORT: usize = 2;

/// Arguments of `scripts/kafka start` for all listeners.
fn arguments(files: &Authority, lifetime_ms: Option<u64>) -> Vec<String> {
    const MODULES: &str = "org.apache.kafka.common.security";
    let file = |name: &str| files.path(name).display().to_string();
    let listener = |(place, it): (usize, &Listener)| format!(",{}://{HOST}:{{port+{}}}", it.name(), FIRST_PORT + place);
    let secured: String = Listener::SECURED.iter().enumerate().map(listener).collect();
    let protocols: String = Listener::SECURED.iter().map(|it| format!(",{}:{}", it.name(), it.protocol())).collect();
    let mut settings = vec![
        format!("listeners=PLAINTEXT://{HOST}:{{port}},CONTROLLER://{HOST}:{{port+1}}{secured}"),
        format!("advertised.listeners=PLAINTEXT://{HOST}:{{port}}{secured}"),
        format!("listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}"),
        "inter.broker.listener.name=PLAINTEXT".to_owned(),
        "ssl.keystore.type=PEM".to_owned(),
        format!("ssl.keystore.location={}", file("server.store")),
        "ssl.truststore.type=PEM".to_owned(),
        format!("ssl.truststore.location={}", file("ca.pem")),
        "listener.name.mutual.ssl.client.auth=required".to_owned(),
        "listener.name.expired.ssl.keystore.type=PEM".to_owned(),
        format!("listener.name.expired.ssl.keystore.location={}", file("expired.store")),
    ];
    for it in Listener::SECURED.iter().filter(|it| !it.mechanisms().is_empty()) {
        let prefix = format!("listener.name.{}", it.name().to_lowercase());
        settings.push(format!("{prefix}.sasl.enabled.mechanisms={}", it.mechanisms().join(",")));
        settings.extend(lifetime_ms.map(|length| format!("{prefix}.connections.max.reauth.ms={length}")));
        for mechanism in it.mechanisms() {
            let prefix = format!("{prefix}.{}", mechanism.to_lowercase());
            let module = match *mechanism {
                "PLAIN" => format!("plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\""),
                "OAUTHBEARER" => {
                    let handlers = format!("{MODULES}.oauthbearer.internals.unsecured.OAuthBearerUnsecured");
                    settings.push(format!("{prefix}.sasl.login.callback.handler.class={handlers}LoginCallbackHandler"));
                    settings.push(format!(
                        "{prefix}.sasl.server.callback.handler.class={handlers}ValidatorCallbackHandler"
                    ));
                    "oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\"".to_owned()
                }
                _ => "scram.ScramLoginModule required".to_owned(),
            };
            settings.push(format!("{prefix}.sasl.jaas.config={MODULES}.{module};"));
        }
    }
    let settings = settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]);
    let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
        .into_iter()
        .flat_map(|mechanism| ["--add-scram".to_owned(), format!("{mechanism}=[name={USER},password={PASSWORD}]")]);
    settings.chain(users).collect()
}

fn files() -> Authority {
    let files = Authority::new();
    files.issue("server", &[HOST], 4000);
    files.issue("expired", &[HOST], 2020);
    files.issue("client", &["client"], 4000);
    files.write("password", &format!("{PASSWORD}\n"));
    files.write("token", &token(USER));
    files
}

/// A token without a signature (RFC 7519, section 6).
pub fn token(subject: &str) -> String {
    let claims = format!("{{\"sub\":\"{subject}\",\"iat\":1700000000,\"exp\":4000000000}}");
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", encoded("{\"alg\":\"none\"}"), encoded(&claims))
}
