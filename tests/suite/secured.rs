//! P12: the programs on a secured Kafka. Each login serves and stops like a plain connection; a wrong one is explained.

use std::time::{Duration, Instant};

use devbroker::{Action, Fault, Kind};
use nix::sys::signal::Signal;

use crate::support::{
    Gateway, SOON, START,
    certificates::Authority,
    eventually,
    program::{Launch, Program},
    secured::{Listener, PASSWORD, Secured, USER, Way, token},
    started,
};

const SECOND: Duration = Duration::from_secs(1);

/// Neither the password nor a token stands in the output of a program, or in what other users of the machine see.
fn assert_no_secret(program: &Program) {
    let shown: String = program.lines().into_iter().map(|line| line.text + "\n").collect();
    for secret in [PASSWORD, &token(USER)] {
        assert!(!shown.contains(secret), "{} shows a secret", program.name());
    }
}

/// No connection was lost, refused or near its end, although logins expired.
fn assert_kept_its_connections(program: &Program) {
    for trouble in ["does not answer", "refuses", "is not renewed"] {
        let lines = program.lines_with(trouble);
        assert!(lines.is_empty(), "{}: {lines:?}", program.name());
    }
}

fn assert_no_secret_in_proc(program: &Program) {
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{}/{file}", program.id())).expect("the program runs");
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(PASSWORD) && !text.contains(&token(USER)), "{file} of {}", program.name());
    }
}

#[test]
fn every_login_serves_stops_and_survives_a_kill() {
    let secured = Secured::new("secured", None);
    for (number, way) in Way::all().into_iter().enumerate() {
        secured.open(way.listener, None);
        let rig = secured.rig(&format!("login-{number}"));
        let gateway = Gateway::start(secured.by(way, rig.gateway()));
        let start = |id: &str| started(&secured.by(way, rig.worker(id)).env("HEARTBEAT_INTERVAL", "50ms"));
        let mut workers = vec![start("w0"), start("w1")];
        assert_eq!(gateway.analyze("all is well").status, 200, "{way:?}");
        workers.iter().for_each(assert_no_secret_in_proc);
        // P8: a killed worker's task starts elsewhere.
        let work = Duration::from_secs(1);
        let caller = gateway.call("killed", work);
        let victim = gateway.wait_until_running(&caller.task, SOON);
        let place = workers.iter().position(|worker| worker.name() == victim).expect("a worker of this test");
        let killed = workers[place].kill();
        let task = caller.task.clone();
        let (answer, answered) = caller.join();
        assert_eq!(answer.status, 200, "{way:?}: {}", answer.text());
        let hop = (answered - killed).checked_sub(work).expect("the killed worker ran the task");
        assert!(hop < Duration::from_millis(500), "{way:?}: started elsewhere after {hop:?}");
        workers[place] = start(&victim);
        assert_eq!(gateway.analyze("still well").status, 200, "{way:?}");
        // P3: idle workers stop at once.
        for worker in &mut workers {
            let exit = worker.ends_at(Signal::SIGTERM, 0);
            assert!(exit.elapsed < Duration::from_secs(1), "{way:?}: stopped after {:?}", exit.elapsed);
        }
        let mut gateway = gateway;
        gateway.program.ends_at(Signal::SIGTERM, 0);
        workers.iter().chain([&gateway.program]).for_each(assert_no_secret);
        secured.open(Listener::Plaintext, None);
        assert_eq!(rig.audit().runs(&task), 1, "{way:?}: the killed run has no result");
    }
}

/// A program that believes in `way` meets the listener `at`, and says `line`.
struct Mistake {
    at: Listener,
    way: Way,
    spoil: fn(&Secured, Launch) -> Launch,
    line: &'static str,
}

