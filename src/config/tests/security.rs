//! Tests of the options that secure connections to Kafka.

use clap::Args;
use kafka_share::sasl::Mechanism;

use super::super::{Common, Security, SecurityOptions, SecurityProtocol, WorkerConfig};
use super::{gateway, running, variables_of, worker};

#[test]
fn security_is_read() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let variables = [
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA_SASL_USERNAME", "user"),
        ("KAFKA_SASL_PASSWORD_FILE", here),
        ("KAFKA_SSL_CA_FILE", here),
    ];
    let expected = Security {
        protocol: SecurityProtocol::SaslSsl,
        sasl_mechanism: Some(Mechanism::ScramSha512),
        sasl_username: Some("user".to_owned()),
        sasl_password_file: Some(here.into()),
        ssl_ca_file: Some(here.into()),
        ..Security::default()
    };
    assert_eq!(running(worker(&[], &variables)).common.security, expected);
}

/// The drill starts the programs with its own options.
#[test]
fn variables_give_another_program_the_same_security() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let tls = [("KAFKA_SSL_CA_FILE", here), ("KAFKA_SSL_CERTIFICATE_FILE", here), ("KAFKA_SSL_KEY_FILE", here)];
    let password =
        [("KAFKA_SASL_MECHANISM", "PLAIN"), ("KAFKA_SASL_USERNAME", "user"), ("KAFKA_SASL_PASSWORD_FILE", here)];
    let token = |source| [("KAFKA_SASL_MECHANISM", "OAUTHBEARER"), source];
    let (file, command) = (token(("KAFKA_SASL_TOKEN_FILE", here)), token(("KAFKA_SASL_TOKEN_COMMAND", "echo 'a b'")));
    let all = variables_of(&SecurityOptions::augment_args(clap::Command::new("all")));
    for (protocol, options) in [
        ("PLAINTEXT", Vec::new()),
        ("SSL", tls.to_vec()),
        ("SASL_PLAINTEXT", password.to_vec()),
        ("SASL_SSL", [&tls[..], &file].concat()),
        ("SASL_SSL", command.to_vec()),
    ] {
        let given = [&[("KAFKA_SECURITY_PROTOCOL", protocol)], &options[..]].concat();
        let security = running(worker(&[], &given)).common.security;
        let variables = security.variables();
        let passed: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(running(worker(&[], &passed)).common.security, security);
        // An option that is not passed on would be that of the environment.
        assert_eq!(variables.map(|(name, _)| name.to_owned()).to_vec(), all);
    }
}

#[test]
fn options_of_security_that_are_missing_or_without_effect_are_reported() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let sasl = ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT");
    /// Variables, and the faults that they have.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 8] = [
        (
            &[sasl, ("KAFKA_SSL_KEY_FILE", "/does/not/exist")],
            &[
                "KAFKA_SSL_KEY_FILE: value [hidden] cannot be read (No such file or directory (os error 2)); \
                 expected the path of a readable file",
                "KAFKA_SASL_MECHANISM: not set; expected with KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT",
                "KAFKA_SASL_USERNAME: not set; expected with KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT",
                "KAFKA_SASL_PASSWORD_FILE: not set; expected with KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT",
                "KAFKA_SSL_KEY_FILE: set; expected only with SSL or SASL_SSL",
                "KAFKA_SSL_CERTIFICATE_FILE: not set; expected with KAFKA_SSL_KEY_FILE",
            ],
        ),
        (&[("KAFKA_SSL_CA_FILE", here)], &["KAFKA_SSL_CA_FILE: set; expected only with SSL or SASL_SSL"]),
        (
            &[("KAFKA_SASL_MECHANISM", "PLAIN"), ("KAFKA_SASL_USERNAME", "user")],
            &[
                "KAFKA_SASL_MECHANISM: set; expected only with SASL_PLAINTEXT or SASL_SSL",
                "KAFKA_SASL_USERNAME: set; expected only with PLAIN or SCRAM",
            ],
        ),
        (
            &[sasl, ("KAFKA_SASL_MECHANISM", "OAUTHBEARER"), ("KAFKA_SASL_PASSWORD_FILE", here)],
            &[
                "KAFKA_SASL_PASSWORD_FILE: set; expected only with PLAIN or SCRAM",
                "KAFKA_SASL_TOKEN_FILE: not set; expected with KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT",
            ],
        ),
        (
            &[
                sasl,
                ("KAFKA_SASL_MECHANISM", "OAUTHBEARER"),
                ("KAFKA_SASL_TOKEN_FILE", here),
                ("KAFKA_SASL_TOKEN_COMMAND", "true"),
            ],
            &["KAFKA_SASL_TOKEN_COMMAND: set; expected only without KAFKA_SASL_TOKEN_FILE"],
        ),
        (&[("KAFKA_SASL_TOKEN_COMMAND", "true")], &["KAFKA_SASL_TOKEN_COMMAND: set; expected only with OAUTHBEARER"]),
        (
            &[
                sasl,
                ("KAFKA_SASL_MECHANISM", "PLAIN"),
                ("KAFKA_SASL_USERNAME", "user"),
                ("KAFKA_SASL_PASSWORD_FILE", here),
                ("KAFKA_SASL_TOKEN_FILE", here),
            ],
            &["KAFKA_SASL_TOKEN_FILE: set; expected only with OAUTHBEARER"],
        ),
        (
            &[sasl, ("KAFKA_SASL_MECHANISM", "MD5")],
            &["KAFKA_SASL_MECHANISM: value \"MD5\" is no SASL mechanism; \
                 expected PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"],
        ),
    ];
    for (variables, expected) in cases {
        assert_eq!(gateway(&[], variables).expect_err("faults").faults, expected, "{variables:?}");
    }
}

#[test]
fn secrets_are_never_shown() {
    for name in ["KAFKA_SASL_PASSWORD_FILE", "KAFKA_SASL_TOKEN_FILE", "KAFKA_SSL_KEY_FILE"] {
        let told = worker(&[], &[(name, "hunter2")]).expect_err("no such file").to_string();
        assert!(told.starts_with(&format!("{name}: value [hidden] cannot be read")), "{told}");
        assert!(!told.contains("hunter2"));
    }
    let security = Security {
        sasl_username: Some("hunter1".to_owned()),
        sasl_password_file: Some("hunter2".into()),
        sasl_token_file: Some("hunter4".into()),
        sasl_token_command: Some("hunter5".to_owned()),
        ssl_key_file: Some("hunter3".into()),
        ..Security::default()
    };
    let shown =
        format!("{:?}", WorkerConfig { common: Common { security, ..Common::default() }, ..WorkerConfig::default() });
    assert!(shown.contains("[hidden]") && !shown.contains("hunter"), "{shown}");
}
