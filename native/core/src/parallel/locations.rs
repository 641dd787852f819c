//! The locations a block touches, interned: every account and storage slot gets a small number on first sight.
//!
//! Look-ups take no lock: a table of words, each a part of the key's hash and a number, probed in order and never shrunk.
//! Keys are compared in full, under a hasher seeded per table, so keys that collide cost a comparison and never share
//! a value; whoever fills a stretch of the table sends later keys to a plain map, which is slower and just as right.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use alloy_primitives::{Address, U256};
use smallvec::SmallVec;

use super::lock;
use crate::error::{CoreError, Result};
use crate::near::bring_near_to_write;
pub use crate::state::Key;
use crate::state::Map;

/// The first locations that an item looked at: what it writes is mostly among them.
#[derive(Debug, Default)]
pub struct FirstFound(Vec<(Key, u32)>);

/// Looking through more than this costs more than asking the table again.
const MAX_FOUND: usize = 12;

impl FirstFound {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn note(&mut self, key: &Key, location: u32) {
        if self.0.len() < MAX_FOUND {
            self.0.push((*key, location));
        }
    }

    pub fn get(&self, key: &Key) -> Option<u32> {
        self.0.iter().find(|(found, _)| found == key).map(|(_, location)| *location)
    }
}

/// A key as words: three of the address, the third with the kind above it, and four of the slot.
type Words = [u64; 7];
const IS_SLOT: u64 = 1 << 32;

impl Key {
    #[inline]
    fn words(&self) -> Words {
        let (address, slot, kind) = match self {
            Self::Account(address) => (address, [0; 4], 0),
            Self::Slot(address, slot) => (address, *slot.as_limbs(), IS_SLOT),
        };
        let bytes = address.as_slice();
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let rest = u32::from_le_bytes(std::array::from_fn(|byte| bytes[16 + byte]));
        [word(0), word(8), u64::from(rest) | kind, slot[0], slot[1], slot[2], slot[3]]
    }

