//! SIGTERM, SIGINT and SIGHUP: the first asks for a graceful stop, the second for leaving at once.
//!
//! Turns signals into two [`Stop`]s and remembers the first signal's name; what stopping means is up to `worker` and
//! `gateway`. Installed by each binary before anything else, since the first process of a container gets no default action
//! for a signal it does not handle.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::stop::Stop;

/// All signals that stop a program, with their names.
const STOPPING: [(i32, &str); 3] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")];
/// Said of a signal whose name did not become known in time.
const UNNAMED: &str = "signal";
/// How long a first signal waits for its name. The handler that tells it runs in the same instant, but the thread in which it does may have
/// to wait for a processor.
const NAME_WAIT: Duration = Duration::from_millis(250);
const NAME_POLL: Duration = Duration::from_micros(200);

/// What the signals of this process have asked for; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Stop gracefully.
    pub first: Stop,
    /// Leave at once. Never triggered before `first`.
    pub second: Stop,
    name: Arc<OnceLock<&'static str>>,
}

/// Why the signals could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SignalsError {
    /// The handler was not installed, for example because there is one already.
    #[error("cannot handle signals: {0}")]
    Handler(#[from] ctrlc::Error),
    /// The operating system refused.
    #[error("cannot handle signals: {0}")]
    Register(#[from] std::io::Error),
}

/// Takes over SIGTERM, SIGINT and SIGHUP for the whole process. Works once per process.
pub fn install() -> Result<Signals, SignalsError> {
    let signals = Signals::manual();
    let last = Arc::new(AtomicUsize::new(0));
    let (deliver, number) = (signals.clone(), Arc::clone(&last));
    // The order counts. The handler of `ctrlc` does not learn which signal came and replaces what was installed before it;
    // `signal-hook` tells the number and chains. The other way round no name would ever be known.
    // `set_handler`, not `try_set_handler`: a shell starts background jobs with SIGINT ignored, `nohup` does so with SIGHUP, and
    // the latter refuses wherever a signal is not at its default. Whoever sends one of these to us means us to stop.
    ctrlc::set_handler(move || deliver.deliver(deliver.name_for_first(&number)))?;
    for (index, (signal, _name)) in STOPPING.iter().enumerate() {
        signal_hook::flag::register_usize(*signal, Arc::clone(&last), index + 1)?;
    }
    Ok(signals)
}

impl Signals {
    /// Signals that come from [`deliver`](Self::deliver) only: for tests, and for programs that handle theirs themselves.
    pub fn manual() -> Self {
        Self::default()
    }

    /// Takes one signal: the first triggers `first` and gives the name, every later one triggers `second`.
    pub fn deliver(&self, name: &'static str) {
        let later = self.name.set(name).is_err();
        self.first.trigger();
        if later {
            self.second.trigger();
        }
    }

    /// The first signal's name: `SIGTERM`, `SIGINT` or `SIGHUP`, or `signal` when it is not known.
    pub fn name(&self) -> &'static str {
        self.name.get().copied().unwrap_or(UNNAMED)
    }

    /// Waits for the number of the signal that woke the `ctrlc` thread; only the first one needs a name, a second one must not
    /// wait.
    fn name_for_first(&self, number: &AtomicUsize) -> &'static str {
        let deadline = Instant::now() + NAME_WAIT;
        while !self.first.is_triggered() {
            if let Some(name) = number.load(Ordering::SeqCst).checked_sub(1).and_then(|index| STOPPING.get(index)) {
                return name.1;
            }
            if Instant::now() >= deadline {
                break;
            }
            // No condition to wait on: a signal handler may only set a flag. Nobody triggers `second` before `first`.
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
        // Past the capture of the test harness, and each line at once.
        let tell = |line: &str| writeln!(std::io::stdout(), "{line}").expect("the test reads");
        let signals = install().expect("nothing was installed before");
        assert!(install().is_err(), "a second handler is refused");
        tell("ready");
        signals.first.sleep(LIMIT).expect_err("a first signal comes");
        tell(signals.name());
        signals.second.sleep(LIMIT).expect_err("a second signal comes");
        tell(signals.name());
    }

    /// That process; killed when the test ends early.
    struct Told {
        child: Child,
        lines: Lines<BufReader<ChildStdout>>,
    }

    impl Told {
        fn start() -> Self {
            let this = std::env::current_exe().expect("this test binary");
            Self::spawn(&mut Command::new(this))
        }

        /// As `nohup` and the background of a shell script start programs.
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

        /// Sends two signals: the name of the first is told both times, and the process ends by itself.
        fn hears(mut self, first: Signal, second: Signal) {
            self.wait_for("ready");
            self.send(first);
            self.wait_for(first.as_str());
            self.send(second);
            self.wait_for(first.as_str());
            assert!(self.child.wait().expect("it ends by itself").success());
        }

        /// Reads on until the line is told.
        fn wait_for(&mut self, line: &str) {
            assert!(self.lines.by_ref().any(|told| told.expect("text") == line), "{line} was not told");
        }

        fn send(&self, signal: Signal) {
            let process = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
            kill(process, signal).expect("the process is there");
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            // Fails when it has ended by itself, which is how it should be.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn every_signal_is_named_and_keeps_its_name_when_another_follows() {
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
    fn signals_that_were_ignored_at_the_start_are_heard() {
        Told::start_ignoring().hears(Signal::SIGHUP, Signal::SIGINT);
    }

    #[test]
    fn the_first_signal_asks_and_names_the_second_insists() {
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
    fn a_name_that_comes_late_is_waited_for() {
        let signals = Signals::manual();
        let number = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let name = scope.spawn(|| signals.name_for_first(&number));
            number.store(3, Ordering::SeqCst);
            assert_eq!(name.join().expect("no panic"), "SIGHUP");
        });
    }

    #[test]
    fn a_name_that_never_comes_is_not_waited_for_long() {
        let started = Instant::now();
        assert_eq!(Signals::manual().name_for_first(&AtomicUsize::new(0)), "signal");
        assert!(started.elapsed() >= NAME_WAIT);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_second_signal_does_not_wait() {
        let signals = Signals::manual();
        signals.deliver("SIGTERM");
        assert_eq!(signals.name_for_first(&AtomicUsize::new(0)), "signal");
    }
}