fn mistakes() -> Vec<Mistake> {
    let right = |_: &Secured, launch| launch;
    let by = |mechanism| Way::new(Listener::SaslPlaintext, Some(mechanism));
    let (plain, ssl) = (Way::new(Listener::Plaintext, None), Way::new(Listener::Ssl, None));
    vec![
        Mistake {
            at: Listener::SaslPlaintext,
            way: by("PLAIN"),
            spoil: |secured, launch| {
                launch.env("KAFKA_SASL_PASSWORD_FILE", secured.files.write("wrong-password", "wrong").display())
            },
            line: "it refused user \"alice\" by PLAIN: Authentication failed",
        },
        Mistake {
            at: Listener::SaslPlaintext,
            way: by("SCRAM-SHA-256"),
            spoil: |_, launch| launch.env("KAFKA_SASL_USERNAME", "bob"),
            line: "it refused user \"bob\" by SCRAM-SHA-256: Authentication failed",
        },
        Mistake {
            at: Listener::Single,
            way: by("PLAIN"),
            spoil: right,
            line: "it does not offer PLAIN; set KAFKA_SASL_MECHANISM to one of: SCRAM-SHA-512",
        },
        Mistake {
            at: Listener::Plaintext,
            way: by("PLAIN"),
            spoil: right,
            line: "its listener has no logins; set KAFKA_SECURITY_PROTOCOL to PLAINTEXT or SSL",
        },
        Mistake {
            at: Listener::Ssl,
            way: ssl,
            spoil: |secured, launch| {
                let address = secured.address(Listener::Ssl).replace("127.0.0.1", "localhost");
                launch.env("KAFKA_BOOTSTRAP_SERVERS", address)
            },
            line: "its certificate is for 127.0.0.1, not for localhost",
        },
        Mistake {
            at: Listener::Ssl,
            way: ssl,
            spoil: |_, launch| launch.env("KAFKA_SSL_CA_FILE", Authority::new().path("ca.pem").display()),
            line: "the issuer of its certificate is not trusted; set KAFKA_SSL_CA_FILE",
        },
        Mistake { at: Listener::Expired, way: ssl, spoil: right, line: "its certificate has expired" },
        Mistake { at: Listener::Mutual, way: ssl, spoil: right, line: "it wants a client certificate" },
        Mistake {
            at: Listener::Mutual,
            way: Way::new(Listener::Mutual, None),
            spoil: |_, launch| {
                let stranger = Authority::new();
                stranger.issue("client", &["client"], 4000);
                launch
                    .env("KAFKA_SSL_CERTIFICATE_FILE", stranger.path("client.pem").display())
                    .env("KAFKA_SSL_KEY_FILE", stranger.path("client.key").display())
            },
            line: "it refused the client certificate",
        },
        Mistake {
            at: Listener::Ssl,
            way: plain,
            spoil: right,
            line: "it speaks TLS; set KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL",
        },
    ]
}

#[test]
fn mistake_that_time_does_not_cure_ends_a_start_with_code_2_and_one_line() {
    let secured = Secured::new("mistakes", None);
    let rig = &secured.rig;
    for Mistake { at, way, spoil, line } in mistakes() {
        secured.open(at, None);
        for program in [rig.worker("w"), rig.gateway()] {
            let launch = secured.by(way, program).env("KAFKA_BOOTSTRAP_SERVERS", secured.address(at));
            let mut program = spoil(&secured, launch).start();
            assert_eq!(program.wait(START).code, Some(2), "{at:?}: {line}");
            let told = program.lines_with(line);
            assert_eq!(told.len(), 1, "{at:?}: {line} in {:?}", program.lines());
            assert!(told[0].text.contains("127.0.0.1:") || told[0].text.contains("localhost:"), "{}", told[0].text);
            assert_no_secret(&program);
        }
    }
}

#[test]
fn program_retries_what_time_may_cure() {
    let secured = Secured::new("retries", None);
    // Ended in 1970; another program writes a new one.
    let old = secured.files.write("old-token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJib2IiLCJleHAiOjF9.");
    let (old, none) = (old.display().to_string(), String::new());
    let (tls, plain) = (Way::new(Listener::Ssl, None), Way::new(Listener::Plaintext, None));
    let token = Way::new(Listener::SaslPlaintext, Some("OAUTHBEARER"));
    for (at, way, token_file, line) in [
        // A broker that stops does the same.
        (Listener::Plaintext, tls, &none, "is this a listener for SSL or SASL_SSL?"),
        (Listener::SaslPlaintext, plain, &none, "if its listener wants a login, set KAFKA_SECURITY_PROTOCOL"),
        (Listener::SaslPlaintext, token, &old, "it refused the token: invalid_token"),
    ] {
        secured.open(at, None);
        let launch = secured.by(way, secured.rig.worker("w")).env("KAFKA_BOOTSTRAP_SERVERS", secured.address(at));
        let launch = if token_file.is_empty() { launch } else { launch.env("KAFKA_SASL_TOKEN_FILE", token_file) };
        let mut worker = launch.start();
        worker.wait_for_line(line, START);
        worker.ends_at(Signal::SIGTERM, 0);
        assert_no_secret(&worker);
    }
}

