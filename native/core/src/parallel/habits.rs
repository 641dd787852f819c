//! What earlier blocks taught about contracts: which of them make their callers wait for each other. It decides only how
//! work is divided, never what comes out, so it is kept per process, bounded, and may be wrong.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy_primitives::Address;

use crate::state::Map;

/// Contracts remembered; when there are more, all are forgotten, and learnt again where it matters.
const MAX_CONTRACTS: usize = 4096;
/// Blocks for which a contract counts as contended after its first clash; twice as many with each further one.
const FIRST_BLOCKS: u64 = 16;
const MAX_STRIKES: u32 = 6;

/// Items of the first window of lanes, and of the largest.
const FIRST_WINDOW: usize = 256;
const MAX_WINDOW: usize = 4096;
const _: () = assert!(MAX_WINDOW < u16::MAX as usize, "marks count items of a window in sixteen bits");
const MIN_WINDOW: usize = 64;

#[derive(Debug)]
struct Habit {
    /// The last block in which it counts as contended.
    until: u64,
    strikes: u32,
}

#[derive(Debug)]
pub struct Known {
    contended: Map<Address, Habit>,
    block: u64,
    window: usize,
}

#[derive(Debug)]
pub struct Habits(Mutex<Known>);

impl Default for Habits {
    fn default() -> Self {
        Self(Mutex::new(Known { contended: Map::default(), block: 0, window: FIRST_WINDOW }))
    }
}

impl Habits {
    pub fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub fn begin_block(&mut self) {
        self.block += 1;
    }

    /// Whether all calls of this contract are better run one after the other.
    pub fn is_contended(&self, contract: &Address) -> bool {
        !self.contended.is_empty() && self.contended.get(contract).is_some_and(|habit| self.block <= habit.until)
    }

    /// Two calls of this contract got into each other's way, and nothing had told beforehand.
    pub fn note_clash(&mut self, contract: Address) {
        if self.contended.len() >= MAX_CONTRACTS && !self.contended.contains_key(&contract) {
            self.contended.clear();
        }
        let habit = self.contended.entry(contract).or_insert(Habit { until: 0, strikes: 0 });
        if habit.until < self.block {
            habit.until = self.block + (FIRST_BLOCKS << habit.strikes);
            habit.strikes = (habit.strikes + 1).min(MAX_STRIKES);
        }
    }

    /// How many items the next window of lanes may hold.
    pub fn window(&self) -> usize {
        self.window
    }

    /// A window that held stakes no more than twice what it gained; one that broke loses most of that trust.
    pub fn note_window(&mut self, has_held: bool) {
        self.window = if has_held { (2 * self.window).min(MAX_WINDOW) } else { (self.window / 8).max(MIN_WINDOW) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clash_is_remembered_for_longer_each_time_it_comes_back() {
        let habits = Habits::default();
        let mut known = habits.lock();
        let contract = Address::repeat_byte(1);
        let mut spans = Vec::new();
        for _ in 0..3 {
            known.begin_block();
            assert!(!known.is_contended(&contract));
            known.note_clash(contract);
            known.note_clash(contract);
            let from = known.block;
            while known.is_contended(&contract) {
                known.begin_block();
            }
            spans.push(known.block - 1 - from);
        }
        assert_eq!(spans, [16, 32, 64]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let habits = Habits::default();
        let mut known = habits.lock();
        for number in 0..3 * MAX_CONTRACTS as u64 {
            known.note_clash(Address::left_padding_from(&number.to_be_bytes()));
        }
        assert!(known.contended.len() <= MAX_CONTRACTS);
    }

    #[test]
    fn windows_grow_while_they_hold_and_shrink_at_once() {
        let habits = Habits::default();
        let mut known = habits.lock();
        (0..20).for_each(|_| known.note_window(true));
        assert_eq!(known.window(), MAX_WINDOW);
        known.note_window(false);
        assert_eq!(known.window(), MAX_WINDOW / 8);
        (0..5).for_each(|_| known.note_window(false));
        assert_eq!(known.window(), MIN_WINDOW);
    }
}
