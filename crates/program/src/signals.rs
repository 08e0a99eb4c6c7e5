//! SIGTERM, SIGINT and SIGHUP: the first asks for a graceful stop, the second for an immediate end.
//!
//! Turns signals into two [`Stop`]s and remembers the first signal's name; `worker` and `gateway` decide what stopping
//! means. Each binary installs it first of all, since the first process of a container gets no default action for an
//! unhandled signal.

use std::io::Write;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit::ExitCode;
use crate::stop::Stop;

/// All signals that stop a program, with their names.
const STOPPING: [(i32, &str); 3] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")];
/// Name of a signal whose real name was not known in time.
const UNNAMED: &str = "signal";
/// How long a first signal waits for its name. The handler stores the number at the same moment, but its thread may
/// have to wait for a processor.
const NAME_WAIT: Duration = Duration::from_millis(250);
const NAME_POLL: Duration = Duration::from_micros(200);

/// The stops that this process's signals have requested; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Stop gracefully.
    pub first: Stop,
    /// End immediately. Never triggered before `first`.
    pub second: Stop,
    name: Arc<OnceLock<&'static str>>,
}

/// Why the signals could not be handled.
#[derive(Debug, thiserror::Error)]
enum SignalsError {
    /// The handler was not installed, for example because another is installed already.
    #[error("cannot handle signals: {0}")]
    Handler(#[from] ctrlc::Error),
    /// The operating system refused.
    #[error("cannot handle signals: {0}")]
    Register(#[from] std::io::Error),
}

/// Handles SIGTERM, SIGINT and SIGHUP for the whole process, then runs the program. For `main`, as its only statement.
///
/// Returns the program's exit code; [`ExitCode::Fatal`] after a line on stderr if the signals cannot be handled.
pub fn run(program: impl FnOnce(Signals) -> ExitCode) -> ExitCode {
    match install() {
        Ok(signals) => program(signals),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::Fatal
        }
    }
}

/// Handles SIGTERM, SIGINT and SIGHUP for the whole process. Works once per process.
///
/// # Errors
/// See [`SignalsError`].
fn install() -> Result<Signals, SignalsError> {
    let signals = Signals::manual();
    let last = Arc::new(AtomicUsize::new(0));
    let (deliver, number) = (signals.clone(), Arc::clone(&last));
    // The order matters. The handler of `ctrlc` does not learn the signal's number and replaces earlier handlers;
    // `signal-hook` stores the number and chains. The other way round, no name would ever be known. `try_set_handler`
    // would refuse ignored signals: a shell ignores SIGINT for background jobs, and `nohup` ignores SIGHUP. Such a
    // signal still asks this process to stop.
    ctrlc::set_handler(move || deliver.deliver(deliver.name_for_first(&number)))?;
    for (index, (signal, _name)) in STOPPING.iter().enumerate() {
        signal_hook::flag::register_usize(*signal, Arc::clone(&last), index + 1)?;
    }
    Ok(signals)
}

impl Signals {
    /// Makes signals that come only from [`deliver`](Self::deliver): for tests, and for programs with their own
    /// handlers.
    pub fn manual() -> Self {
        Self::default()
    }

    /// Handles one signal: the first triggers `first` and sets the name, every later one triggers `second`.
    pub fn deliver(&self, name: &'static str) {
        let later = self.name.set(name).is_err();
        self.first.trigger();
        if later {
            self.second.trigger();
        }
    }

    /// The first signal's name: `SIGTERM`, `SIGINT` or `SIGHUP`, or `signal` if it is unknown.
    pub fn name(&self) -> &'static str {
        self.name.get().copied().unwrap_or(UNNAMED)
    }