/// P12: the worker's session is older than the lifetime of its login, and so is the task.
#[test]
fn login_that_expires_costs_no_task_a_second_run() {
    let lifetime = Duration::from_secs(3);
    let secured = Secured::new("lifetime", Some(3000));
    let way = Way::new(Listener::SaslSsl, Some("SCRAM-SHA-512"));
    secured.open(way.listener, Some(lifetime));
    let rig = &secured.rig;
    let gateway = Gateway::start(secured.by(way, rig.gateway()).env("ANSWER_TIMEOUT", "30s"));
    let mut workers = ["w0", "w1"].map(|id| started(&secured.by(way, rig.worker(id))));
    let long = gateway.call("longer than three lifetimes", 4 * lifetime);
    let mut tasks = vec![long.task.clone()];
    let since = Instant::now();
    while since.elapsed() < 4 * lifetime {
        let answer = gateway.analyze("while logins expire");
        assert_eq!(answer.status, 200, "{}", answer.text());
        tasks.push(answer.task_id());
    }
    let (answer, _) = long.join();
    assert_eq!(answer.status, 200, "{}", answer.text());
    for worker in &mut workers {
        let exit = worker.ends_at(Signal::SIGTERM, 0);
        assert!(exit.elapsed < Duration::from_secs(1), "stopped after {:?}", exit.elapsed);
        assert_kept_its_connections(worker);
    }
    assert_kept_its_connections(&gateway.program);
    secured.open(Listener::Plaintext, None);
    rig.audit().assert_each_ran_once(&tasks);
}

/// P12: a program prints the token, and takes its time; meanwhile logins expire.
#[test]
fn slow_command_for_a_token_costs_no_task_a_second_run() {
    let lifetime = Duration::from_secs(4);
    let secured = Secured::new("command", Some(4000));
    let way = Way::new(Listener::SaslPlaintext, Some("OAUTHBEARER"));
    secured.open(way.listener, Some(lifetime));
    let rig = &secured.rig;
    let command = format!("sleep 0.5; cat '{}'", secured.files.path("token").display());
    let by_command =
        |launch| secured.by(way, launch).env("KAFKA_SASL_TOKEN_FILE", "").env("KAFKA_SASL_TOKEN_COMMAND", &command);
    let gateway = Gateway::start(by_command(rig.gateway()).env("ANSWER_TIMEOUT", "30s"));
    let mut worker = started(&by_command(rig.worker("w")));
    let caller = gateway.call("longer than two lifetimes", 5 * lifetime / 2);
    let task = caller.task.clone();
    assert_eq!(caller.join().0.status, 200);
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < SECOND, "stopped after {:?}", exit.elapsed);
    assert_kept_its_connections(&worker);
    assert_no_secret(&worker);
    secured.open(Listener::Plaintext, None);
    rig.audit().assert_each_ran_once(&[task]);
}

/// P12: the broker's certificate, its authority and a password are replaced under a running fleet.
#[test]
fn secrets_that_are_replaced_need_no_restart() {
    let secured = Secured::with_faults("rotation");
    let way = Way::new(Listener::SaslSsl, Some("PLAIN"));
    secured.open(way.listener, None);
    let (rig, broker) = (&secured.rig, secured.rig.broker());
    let gateway = Gateway::start(secured.by(way, rig.gateway()));
    let worker = started(&secured.by(way, rig.worker("w")));
    assert_eq!(gateway.analyze("before").status, 200);
    // Another authority, another certificate, another password, at the broker first.
    secured.rotate(way.listener, "another-8302-staple");
    broker.stop();
    broker.start();
    worker.wait_for_line("cannot be used securely", SOON);
    secured.hand_out();
    let caller = gateway.call("after", Duration::from_millis(1));
    assert_eq!(caller.join().0.status, 200);
    assert!(worker.lines_with("another-8302-staple").is_empty());
}