    fn from_words(words: &Words) -> Self {
        let mut address = Address::ZERO;
        address[..8].copy_from_slice(&words[0].to_le_bytes());
        address[8..16].copy_from_slice(&words[1].to_le_bytes());
        address[16..].copy_from_slice(&(words[2] as u32).to_le_bytes());
        if words[2] & IS_SLOT == 0 {
            Self::Account(address)
        } else {
            Self::Slot(address, U256::from_limbs([words[3], words[4], words[5], words[6]]))
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().iter().for_each(|word| state.write_u64(*word));
    }
}

/// Words of the table per item of the block: a transfer touches two accounts, a token transfer five locations.
const WORDS_PER_ITEM: usize = 8;
const MIN_WORDS: usize = 1024;
const MAX_WORDS: usize = 1 << 20;
/// A key that is not found within this many words is not in the table.
const MAX_PROBES: usize = 32;
/// As many words of the table as a line of the cache holds.
const NEIGHBOURS: u64 = 8;
const CHUNK: usize = 512;
/// With a cold access at 1,900 gas or more this is beyond any block's gas.
const MAX_CHUNKS: usize = 1 << 13;
/// Chunks kept from block to block.
const MAX_KEPT_CHUNKS: usize = 1 << 8;

type Chunk<T> = Box<[Location<T>]>;

/// Numbers locations from 0 on, each with a `T` of its own.
pub struct Locations<T> {
    hasher: foldhash::fast::RandomState,
    /// 0 is free; else the upper half is part of a key's hash, the lower its number plus one.
    words: Box<[AtomicU64]>,
    crowded: Mutex<Map<Key, u32>>,
    chunks: Box<[OnceLock<Chunk<T>>]>,
    next: AtomicU32,
}

/// Numbers that one worker gives out by itself: its locations lie together, and nobody else's counter is touched.
#[derive(Debug, Default)]
pub struct Numbers(std::ops::Range<u32>);

/// So many numbers ahead, what lies at them is brought near.
const SOON: usize = 12;

/// Numbers taken at once.
const TAKEN: u32 = 64;

/// The key's words are written before the number is published in the table, and never again. Workers write to neighbours at
/// once, so none shares a line of the cache with another.
#[repr(align(64))]
struct Location<T> {
    key: [AtomicU64; 7],
    content: T,
}

fn count_words(items: usize) -> usize {
    (items * WORDS_PER_ITEM).next_power_of_two().clamp(MIN_WORDS, MAX_WORDS)
}

fn make_words(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl<T: Default> Locations<T> {
    pub fn new(items: usize) -> Self {
        Self {
            hasher: foldhash::fast::RandomState::default(),
            words: make_words(count_words(items)),
            crowded: Mutex::default(),
            chunks: (0..MAX_CHUNKS).map(|_| OnceLock::new()).collect(),
            next: AtomicU32::new(0),
        }
    }

    /// A table without room, which costs nothing: only to stand where one was taken from.
    pub fn none() -> Self {
        Self {
            hasher: foldhash::fast::RandomState::default(),
            words: Box::default(),
            crowded: Mutex::default(),
            chunks: Box::default(),
            next: AtomicU32::new(0),
        }
    }

    /// As if made anew, but for memory that the system need not hand out again, which is bounded, and what lies in it: that
    /// is as it was left.
    pub fn renew(&mut self, items: usize) {
        let wanted = count_words(items);
        if self.words.len() == wanted {
            self.words.iter_mut().for_each(|word| *word.get_mut() = 0);
        } else {
            self.words = make_words(wanted);
        }
        lock(&self.crowded).clear();
        self.chunks[MAX_KEPT_CHUNKS..].iter_mut().for_each(|chunk| drop(chunk.take()));
        *self.next.get_mut() = 0;
    }

    /// The lower bits say where in the table a key lies, the upper half tells it from others there. Slots that follow each
    /// other, as the words of a struct or an array do, lie beside each other: they are mostly asked for together.
    fn hash(&self, key: &Words) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        key[..3].iter().for_each(|word| hasher.write_u64(*word));
        if key[2] & IS_SLOT == 0 {
            return hasher.finish();
        }
        let nth = key[3] % NEIGHBOURS;
        hasher.write_u64(key[3] - nth);
        key[4..].iter().for_each(|word| hasher.write_u64(*word));
        (hasher.finish() & !(NEIGHBOURS - 1) | nth) ^ nth << 32
    }

    /// The number of a key.
    ///
    /// # Errors
    /// `Internal` when there are more locations than any block can touch.
    pub fn locate(&self, key: &Key) -> Result<u32> {
        self.locate_from(key, &mut Numbers::default(), 1)
    }

    /// The same, with numbers of the worker's own for keys that have none.
    ///
    /// # Errors
    /// As `locate`.
    pub fn locate_with(&self, key: &Key, numbers: &mut Numbers) -> Result<u32> {
        self.locate_from(key, numbers, TAKEN)
    }

    /// As `locate_with`, for several keys, whose places in the table are brought near together. Tells for each whether it has
    /// been given its number only now.
    ///
    /// # Errors
    /// As `locate`.
    pub fn locate_all(
        &self,
        keys: impl Iterator<Item = Key>,
        numbers: &mut Numbers,
        mut tell: impl FnMut(u32, bool),
    ) -> Result<()> {
        let expect = |key: Key| {
            let words = key.words();
            let hash = self.hash(&words);
            bring_near_to_write(&raw const self.words[hash as usize & (self.words.len() - 1)]);
            (words, hash)
        };
        let expected: SmallVec<[(Words, u64); 32]> = keys.map(expect).collect();
        for (words, hash) in &expected {
            let (number, is_new) = self.locate_hashed(words, *hash, numbers, TAKEN)?;
            tell(number, is_new);
        }
        Ok(())
    }

    fn locate_from(&self, key: &Key, numbers: &mut Numbers, taken: u32) -> Result<u32> {
        let words = key.words();
        self.locate_hashed(&words, self.hash(&words), numbers, taken).map(|(number, _)| number)
    }

    /// The number, and whether it was given now.
    fn locate_hashed(&self, wanted_key: &Words, hash: u64, numbers: &mut Numbers, taken: u32) -> Result<(u32, bool)> {
        let mask = self.words.len() - 1;
        let tag = hash >> 32;
        let mut made = None;
        for step in 0..MAX_PROBES {
            let slot = &self.words[(hash as usize).wrapping_add(step) & mask];
            let mut word = slot.load(Ordering::Acquire);
            if word == 0 {
                let number = match made {
                    Some(number) => number,
                    None => *made.insert(self.make(wanted_key, numbers, taken)?),
                };
                let wanted = tag << 32 | u64::from(number + 1);
                match slot.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Ok((number, true)),
                    // Another worker was first, perhaps with this very key; then the number made here stays unused.
                    Err(taken) => word = taken,
                }
            }
            let number = word as u32 - 1;
            if word >> 32 == tag && self.is_at(number, wanted_key) {
                return Ok((number, false));
            }
        }
        match lock(&self.crowded).entry(Key::from_words(wanted_key)) {
            std::collections::hash_map::Entry::Occupied(found) => Ok((*found.get(), false)),
            std::collections::hash_map::Entry::Vacant(free) => {
                let number = match made {
                    Some(number) => number,
                    None => self.make(wanted_key, numbers, taken)?,
                };
                Ok((*free.insert(number), true))
            }
        }
    }

    fn make(&self, key: &Words, numbers: &mut Numbers, taken: u32) -> Result<u32> {
        let number = match numbers.0.next() {
            Some(number) => number,
            None => {
                let first = self.next.fetch_add(taken, Ordering::AcqRel);
                numbers.0 = first + 1..first + taken;
                first
            }
        };
        let chunk = self.chunk(number)?;
        let location = &chunk[number as usize % CHUNK];
        // Numbers are given out in order, and whoever was given one writes there.
        if let Some(soon) = chunk.get(number as usize % CHUNK + SOON) {
            bring_near_to_write(&raw const *soon);
        }
        location.key.iter().zip(key).for_each(|(slot, word)| slot.store(*word, Ordering::Relaxed));
        Ok(number)
    }

