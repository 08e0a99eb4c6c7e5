use kafka_protocol::protocol::StrBytes;

use super::super::certificates::Folder;
use super::*;

fn plain(folder: &Folder) -> Arc<Login> {
    Arc::new(Login::new(Mechanism::Plain, "alice", SecretSource::File(folder.write("password", "secret\n"))))
}

fn broker(number: u16) -> BrokerAddress {
    BrokerAddress::new("kafka", number)
}

/// Begins a login whose secret is there.
fn begin(login: &Arc<Login>, now: Instant) -> Attempt {
    let mut attempt = Attempt::begin(login, &broker(1), now).expect("its turn");
    assert!(attempt.is_ready(Duration::ZERO, &Interrupter::new()).expect("a secret"));
    attempt
}

fn refusal() -> SaslAuthenticateResponse {
    let message = StrBytes::from_static_str("Authentication failed: Invalid username or password");
    SaslAuthenticateResponse::default().with_error_code(58).with_error_message(Some(message))
}

fn try_in_vain(login: &Arc<Login>, now: Instant) -> LoginFault {
    let mut attempt = begin(login, now);
    attempt.offered(&SaslHandshakeResponse::default()).expect("offered");
    let Err(fault) = attempt.answered(&refusal(), now) else { panic!("refused") };
    fault
}

#[test]
fn password_is_read_at_each_login_without_its_line_break() {
    let folder = Folder::new();
    let login = plain(&folder);
    for (text, message) in [("secret\n", &b"\0alice\0secret"[..]), ("later", b"\0alice\0later")] {
        folder.write("password", text);
        let mut attempt = begin(&login, Instant::now());
        assert_eq!(&attempt.offered(&SaslHandshakeResponse::default()).expect("offered")[..], message);
    }
}

#[test]
fn lifetime_is_renewed_early_and_zero_means_none() {
    let (folder, now) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    for (lifetime, renewed) in [(0, None), (-1, None), (10_000, Some(7_000..=8_000))] {
        let mut attempt = begin(&login, now);
        attempt.offered(&SaslHandshakeResponse::default()).expect("offered");
        let answer = SaslAuthenticateResponse::default().with_session_lifetime_ms(lifetime);
        let Ok(Next::Done(renewal)) = attempt.answered(&answer, now) else { panic!("PLAIN has one message") };
        match renewed {
            None => assert!(renewal.is_none(), "{lifetime}"),
            Some(range) => {
                let Renewal { due, end } = renewal.expect("a lifetime");
                assert!(range.contains(&(due - now).as_millis()), "{due:?}");
                assert_eq!(end - now, Duration::from_secs(9));
            }
        }
    }
}

#[test]
fn refused_login_is_not_tried_again_before_its_pause_is_over() {
    let (folder, begin) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    let (mut now, mut pause) = (begin, PAUSES.0);
    for _ in 0..8 {
        let fault = try_in_vain(&login, now);
        assert!(fault.is_final, "{}", fault.detail);
        assert!(fault.detail.contains("user \"alice\" by PLAIN") && fault.detail.contains("(58)"), "{}", fault.detail);
        assert!(!fault.detail.contains("secret"), "{}", fault.detail);
        let early = Attempt::begin(&login, &broker(1), now + pause - Duration::from_millis(1)).expect_err("not yet");
        assert_eq!(early.detail, fault.detail);
        now += pause;
        pause = (pause * 2).min(PAUSES.1);
    }
    assert_eq!(pause, PAUSES.1);
}

#[test]
fn one_connection_tries_after_the_pause_and_the_others_wait() {
    let (folder, now) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    try_in_vain(&login, now);
    let later = now + PAUSES.0;
    let mut attempt = begin(&login, later);
    assert!(Attempt::begin(&login, &broker(1), later).is_err());
    attempt.offered(&SaslHandshakeResponse::default()).expect("offered");
    assert!(attempt.answered(&SaslAuthenticateResponse::default(), later).is_ok());
    assert!(
        Attempt::begin(&login, &broker(1), later).is_ok() && Attempt::begin(&login, &broker(1), later).is_ok(),
        "the login works again"
    );
}

