//! A hash table whose places can be brought near before they are looked at.
//!
//! Whoever looks up many keys of a large state waits for memory at each of them, several times. Bringing the places of all
//! near first lets those waits overlap.

use std::hash::{BuildHasher, Hasher};

use alloy_primitives::{Address, U256};
use hashbrown::HashTable;

use crate::near::bring_near;

/// What a table can be asked for.
pub trait Word: Copy + Eq {
    fn feed(&self, hasher: &mut impl Hasher);
}

impl Word for Address {
    #[inline]
    fn feed(&self, hasher: &mut impl Hasher) {
        let (words, rest) = self.as_chunks::<8>();
        words.iter().for_each(|word| hasher.write_u64(u64::from_le_bytes(*word)));
        hasher.write_u32(rest.first_chunk().map_or(0, |rest| u32::from_le_bytes(*rest)));
    }
}

impl Word for U256 {
    #[inline]
    fn feed(&self, hasher: &mut impl Hasher) {
        self.as_limbs().iter().for_each(|limb| hasher.write_u64(*limb));
    }
}

/// Values by key, under a hasher with a seed of its own: whoever sends transactions chooses the keys. Nothing may depend on
/// the order.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    hasher: foldhash::fast::RandomState,
    entries: HashTable<(K, V)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { hasher: foldhash::fast::RandomState::default(), entries: HashTable::new() }
    }
}

fn hash(hasher: &foldhash::fast::RandomState, key: &impl Word) -> u64 {
    let mut hasher = hasher.build_hasher();
    key.feed(&mut hasher);
    hasher.finish()
}

impl<K: Word, V> Table<K, V> {
    /// What `get_hashed` wants of a key; where it lies is brought near, if it can be told.
    pub fn expect(&self, key: &K) -> u64 {
        let hash = hash(&self.hasher, key);
        // A hint: where the table begins to look is not promised, only usual.
        let place = (hash as usize) & self.entries.num_buckets().wrapping_sub(1);
        if let Some(entry) = self.entries.get_bucket(place) {
            bring_near(entry);
        }
        hash
    }

    pub fn get_hashed(&self, key: &K, hash: u64) -> Option<&V> {
        self.entries.find(hash, |(known, _)| known == key).map(|(_, value)| value)
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.get_hashed(key, hash(&self.hasher, key))
    }

    /// Sets a value; gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Self { hasher, entries } = self;
        let hashed = hash(hasher, &key);
        match entries.find_mut(hashed, |(known, _)| *known == key) {
            Some((_, present)) => Some(std::mem::replace(present, value)),
            None => {
                entries.insert_unique(hashed, (key, value), |(known, _)| hash(hasher, known));
                None
            }
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let hashed = hash(&self.hasher, key);
        let entry = self.entries.find_entry(hashed, |(known, _)| known == key).ok()?;
        Some(entry.remove().0.1)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_map_holds() {
        let (mut table, mut map) = (Table::default(), std::collections::HashMap::new());
        let mut dice = 7_u64;
        for _ in 0..20_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (key, value) = (U256::from(dice >> 52), dice);
            let hash = table.expect(&key);
            assert_eq!(table.get_hashed(&key, hash), map.get(&key));
            match dice >> 32 & 3 {
                0 => assert_eq!(table.remove(&key), map.remove(&key)),
                _ => assert_eq!(table.insert(key, value), map.insert(key, value)),
            }
        }
        assert_eq!(table.iter().count(), map.len());
        assert!(table.iter().all(|(key, value)| map.get(key) == Some(value)));
        assert_eq!(table.is_empty(), map.is_empty());
    }

    #[test]
    fn every_byte_of_an_address_counts() {
        let table: Table<Address, u8> = Table::default();
        let plain = hash(&table.hasher, &Address::ZERO);
        for byte in 0..20 {
            let mut other = Address::ZERO;
            other[byte] = 1;
            assert_ne!(hash(&table.hasher, &other), plain, "byte {byte}");
        }
    }

    #[test]
    fn an_empty_table_is_asked_in_vain() {
        let table: Table<Address, u8> = Table::default();
        let hash = table.expect(&Address::ZERO);
        assert_eq!(table.get_hashed(&Address::ZERO, hash), None);
    }
}
