//! Fingerprints of states: 128 bits represent a state in the table of visited states.
//!
//! Two states with the same fingerprint would count as one; among ten million states that is less likely than 1 in
//! 10^24. A state is a hundred single bytes, so the standard hasher would take longer than all steps of the state. This
//! one gathers the bytes into words.

use crate::state::State;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A table whose keys are fingerprints.
pub type ByFingerprint<T> = std::collections::HashMap<u128, T, BuildHasherDefault<Ready>>;

/// The fingerprint of a state.
pub fn of(state: &State) -> u128 {
    let mut mixer = Mixer { first: 0x9E37_79B9_7F4A_7C15, second: 0xC2B2_AE3D_27D4_EB4F, word: 0, bytes: 0 };
    state.hash(&mut mixer);
    mixer.mix();
    u128::from(mixer.first) << 64 | u128::from(mixer.second)
}

/// Gathers bytes into words and mixes each word into two independent sums.
struct Mixer {
    first: u64,
    second: u64,
    word: u64,
    bytes: u32,
}

impl Mixer {
    fn mix(&mut self) {
        self.first = (self.first ^ self.word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        self.first ^= self.first >> 32;
        self.second = (self.second.rotate_left(29) ^ self.word).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        self.second ^= self.second >> 29;
        self.word = 0;
        self.bytes = 0;
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.first
    }

    fn write_u8(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.bytes += 1;
        if self.bytes == 8 {
            self.mix();
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u8(byte));
    }

    /// The variant of an `Option` or enum; no type has more than 256.
    fn write_isize(&mut self, variant: isize) {
        self.write_u8(variant as u8);
    }

    /// The length of an array: it is the same in every state.
    fn write_usize(&mut self, _: usize) {}
}

/// The table's hasher: a fingerprint is already a hash.
#[derive(Default)]
pub struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }
}
