//! A real Kafka broker, run by `scripts/kafka`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use nix::sys::signal::Signal;

use super::{janitor, signal_process};

/// One broker on free ports, with data that survive [`Broker::kill`] and [`Broker::stop`] until it is dropped.
pub struct Broker {
    data: PathBuf,
    address: String,
    settings: Vec<String>,
    java_options: &'static str,
}

/// The quick compiler alone: a test's broker lives for seconds, and the better one would take the programs' processors.
const SHORT_LIVED: &str = "-XX:TieredStopAtLevel=1";

impl Broker {
    /// The broker of this run, for all tests that leave it alone.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::new(&[]))
    }

    /// A broker for a test that stops, freezes or configures it; `arguments` go to `scripts/kafka start`.
    pub fn new(arguments: &[&str]) -> Broker {
        Broker::with_java(arguments, SHORT_LIVED)
    }

    /// A broker as it runs in earnest, for figures.
    pub fn optimised() -> Broker {
        Broker::with_java(&["--heap", "1g"], "")
    }

    fn with_java(arguments: &[&str], java_options: &'static str) -> Broker {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let data = janitor::folder().join(format!("kafka-{}", COUNT.fetch_add(1, Relaxed)));
        janitor::broker_starts(&data);
        let settings = arguments.iter().map(ToString::to_string).collect();
        let mut broker = Broker { data, address: String::new(), settings, java_options };
        broker.address = broker.script_start(&["--port", "auto"]);
        broker
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts it again on the same port after [`Broker::stop`] or [`Broker::kill`]; returns when it answers.
    pub fn start(&self) {
        let address = self.script_start(&[]);
        assert_eq!(address, self.address, "a broker comes back on its port");
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) {
        self.script(&["stop"], &[]);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        self.script(&["stop", "--kill"], &[]);
    }

    /// SIGSTOP: connections stay, new ones are even accepted by the kernel, but nothing is answered.
    pub fn freeze(&self) {
        signal_process(self.process(), Signal::SIGSTOP);
    }

    /// SIGCONT
    pub fn thaw(&self) {
        signal_process(self.process(), Signal::SIGCONT);
    }

    /// Runs one of Kafka's own command line tools, such as `topics`, and gives what it printed.
    pub fn tool(&self, tool: &str, arguments: &[&str]) -> String {
        let port = self.address.rsplit(':').next().expect("an address has a port");
        run(script().args(["run", "--port", port, tool]).args(arguments))
    }

    /// The process number.
    pub fn process(&self) -> u32 {
        let text = std::fs::read_to_string(self.data.join("pid")).expect("a broker that runs has a pid file");
        text.trim().parse().expect("a process number")
    }

    fn script_start(&self, arguments: &[&str]) -> String {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.script(&["start"], &settings)
    }

    fn script(&self, command: &[&str], arguments: &[&str]) -> String {
        run(script()
            .env("KAFKA_JAVA_OPTS", self.java_options)
            .args(command)
            .arg("--data")
            .arg(&self.data)
            .args(arguments))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // SIGKILL ends a frozen broker as well.
        let _ = script().args(["stop", "--kill", "--data"]).arg(&self.data).output();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("scripts/kafka starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{out}{err}");
    out.trim().to_owned()
}