/// P3, P5 and P7 hold wherever a broker falls silent while a connection is secured.
#[test]
fn broker_that_falls_silent_in_a_handshake_or_a_login_delays_no_stop() {
    const DRAIN: Duration = Duration::from_secs(2);
    let secured = Secured::with_faults("silent");
    let way = Way::new(Listener::SaslSsl, Some("SCRAM-SHA-512"));
    let broker = secured.rig.broker();
    for (number, (kind, action, before)) in [
        (Kind::TlsHandshake, Action::Deafen, 0),
        (Kind::TlsHandshake, Action::Truncate(100), 0),
        (Kind::SaslHandshake, Action::Deafen, 0),
        (Kind::SaslAuthenticate, Action::Deafen, 0),
        // Each login has two of these requests.
        (Kind::SaslAuthenticate, Action::Truncate(7), 1),
    ]
    .into_iter()
    .enumerate()
    {
        secured.open(way.listener, None);
        let rig = secured.rig(&format!("silent-{number}"));
        let gateway = Gateway::start(secured.by(way, rig.gateway()).env("ANSWER_TIMEOUT", "30s"));
        let launch =
            |id: &str| secured.by(way, rig.worker(id)).env("DRAIN_TIMEOUT", "2s").env("STOP_GRACE_PERIOD", "7s");
        let mut workers = ["w0", "w1"].map(|id| started(&launch(id)));
        let caller = gateway.call("longer than the drain", 2 * DRAIN);
        let busy = gateway.wait_until_running(&caller.task, SOON);
        let silent = broker.faulty().inject(Fault::new(action).at(kind).after(before).every(1, u32::MAX));
        // All connections end; the next ones fall silent.
        broker.stop();
        broker.start();
        eventually(SOON, "connections of all three programs fall silent", || silent.count() >= 3);
        for worker in &mut workers {
            worker.signal(Signal::SIGTERM);
        }
        for worker in &mut workers {
            let exit = worker.wait(Duration::from_secs(30));
            let (code, bound) =
                if worker.name() == busy { (3, DRAIN + Duration::from_secs(1)) } else { (0, 5 * SECOND) };
            assert_eq!(exit.code, Some(code), "{kind:?} {action:?}: {}", worker.name());
            assert!(exit.elapsed < bound, "{kind:?} {action:?}: {} stopped after {:?}", worker.name(), exit.elapsed);
        }
        broker.faulty().heal();
        let _heir = started(&launch("heir"));
        assert_eq!(caller.join().0.status, 200, "{kind:?} {action:?}");
    }
}

#[test]
fn fleet_works_over_a_connection_that_brings_single_bytes() {
    let secured = Secured::with_faults("single-bytes");
    let way = Way::new(Listener::SaslSsl, Some("SCRAM-SHA-256"));
    secured.open(way.listener, None);
    secured.rig.broker().faulty().inject(Fault::new(Action::Trickle).every(1, u32::MAX));
    let gateway = Gateway::start(secured.by(way, secured.rig.gateway()));
    let mut worker = started(&secured.by(way, secured.rig.worker("w")));
    for _ in 0..5 {
        assert_eq!(gateway.analyze("byte by byte").status, 200);
    }
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn broker_that_cannot_prove_its_knowledge_of_the_password_is_refused() {
    let secured = Secured::with_faults("impostor");
    let way = Way::new(Listener::SaslPlaintext, Some("SCRAM-SHA-512"));
    secured.open(way.listener, None);
    let signature = Fault::new(Action::Damage).at(Kind::SaslAuthenticate).every(1, u32::MAX);
    secured.rig.broker().faulty().inject(signature);
    let mut worker = secured.by(way, secured.rig.worker("w")).start();
    assert_eq!(worker.wait(START).code, Some(2));
    worker.wait_for_line("the broker's SCRAM signature is wrong", SOON);
}