#[test]
fn changed_password_is_tried_at_once() {
    let (folder, now) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    try_in_vain(&login, now);
    assert!(Attempt::begin(&login, &broker(1), now).is_err());
    folder.write("password", "another secret");
    assert!(Attempt::begin(&login, &broker(1), now).is_ok());
}

#[test]
fn missing_mechanism_and_missing_logins_are_explained() {
    let folder = Folder::new();
    let login = plain(&folder);
    let offers = vec![StrBytes::from_static_str("SCRAM-SHA-256"), StrBytes::from_static_str("OAUTHBEARER")];
    for (code, words) in [
        (33, "does not offer PLAIN; set KAFKA_SASL_MECHANISM to one of: SCRAM-SHA-256, OAUTHBEARER"),
        (34, "its listener has no logins; set KAFKA_SECURITY_PROTOCOL to PLAINTEXT or SSL"),
    ] {
        let mut attempt = begin(&login, Instant::now());
        let answer = SaslHandshakeResponse::default().with_error_code(code).with_mechanisms(offers.clone());
        let fault = attempt.offered(&answer).expect_err("refused");
        assert!(fault.is_final && fault.detail.contains(words), "{}", fault.detail);
    }
}

#[test]
fn unreadable_secret_is_reported_without_its_path() {
    let login = Arc::new(Login::new(Mechanism::Plain, "alice", SecretSource::File("/none/hunter2".into())));
    let mut attempt = Attempt::begin(&login, &broker(1), Instant::now()).expect("its turn");
    let fault = attempt.is_ready(Duration::ZERO, &Interrupter::new()).expect_err("no file");
    assert!(!fault.is_final && fault.detail.contains("cannot be read"), "{}", fault.detail);
    assert!(!fault.detail.contains("hunter2") && !format!("{login:?}").contains("hunter2"), "{}", fault.detail);
}

#[test]
fn refusal_by_one_broker_does_not_concern_the_others() {
    let (folder, now) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    try_in_vain(&login, now);
    assert!(Attempt::begin(&login, &broker(1), now).is_err());
    let mut elsewhere = Attempt::begin(&login, &broker(2), now).expect("another broker");
    assert!(elsewhere.is_ready(Duration::ZERO, &Interrupter::new()).expect("a secret"));
    elsewhere.offered(&SaslHandshakeResponse::default()).expect("offered");
    assert!(elsewhere.answered(&SaslAuthenticateResponse::default(), now).is_ok());
    assert!(Attempt::begin(&login, &broker(1), now).is_err(), "a success elsewhere changes nothing here");
}

#[test]
fn logins_that_fail_together_lengthen_the_pause_once() {
    let (folder, now) = (Folder::new(), Instant::now());
    let login = plain(&folder);
    let attempts: Vec<Attempt> = (0..8).map(|_| begin(&login, now)).collect();
    let later = now + Duration::from_millis(1);
    for mut attempt in attempts {
        attempt.offered(&SaslHandshakeResponse::default()).expect("offered");
        assert!(attempt.answered(&refusal(), later).is_err());
    }
    assert!(Attempt::begin(&login, &broker(1), later + PAUSES.0).is_ok());
}

#[test]
fn token_that_is_refused_or_missing_is_expected_to_be_replaced() {
    let (folder, now) = (Folder::new(), Instant::now());
    let source = SecretSource::File(folder.write("token", ""));
    let login = Arc::new(Login::new(Mechanism::OauthBearer, "", source));
    let mut attempt = Attempt::begin(&login, &broker(1), now).expect("its turn");
    let fault = attempt.is_ready(Duration::ZERO, &Interrupter::new()).expect_err("no token");
    assert!(!fault.is_final && fault.detail.contains("the token"), "{}", fault.detail);
    folder.write("token", "a.b.c");
    let mut attempt = begin(&login, now);
    attempt.offered(&SaslHandshakeResponse::default()).expect("offered");
    let Err(fault) = attempt.answered(&refusal(), now) else { panic!("refused") };
    assert!(!fault.is_final, "{}", fault.detail);
}

#[test]
fn secret_gets_old() {
    let (folder, now) = (Folder::new(), Instant::now());
    let attempt = begin(&plain(&folder), now);
    assert!(attempt.is_fresh(now + FRESH - Duration::from_millis(1)));
    assert!(!attempt.is_fresh(now + FRESH));
}
