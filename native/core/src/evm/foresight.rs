//! What the calls of a contract will look up, learnt from those before: entries of mappings under the caller or an argument.
//!
//! A token finds a balance by hashing 64 bytes, the place of the mapping and an address, which is the caller's or stands in
//! the call's data. Once a call of a function has shown which, the entries of calls to come are known before they run: their
//! hashes are computed side by side, and their values fetched from memory together. A wrong guess costs what it took and
//! changes nothing; where most are wrong, none are made any more.

use std::ops::Range;

use alloy_primitives::{Address, B256, U256};
use smallvec::SmallVec;

use super::mappings::{INPUT_BYTES, Input};
use crate::hash::keccak256_many;
use crate::state::Map;
use crate::transaction::Transaction;

const WORD: usize = 32;
const SELECTOR_BYTES: usize = 4;
/// Mappings of one function, and of its arguments, that are looked at.
const MAX_PLACES: usize = 4;
const MAX_ARGUMENTS: usize = 4;
/// Functions that are remembered: the first ones called.
const MAX_FUNCTIONS: usize = 256;
/// So many guesses are made before they are judged, and after so many the older ones count half.
const TRIALS: u32 = 32;
const MEMORY: u32 = 1 << 12;

/// Contracts' slots that transactions to come will likely look at.
pub type Slots = SmallVec<[(Address, U256); 32]>;

/// A contract, and what is asked of it.
type Function = (Address, [u8; SELECTOR_BYTES]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    Caller,
    Argument(usize),
}

/// A mapping's place in storage, and whose entry is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    mapping: [u8; WORD],
    under: Under,
    /// Solidity hashes the key before the mapping's place, Vyper after it.
    is_key_first: bool,
}

#[derive(Debug, Default)]
struct Habit {
    places: SmallVec<[Place; MAX_PLACES]>,
    foreseen: u32,
    used: u32,
}

#[derive(Debug)]
struct Turn {
    transaction: B256,
    function: Function,
    entries: Range<usize>,
}

#[derive(Debug, Default)]
pub struct Foresight {
    habits: Map<Function, Habit>,
    /// Of the transactions to come: what will be hashed, to what, and whether it was.
    inputs: Vec<Input>,
    hashes: Vec<B256>,
    used: Vec<bool>,
    turns: Vec<Turn>,
    next: usize,
    function: Option<Function>,
    present: Range<usize>,
}

fn function(to: Option<&Address>, input: &[u8]) -> Option<Function> {
    Some((*to?, *input.first_chunk()?))
}

fn argument(data: &[u8], nth: usize) -> Option<&[u8; WORD]> {
    data.get(SELECTOR_BYTES + nth * WORD..)?.first_chunk()
}

impl Place {
    /// How an input came about, if it is an entry under the caller or an argument. Mappings of contracts lie near 0; a place
    /// that is a hash is an entry of another mapping.
    fn of(input: &Input, caller: &Address, data: &[u8]) -> Option<Self> {
        let (first, second) = input.split_at(WORD);
        [(first, second, true), (second, first, false)].into_iter().find_map(|(key, mapping, is_key_first)| {
            let mapping: [u8; WORD] = mapping.try_into().ok().filter(|place: &[u8; WORD]| place[..24] == [0; 24])?;
            let is_argument = |nth: &usize| argument(data, *nth).is_some_and(|word| word == key);
            let under = if key == caller.into_word().as_slice() {
                Under::Caller
            } else {
                Under::Argument((0..MAX_ARGUMENTS).find(is_argument)?)
            };
            Some(Self { mapping, under, is_key_first })
        })
    }

    fn input(&self, caller: &Address, data: &[u8]) -> Option<Input> {
        let key = match self.under {
            Under::Caller => caller.into_word().0,
            Under::Argument(nth) => *argument(data, nth)?,
        };
        let (first, second) = if self.is_key_first { (key, self.mapping) } else { (self.mapping, key) };
        let mut input = [0; INPUT_BYTES];
        input[..WORD].copy_from_slice(&first);
        input[WORD..].copy_from_slice(&second);
        Some(input)
    }
}

impl Habit {
    fn pays(&self) -> bool {
        self.foreseen < TRIALS || 2 * self.used >= self.foreseen
    }

    fn judge(&mut self, foreseen: usize, used: usize) {
        if self.foreseen > MEMORY {
            (self.foreseen, self.used) = (self.foreseen / 2, self.used / 2);
        }
        // No group of transactions has so many.
        self.foreseen += foreseen as u32;
        self.used += used as u32;
    }
}

