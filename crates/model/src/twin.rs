//! Twins: deliberate departures from single rules of the protocol, whose violations the search must find.
//!
//! A scenario names its twins with `--rules`. The crate's README has the rules. `tests/sweep.rs` lists the twins that
//! break nothing by themselves: the protocol has that much slack.

/// `twins!` makes the enum [`Twin`] and the table of names and rules from one list.
macro_rules! twins {
    ($($variant:ident $name:literal $rules:tt $text:literal)+) => {
        /// A departure from the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Twin { $(#[doc = concat!("`", $name, "`: ", $text, ".")] $variant),+ }

        impl Twin {
            /// All twins.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in scenarios.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The numbers of the rules that it breaks.
            pub fn rules(self) -> &'static [u8] {
                match self { $(Self::$variant => &$rules),+ }
            }

            /// Describes it in one line.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

twins! {
    AcceptEarly "accept_early" [1] "accepts before the result is acknowledged"
    CloseFirst "close_first" [2] "closes the old connection before it takes over"
    NoReadOld "no_read_old" [2] "closes a superseded connection without reading its last result"
    NoTakeover "no_takeover" [2] "never takes over; a lost connection means lost locks"
    ReleaseOnFetch "rel_on_fetch" [5] "releases in a request that fetches"
    CloseUnansweredOpen "close_unanswered_open" [6] "closes a connection whose epoch 0 is unanswered, and tries again"
    StolenClose "stolen_close" [6] "closes a superseded connection although its epoch 0 was answered late"
    StaleCodes "stale_codes" [9] "lets codes about an older delivery count for the newer one"
    RedeliveryIgnored "redelivery_ignored" [9] "ignores a delivery while a release of the record is unanswered"
    StartUnlocked "start_unlocked" [10, 15] "starts on the strength of a renewal that was answered 0"
    StartFromOldLeader "start_from_old_leader" [10] "starts what the late result of a former leader brings"
    StaleDelivery "stale_delivery" [11] "lets a late result of another node overwrite a newer lock"
    ForgetDone "forget_done" [12] "forgets that a result is acknowledged when its accept is refused"
    WaitOldForever "wait_old_forever" [13] "waits for the result on a superseded connection for ever"
    NoProbe "no_probe" [13] "never sends again what a renewal showed not to have arrived"
    AcknowledgeDuringHang "acks_during_hang" [13] "sends accepts and releases at once while others hang elsewhere"
    Lost121 "lost_121" [13, 14] "forgets a record whose renewal is refused while its accept hangs elsewhere"
    CodesAtReading "codes_at_reading" [14] "judges a refused renewal by the time when it is read, not when it was sent"
    TransientLost "transient_lost" [16] "takes error 15 on an acknowledgement for a lost lock"
    EpochVoid "epoch_void" [18] "gives up the locks at a node that leads on in a later epoch"
    NoMetadataWatch "no_meta_watch" [18] "reads no metadata while a request has no result"
    GlobalRecovery "global_recovery" [19] "pauses all intakes while one recovers"
    DropReady "drop_ready" [19] "drops the ready tasks of all leaders when one session is lost"
    Serial "serial" [19] "has one intake for all leaders"
    ForgetReady "forget_ready" [20] "forgets what lies ready when a visit to its partition ends"
    ForgetHeld "forget_held" [20] "lets a partition leave the session while it holds a record there"
    DrainReliesOnClose "drain_relies_on_close" [21] "leaves releases to the close of the session"
    DrainCloseEarly "drain_close_early" [21] "closes the session while a superseded connection's fetch is out"
    QuietStarts "quiet_starts" [24] "starts a task while it is quiet"
    QuietKeepsReady "quiet_keeps_ready" [24] "keeps tasks that it has not started while it is quiet"
    QuietSilent "quiet_silent" [24] "sends no request while it is quiet"
    LateTakeover "late_takeover" [2] "takes over after two thirds of a lock instead of one third"
}

impl Twin {
    /// Returns the twin with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|twin| twin.name() == name)
    }
}

/// A set of twins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Twins(u32);

impl Twins {
    /// Whether the twin is in the set.
    pub fn contains(self, twin: Twin) -> bool {
        self.0 & 1 << twin as u8 != 0
    }

    /// Adds a twin.
    pub fn insert(&mut self, twin: Twin) {
        self.0 |= 1 << twin as u8;
    }
}