    /// One past the highest number taken; some below it may not be given out.
    pub fn count(&self) -> u32 {
        self.next.load(Ordering::Acquire).min((CHUNK * MAX_CHUNKS) as u32)
    }

    fn chunk(&self, number: u32) -> Result<&Chunk<T>> {
        let chunk = self.chunks.get(number as usize / CHUNK).ok_or_else(|| {
            CoreError::Internal(format!("a block touches more than {} locations", CHUNK * MAX_CHUNKS))
        })?;
        let fresh = || (0..CHUNK).map(|_| Location { key: Default::default(), content: T::default() }).collect();
        Ok(chunk.get_or_init(fresh))
    }

    fn location(&self, number: u32) -> &Location<T> {
        let chunk = self.chunks[number as usize / CHUNK].get();
        &chunk.expect("a location lies where its number was given")[number as usize % CHUNK]
    }

    /// Has what lies at a location brought near, for whoever will soon be there.
    #[inline]
    pub fn expect(&self, number: u32) {
        if let Some(Some(chunk)) = self.chunks.get(number as usize / CHUNK).map(OnceLock::get) {
            bring_near_to_write(&raw const chunk[number as usize % CHUNK]);
        }
    }

    fn is_at(&self, number: u32, key: &Words) -> bool {
        self.location(number).key.iter().zip(key).all(|(slot, word)| slot.load(Ordering::Relaxed) == *word)
    }

    /// # Panics
    /// For a number that `locate` did not give.
    pub fn key(&self, number: u32) -> Key {
        let key = &self.location(number).key;
        Key::from_words(&std::array::from_fn(|word| key[word].load(Ordering::Relaxed)))
    }

    /// # Panics
    /// For a number that `locate` did not give.
    pub fn get(&self, number: u32) -> &T {
        &self.location(number).content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key::Slot(Address::repeat_byte(number as u8), U256::from(number))
    }

    #[test]
    fn a_key_keeps_its_number_however_crowded_the_table() {
        // Made for one item, so most keys overflow into the map.
        let locations: Locations<Mutex<u8>> = Locations::new(1);
        let numbers: Vec<u32> = (0..5000).map(|n| locations.locate(&key(n)).expect("room")).collect();
        for (n, number) in numbers.iter().enumerate() {
            assert_eq!(locations.locate(&key(n as u64)), Ok(*number));
            assert_eq!(locations.key(*number), key(n as u64));
        }
        assert!(!lock(&locations.crowded).is_empty());
    }

    #[test]
    fn slots_that_follow_each_other_lie_beside_each_other() {
        let locations: Locations<Mutex<u8>> = Locations::new(1000);
        let slot = |slot: u64| Key::Slot(Address::repeat_byte(7), U256::from(slot));
        let hashes: Vec<u64> = (40..48).map(|n| locations.hash(&slot(n).words())).collect();
        let line = |hash: &u64| (*hash as usize & (locations.words.len() - 1)) / NEIGHBOURS as usize;
        assert!(hashes.iter().all(|hash| line(hash) == line(&hashes[0])));
        let (mut places, mut tags) = (hashes.clone(), hashes);
        places.iter_mut().for_each(|hash| *hash %= NEIGHBOURS);
        assert_eq!(places, (0..8).collect::<Vec<_>>());
        tags.iter_mut().for_each(|hash| *hash >>= 32);
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 8);
        // Lines of one contract that are all full.
        let numbers: Vec<u32> = (0..5000).map(|n| locations.locate(&slot(n)).expect("room")).collect();
        assert!((0..5000).zip(&numbers).all(|(n, number)| locations.locate(&slot(n)) == Ok(*number)));
        assert_eq!(numbers.len(), numbers.iter().collect::<std::collections::HashSet<_>>().len());
    }

    #[test]
    fn a_renewed_table_has_forgotten_every_key() {
        let mut locations: Locations<Mutex<u8>> = Locations::new(10);
        for items in [10, 10, 4000, 10] {
            assert_eq!(locations.count(), 0);
            let numbers: Vec<u32> = (0..3000).map(|n| locations.locate(&key(n)).expect("room")).collect();
            for (n, number) in numbers.iter().enumerate() {
                assert_eq!((locations.locate(&key(n as u64)), locations.key(*number)), (Ok(*number), key(n as u64)));
            }
            assert_eq!(numbers.len(), numbers.iter().collect::<std::collections::HashSet<_>>().len());
            locations.renew(items);
        }
    }

    #[test]
    fn threads_agree_on_the_numbers() {
        let locations: Locations<Mutex<u8>> = Locations::new(1000);
        let seen: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..4000).map(|n| locations.locate(&key(n)).expect("room")).collect()))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