impl Foresight {
    /// Thinks ahead for some transactions, instead of those of last time; returns the slots that they will likely look at.
    pub fn look_ahead<'t>(&mut self, transactions: impl Iterator<Item = &'t Transaction>) -> Slots {
        self.judge();
        self.inputs.clear();
        let mut owners: SmallVec<[Address; 32]> = SmallVec::new();
        for transaction in transactions {
            let Some(function) = function(transaction.to.to(), &transaction.input) else { continue };
            let Some(habit) = self.habits.get(&function).filter(|habit| habit.pays()) else { continue };
            let start = self.inputs.len();
            let places = habit.places.iter();
            self.inputs.extend(places.filter_map(|place| place.input(&transaction.sender, &transaction.input)));
            owners.resize(self.inputs.len(), function.0);
            self.turns.push(Turn { transaction: transaction.hash, function, entries: start..self.inputs.len() });
        }
        self.hashes = keccak256_many(&self.inputs);
        self.used = vec![false; self.inputs.len()];
        owners.into_iter().zip(self.hashes.iter().map(|hash| U256::from_be_bytes(hash.0))).collect()
    }

    fn judge(&mut self) {
        for turn in self.turns.drain(..self.next) {
            let used = self.used[turn.entries.clone()].iter().filter(|used| **used).count();
            if let Some(habit) = self.habits.get_mut(&turn.function) {
                habit.judge(turn.entries.len(), used);
            }
        }
        self.turns.clear();
        (self.next, self.present) = (0, 0..0);
    }

    /// This transaction runs now; those to come run in the order in which they were thought of.
    pub fn begin(&mut self, transaction: &Transaction) {
        self.function = function(transaction.to.to(), &transaction.input);
        let ahead = self.turns[self.next..].iter().position(|turn| turn.transaction == transaction.hash);
        self.present = match ahead {
            Some(ahead) => {
                self.next += ahead + 1;
                self.turns[self.next - 1].entries.clone()
            }
            None => 0..0,
        };
    }

    /// The hash of an input, if the present transaction was expected to ask for it.
    pub fn recall(&mut self, input: &Input) -> Option<B256> {
        let found = self.present.clone().find(|entry| self.inputs[*entry] == *input)?;
        self.used[found] = true;
        Some(self.hashes[found])
    }

    /// The present transaction, of this caller and with this data, had `contract` ask for an input that was not expected.
    pub fn learn(&mut self, contract: &Address, caller: &Address, data: &[u8], input: &Input) {
        let Some(function) = self.function.filter(|(called, _)| called == contract) else { return };
        let Some(place) = Place::of(input, caller, data) else { return };
        if self.habits.len() >= MAX_FUNCTIONS && !self.habits.contains_key(&function) {
            return;
        }
        let places = &mut self.habits.entry(function).or_default().places;
        if places.len() < MAX_PLACES && !places.contains(&place) {
            places.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{TxKind, keccak256};

    use super::*;

    const TOKEN: Address = Address::repeat_byte(0x70);

    fn user(number: u8) -> Address {
        Address::repeat_byte(number)
    }

    /// `transfer(to, 5)`.
    fn transfer(from: u8, to: u8) -> Transaction {
        let mut data = vec![0xa9, 0x05, 0x9c, 0xbb];
        data.extend(user(to).into_word());
        data.extend(B256::with_last_byte(5));
        let number = u64::from(from) << 8 | u64::from(to);
        Transaction { sender: user(from), to: TxKind::Call(TOKEN), input: data.into(), ..Transaction::unsigned(number) }
    }

    /// Solidity's entry of the mapping at place 3, or Vyper's.
    fn entry(owner: u8, is_key_first: bool) -> Input {
        let (key, mapping) = (user(owner).into_word(), B256::with_last_byte(3));
        let words = if is_key_first { [key, mapping] } else { [mapping, key] };
        words.concat().try_into().expect("two words")
    }

    fn run(foresight: &mut Foresight, transaction: &Transaction, inputs: &[Input]) -> usize {
        foresight.begin(transaction);
        let mut recalled = 0;
        for input in inputs {
            match foresight.recall(input) {
                Some(hash) => {
                    assert_eq!(hash, keccak256(input));
                    recalled += 1;
                }
                None => foresight.learn(&TOKEN, &transaction.sender, &transaction.input, input),
            }
        }
        recalled
    }

    #[test]
    fn what_one_call_looked_up_is_foreseen_for_the_next() {
        for is_key_first in [true, false] {
            let mut foresight = Foresight::default();
            let entry = |owner| entry(owner, is_key_first);
            assert_eq!(run(&mut foresight, &transfer(1, 2), &[entry(1), entry(2)]), 0);
            let (next, after) = (transfer(3, 4), transfer(5, 6));
            let slots = foresight.look_ahead([&next, &after].into_iter());
            let slot = |owner| (TOKEN, U256::from_be_bytes(keccak256(entry(owner)).0));
            assert_eq!(slots.to_vec(), [slot(3), slot(4), slot(5), slot(6)]);
            // One that never runs does no harm.
            assert_eq!(run(&mut foresight, &after, &[entry(5), entry(6), entry(5)]), 3);
            assert_eq!(run(&mut foresight, &next, &[entry(3)]), 0);
        }
    }

    #[test]
    fn guesses_that_are_wrong_end() {
        let mut foresight = Foresight::default();
        run(&mut foresight, &transfer(1, 2), &[entry(1, true)]);
        let mut made = 0;
        for _ in 0..2 * TRIALS {
            let next = transfer(3, 4);
            made += foresight.look_ahead(std::iter::once(&next)).len();
            assert_eq!(run(&mut foresight, &next, &[]), 0);
        }
        assert_eq!(made, TRIALS as usize);
    }

    #[test]
    fn what_is_no_entry_of_a_mapping_under_caller_or_argument_teaches_nothing() {
        let mut foresight = Foresight::default();
        let nested: Input =
            [user(1).into_word(), keccak256(b"another mapping")].concat().try_into().expect("two words");
        run(&mut foresight, &transfer(1, 2), &[entry(9, true), nested]);
        // Another contract's, asked for on the way.
        foresight.learn(&user(0x71), &user(1), &transfer(1, 2).input, &entry(1, true));
        assert!(foresight.look_ahead(std::iter::once(&transfer(3, 4))).is_empty());
        // Data that ends within an argument.
        run(&mut foresight, &transfer(1, 2), &[entry(2, true)]);
        let mut cut = transfer(3, 4);
        cut.input = cut.input.slice(..20);
        assert!(foresight.look_ahead(std::iter::once(&cut)).is_empty());
    }
}