    /// Waits for the number of the signal that woke the `ctrlc` thread. Only the first signal needs a name; a second
    /// must not wait.
    fn name_for_first(&self, number: &AtomicUsize) -> &'static str {
        let deadline = Instant::now() + NAME_WAIT;
        while !self.first.is_triggered() {
            if let Some(name) = number.load(Ordering::SeqCst).checked_sub(1).and_then(|index| STOPPING.get(index)) {
                return name.1;
            }
            if Instant::now() >= deadline {
                break;
            }
            // A signal handler may only set a flag, so this polls. `second` is never triggered before `first`.
            let _ = self.second.sleep(NAME_POLL);
        }
        UNNAMED
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Lines, Write};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    #[ignore = "the process that the tests below send their signals to"]
    fn process_that_tells_its_signals() {
        // Writes past the capture of the test harness, line by line.
        let tell = |line: &str| writeln!(std::io::stdout(), "{line}").expect("the test reads");
        let signals = install().expect("nothing was installed before");
        assert!(install().is_err(), "a second handler is refused");
        tell("ready");
        signals.first.sleep(LIMIT).expect_err("a first signal comes");
        tell(signals.name());
        signals.second.sleep(LIMIT).expect_err("a second signal comes");
        tell(signals.name());
    }

    /// The process of that test; killed if the test ends early.
    struct Told {
        child: Child,
        lines: Lines<BufReader<ChildStdout>>,
    }

    impl Told {
        fn start() -> Self {
            let this = std::env::current_exe().expect("this test binary");
            Self::spawn(&mut Command::new(this))
        }

        /// Starts it with ignored signals, as `nohup` and shell scripts do for background jobs.
        fn start_ignoring() -> Self {
            let this = std::env::current_exe().expect("this test binary");
            Self::spawn(Command::new("sh").args(["-c", "trap '' INT HUP; exec \"$0\" \"$@\""]).arg(this))
        }

        fn spawn(command: &mut Command) -> Self {
            let mut child = command
                .args(["--ignored", "--exact", "--nocapture", "signals::tests::process_that_tells_its_signals"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("the test binary starts");
            let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            Self { child, lines }
        }

        /// Sends two signals: both times the process prints the first one's name, then it ends by itself.
        fn hears(mut self, first: Signal, second: Signal) {
            self.wait_for("ready");
            self.send(first);
            self.wait_for(first.as_str());
            self.send(second);
            self.wait_for(first.as_str());
            assert!(self.child.wait().expect("it ends by itself").success());
        }

        /// Reads until the process prints the line.
        fn wait_for(&mut self, line: &str) {
            assert!(self.lines.by_ref().any(|printed| printed.expect("text") == line), "no line {line}");
        }

        fn send(&self, signal: Signal) {
            let process = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
            kill(process, signal).expect("the process is there");
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            // Fails if the process has ended by itself, as it should.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn every_signal_is_named_and_the_first_name_stays() {
        for (first, second) in [
            (Signal::SIGTERM, Signal::SIGINT),
            (Signal::SIGINT, Signal::SIGTERM),
            (Signal::SIGHUP, Signal::SIGTERM),
            (Signal::SIGTERM, Signal::SIGTERM),
        ] {
            Told::start().hears(first, second);
        }
    }

    #[test]
    fn signals_ignored_at_start_are_handled() {
        Told::start_ignoring().hears(Signal::SIGHUP, Signal::SIGINT);
    }

    #[test]
    fn first_signal_triggers_first_stop_and_later_ones_the_second() {
        let signals = Signals::manual();
        assert_eq!(signals.name(), "signal");
        assert!(!signals.first.is_triggered());
        signals.deliver("SIGINT");
        assert!(signals.first.is_triggered());
        assert!(!signals.second.is_triggered());
        signals.clone().deliver("SIGTERM");
        assert!(signals.second.is_triggered());
        assert_eq!(signals.name(), "SIGINT");
    }

    #[test]
    fn first_signal_waits_for_its_late_name() {
        let signals = Signals::manual();
        let number = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let name = scope.spawn(|| signals.name_for_first(&number));
            number.store(3, Ordering::SeqCst);
            assert_eq!(name.join().expect("no panic"), "SIGHUP");
        });
    }

    #[test]
    fn wait_for_a_missing_name_is_limited() {
        let started = Instant::now();
        assert_eq!(Signals::manual().name_for_first(&AtomicUsize::new(0)), "signal");
        assert!(started.elapsed() >= NAME_WAIT);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn second_signal_does_not_wait_for_its_name() {
        let signals = Signals::manual();
        signals.deliver("SIGTERM");
        assert_eq!(signals.name_for_first(&AtomicUsize::new(0)), "signal");
    }
}
