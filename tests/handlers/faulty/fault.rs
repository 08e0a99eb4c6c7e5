//! The defects, and which task one strikes. Each is a promise broken in one way; what shows of it is said beside it.

/// What is wrong with this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the control.
    None,
    /// Accepts each task when its handler has ended and says the result 300 ms later: lost when killed in between.
    AcceptFirst,
    /// Accepts a task without running it: it has no result.
    DropOne,
    /// Runs a task twice in a row: two results of one delivery.
    RunTwice,
    /// Releases the task that it finished while stopping, instead of accepting it: it runs again on a graceful path.
    RunAgain,
    /// Answers a task with the counts of the one before.
    WrongAnswer,
    /// Says a second result with other counts behind the right one.
    Differ,
    /// Abandons at the deadline, but says that it drained, with exit code 0.
    ExitZeroAtDeadline,
    /// Never says `shutdown_completed`.
    NoCompleted,
    /// Never says `shutdown_started`; its heartbeats go on saying `worker_started`.
    NoStarted,
    /// Drains on at a second signal.
    DeafToSecond,
    /// Takes 3 s to stop when it has nothing to do.
    SlowStop,
    /// Its receipt says `drained` whatever happened, seven tasks too many, 1 ms in all, and an exit code that is not its own.
    LyingReceipt,
    /// Starts a task that was delivered before 2 s late.
    LateStart,
    /// Gives a task up, with dead letter and error result, though nothing is wrong with it.
    DeadLetters,
}

impl Fault {
    const ALL: [Self; 15] = [
        Self::None,
        Self::AcceptFirst,
        Self::DropOne,
        Self::RunTwice,
        Self::RunAgain,
        Self::WrongAnswer,
        Self::Differ,
        Self::ExitZeroAtDeadline,
        Self::NoCompleted,
        Self::NoStarted,
        Self::DeafToSecond,
        Self::SlowStop,
        Self::LyingReceipt,
        Self::LateStart,
        Self::DeadLetters,
    ];

    /// As `FAULT` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AcceptFirst => "accept-first",
            Self::DropOne => "drop-one",
            Self::RunTwice => "run-twice",
            Self::RunAgain => "run-again",
            Self::WrongAnswer => "wrong-answer",
            Self::Differ => "differ",
            Self::ExitZeroAtDeadline => "exit-0-at-deadline",
            Self::NoCompleted => "no-completed",
            Self::NoStarted => "no-started",
            Self::DeafToSecond => "deaf-to-second",
            Self::SlowStop => "slow-stop",
            Self::LyingReceipt => "lying-receipt",
            Self::LateStart => "late-start",
            Self::DeadLetters => "dead-letters",
        }
    }

    /// Whether it strikes one task in so many; the others concern every task or the process.
    const fn strikes_single_tasks(self) -> bool {
        matches!(self, Self::DropOne | Self::RunTwice | Self::WrongAnswer | Self::Differ | Self::DeadLetters)
    }
}

/// The defect of this process, and the count of its tasks.
#[derive(Debug)]
pub struct Faults {
    fault: Fault,
    every: u32,
    tasks: u32,
}

impl Faults {
    /// From `FAULT` and `FAULT_EVERY`; an empty variable counts as unset. The error is for the user.
    pub fn from_environment() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let name = variable("FAULT").unwrap_or_else(|| Fault::None.name().to_owned());
        let every = variable("FAULT_EVERY").unwrap_or_else(|| "50".to_owned());
        let fault = Fault::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("FAULT: value {name:?} is none of {}", Fault::ALL.map(Fault::name).join(", ")))?;
        let every = every.parse().ok().filter(|every| *every > 0);
        let every = every.ok_or("FAULT_EVERY: expected a whole number from 1 on")?;
        Ok(Self { fault, every, tasks: 0 })
    }

    /// Whether this is the defect of the process.
    pub fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// What is wrong with the next task.
    pub fn of_next_task(&mut self) -> Fault {
        self.tasks += 1;
        let spared = self.fault.strikes_single_tasks() && !self.tasks.is_multiple_of(self.every);
        if spared { Fault::None } else { self.fault }
    }
}
