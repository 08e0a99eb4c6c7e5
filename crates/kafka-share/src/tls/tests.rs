use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::super::certificates::{Authority, Folder, Issued, accept};
use super::super::transport::Transport;
use super::*;

/// Files that trust `authority`, without a certificate of the client's own.
fn trusting(folder: &Folder, authority: &Authority) -> TlsFiles {
    TlsFiles { authorities: Some(folder.write("ca.pem", &authority.pem())), identity: None }
}

/// Shakes hands with a server that has this certificate and is addressed by `host`. The description of a failure.
fn shake_hands(tls: &Tls, server: &Issued, host: &str) -> Result<(), (String, bool)> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let mut stream = accept(&listener, &server.server());
    let mut transport = Transport::new(Arc::new(socket), Some(tls.session(host).expect("a name")));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Fails when the client refuses the certificate.
            let _ = stream.write_all(&[1]);
        });
        match transport.read(&mut [0], Instant::now() + Duration::from_secs(5)) {
            Ok(read) => assert_eq!(read, Some(1)),
            Err(error) => return Err(tls.describe(session_error(&error).expect("a fault of TLS"), host)),
        }
        Ok(())
    })
}

#[test]
fn certificate_of_a_trusted_authority_is_accepted_for_its_name() {
    let (folder, authority) = (Folder::new(), Authority::new());
    for name in ["localhost", "127.0.0.1"] {
        let tls = Tls::load(trusting(&folder, &authority)).expect("usable");
        shake_hands(&tls, &authority.issue(name), name).expect("accepted");
    }
}

#[test]
fn refused_certificate_is_explained() {
    let (folder, authority, stranger) = (Folder::new(), Authority::new(), Authority::new());
    let cases = [
        (stranger.issue("localhost"), "the issuer of its certificate is not trusted; set KAFKA_SSL_CA_FILE", true),
        (authority.issue("kafka-1.example"), "its certificate is for", true),
        (authority.issue_until("localhost", 2020), "its certificate has expired", true),
        // Time cures this.
        (authority.issue_from("localhost"), "by this machine's clock; is the clock right?", false),
    ];
    for (server, text, is_final) in cases {
        let tls = Tls::load(trusting(&folder, &authority)).expect("usable");
        let (detail, was_final) = shake_hands(&tls, &server, "localhost").expect_err(text);
        assert!(detail.contains(text), "{detail}");
        assert_eq!(was_final, is_final, "{detail}");
    }
    let tls = Tls::load(trusting(&folder, &authority)).expect("usable");
    for name in ["kafka-1.example", "127.0.0.1"] {
        let (detail, _) = shake_hands(&tls, &authority.issue(name), "localhost").expect_err("another name");
        assert!(detail.contains(&format!("is for {name}, not for localhost")), "{detail}");
    }
}

#[test]
fn unusable_file_is_named_with_its_option() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let (first, second) = (authority.issue("client"), authority.issue("client"));
    let certificate = folder.write("certificate.pem", &first.certificate);
    let key = folder.write("key.pem", &first.key);
    let other_key = folder.write("other.pem", &second.key);
    let text = folder.write("text.pem", "no PEM at all");
    let encrypted = folder.write("encrypted.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n");
    let old = folder.write("old.pem", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n");
    let identity = |certificate: &PathBuf, key: &PathBuf| TlsFiles {
        authorities: Some(folder.write("ca.pem", &authority.pem())),
        identity: Some((certificate.clone(), key.clone())),
    };
    let authorities = |path: &PathBuf| TlsFiles { authorities: Some(path.clone()), identity: None };
    Tls::load(identity(&certificate, &key)).expect("usable");
    for (files, option, words) in [
        (authorities(&folder.path().join("none")), "KAFKA_SSL_CA_FILE: value \"", "cannot be read"),
        (authorities(&text), "KAFKA_SSL_CA_FILE: value \"", "has no certificate"),
        (authorities(&key), "KAFKA_SSL_CA_FILE: value \"", "has no certificate"),
        (identity(&text, &key), "KAFKA_SSL_CERTIFICATE_FILE: value \"", "has no certificate"),
        (identity(&certificate, &certificate), "KAFKA_SSL_KEY_FILE: value [hidden] ", "has no key"),
        (identity(&certificate, &encrypted), "KAFKA_SSL_KEY_FILE: value [hidden] ", "is encrypted"),
        (identity(&certificate, &old), "KAFKA_SSL_KEY_FILE: value [hidden] ", "is encrypted"),
        (
            identity(&certificate, &other_key),
            "KAFKA_SSL_KEY_FILE: value [hidden] ",
            "is not the key of the certificate",
        ),
    ] {
        let fault = Tls::load(files).expect_err(words).to_string();
        assert!(fault.starts_with(option) && fault.contains(words), "{fault}");
    }
}

#[test]
fn keys_in_all_three_encodings_are_read() {
    let folder = Folder::new();
    // RFC 7468, 8017 and 5915: only the label tells them apart here.
    for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"] {
        let path = folder.write("key.pem", &format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n"));
        private_key(&path).unwrap_or_else(|fault| panic!("{label}: {fault}"));
    }
}

#[test]
fn replaced_files_are_used_for_new_connections_and_unusable_ones_are_not() {
    let (folder, former, later) = (Folder::new(), Authority::new(), Authority::new());
    let tls = Tls::load(trusting(&folder, &former)).expect("usable");
    let before = tls.config();
    assert!(Arc::ptr_eq(&before, &tls.config()), "nothing has changed");
    folder.write("ca.pem", "half a fi");
    assert!(Arc::ptr_eq(&before, &tls.config()), "the former certificates stay");
    folder.write("ca.pem", &later.pem());
    let after = tls.config();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&after, &tls.config()));
    shake_hands(&tls, &later.issue("localhost"), "localhost").expect("the new authority is trusted");
}

#[test]
fn refused_client_certificate_and_missing_client_certificate_differ() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let without = Tls::load(trusting(&folder, &authority)).expect("usable");
    let (detail, is_final) = without.describe(&Error::AlertReceived(AlertDescription::CertificateRequired), "kafka");
    assert!(is_final && detail.contains("wants a client certificate"), "{detail}");
    let client = authority.issue("client");
    let identity = (folder.write("certificate.pem", &client.certificate), folder.write("key.pem", &client.key));
    let files = TlsFiles { identity: Some(identity), ..trusting(&folder, &authority) };
    let with = Tls::load(files).expect("usable");
    let (detail, is_final) = with.describe(&Error::AlertReceived(AlertDescription::CertificateUnknown), "kafka");
    assert!(is_final && detail.contains("refused the client certificate"), "{detail}");
    let (_, is_final) = with.describe(&Error::AlertReceived(AlertDescription::InternalError), "kafka");
    assert!(!is_final, "a broker in trouble may recover");
}

#[test]
fn ages_of_certificates_are_shown_in_their_largest_unit() {
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 days")] {
        assert_eq!(between(at(1000), at(1000 + seconds)), text);
    }
}
