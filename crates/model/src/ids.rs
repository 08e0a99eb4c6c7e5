//! Typed numbers for workers, brokers, partitions, tasks and connection slots; arrays indexed by them, and sets.
//!
//! Each is one byte, to keep states small. The counts are upper limits; a scenario may use fewer partitions and tasks.

use std::marker::PhantomData;
use std::ops::{BitOr, BitOrAssign};

/// A number out of a small, closed range.
pub trait Id: Copy {
    /// Position in arrays and sets, from 0.
    fn index(self) -> usize;
}

/// `numbered!(Name, PerName: A B C)` makes the enum `Name` and the array type `PerName<T>`, which only a `Name`
/// indexes.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $array:ident: $($(#[$variant_doc:meta])* $variant:ident)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// All values in order.
            pub const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];
        }

        impl $crate::ids::Id for $name {
            fn index(self) -> usize {
                self as usize
            }
        }

        #[doc = concat!("One element for each [`", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $array<T>(pub [T; $name::ALL.len()]);

        impl<T> std::ops::Index<$name> for $array<T> {
            type Output = T;

            fn index(&self, id: $name) -> &T {
                &self.0[id as usize]
            }
        }

        impl<T> std::ops::IndexMut<$name> for $array<T> {
            fn index_mut(&mut self, id: $name) -> &mut T {
                &mut self.0[id as usize]
            }
        }
    };
}
pub(crate) use numbered;

numbered!(
    /// A worker. Two suffice for every race between a lock's holder and another worker.
    WorkerId, PerWorker: W0 W1
);
numbered!(
    /// A broker. Two suffice for an old and a new leader.
    BrokerId, PerBroker: B0 B1
);
numbered!(
    /// A partition of the tasks topic.
    PartitionId, PerPartition: P0 P1
);
numbered!(
    /// A task, and its record: task `n` is on partition `n` modulo the scenario's number of partitions.
    TaskId, PerTask: T0 T1 T2
);
numbered!(
    /// A slot for a connection of a worker to a broker. Three suffice (rule 7).
    Slot, PerSlot: First Second Third
);

impl WorkerId {
    /// The other worker.
    pub fn other(self) -> Self {
        if self == Self::W0 { Self::W1 } else { Self::W0 }
    }
}

impl BrokerId {
    /// The other broker.
    pub fn other(self) -> Self {
        if self == Self::B0 { Self::B1 } else { Self::B0 }
    }
}

/// A connection: its worker, its broker and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    pub worker: WorkerId,
    pub broker: BrokerId,
    pub slot: Slot,
}

/// A set of numbers of one kind, one bit for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set<I>(u8, PhantomData<I>);

pub type WorkerSet = Set<WorkerId>;
pub type PartitionSet = Set<PartitionId>;
pub type TaskSet = Set<TaskId>;

impl<I> Default for Set<I> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

impl<I: Id> Set<I> {
    pub fn contains(self, id: I) -> bool {
        self.0 & 1 << id.index() != 0
    }

    pub fn insert(&mut self, id: I) {
        self.0 |= 1 << id.index();
    }

    pub fn remove(&mut self, id: I) {
        self.0 &= !(1 << id.index());
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl<I> BitOr for Set<I> {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0, PhantomData)
    }
}

impl<I> BitOrAssign for Set<I> {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl<I: Id> FromIterator<I> for Set<I> {
    fn from_iter<T: IntoIterator<Item = I>>(ids: T) -> Self {
        let mut set = Self::default();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}
