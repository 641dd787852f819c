//! What engines saw of a block, and the list made of it.
//!
//! An engine leaves the locations that its items looked at and the values they left, as it goes and in any grouping; who
//! changed a value and put it back within one item is found out here, so engines need not agree on what they write down.

use alloy_primitives::{Address, B256, Bytes, U256};
use rayon::prelude::*;
use smallvec::SmallVec;

use super::AccountAccess;
use super::encoding::join;
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::ledger::Ledger;
use crate::parallel::Value;
use crate::state::{Account, Key, Map, View};

/// Accounts that one worker takes at once.
const ACCOUNTS_AT_ONCE: usize = 512;
/// Slots of one account that one worker takes at once.
const SLOTS_AT_ONCE: usize = 512;
/// Numbers of locations that one worker looks through at once.
const LOCATIONS_AT_ONCE: usize = 4096;

/// One location as an item left it.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub index: u32,
    pub location: u32,
    pub value: Value,
}

/// What the items of a block looked at and changed. Locations are numbers that a `Places` knows.
#[derive(Debug, Default)]
pub struct AccessLog {
    changes: Vec<Vec<Change>>,
    touched: Vec<Vec<u32>>,
    /// (index, fees of the beneficiary that its logged value lacks from there on)
    fees: Vec<(u32, U256)>,
}

impl AccessLog {
    /// Takes over what some items did; of one location, what comes later was done later.
    pub fn add(&mut self, touched: impl Iterator<Item = u32>, changes: Vec<Change>) {
        match self.touched.last_mut() {
            Some(last) => last.extend(touched),
            None => self.touched.push(touched.collect()),
        }
        self.changes.push(changes);
    }

    /// As `add`, for few changes.
    pub fn note(&mut self, touched: impl Iterator<Item = u32>, changes: impl Iterator<Item = Change>) {
        if self.changes.is_empty() {
            self.changes.push(Vec::new());
        }
        if let Some(last) = self.changes.last_mut() {
            last.extend(changes);
        }
        match self.touched.last_mut() {
            Some(last) => last.extend(touched),
            None => self.touched.push(touched.collect()),
        }
    }

    /// Items get their places in the block instead of those in the batch that the builder chose from.
    pub fn renumber(&mut self, ledger: &Ledger<'_>) {
        let Some(places) = ledger.places() else { return };
        self.changes.iter_mut().flatten().for_each(|change| change.index = places[change.index as usize]);
        self.fees.iter_mut().for_each(|(index, _)| *index = places[*index as usize]);
    }

    /// From item `index` on the beneficiary owns so much more than its logged value says; told in order.
    pub fn owe(&mut self, index: u32, fees: U256) {
        self.fees.push((index, fees));
    }
}

/// What the numbers of locations stand for.
pub trait Places: Sync {
    /// One more than the highest.
    fn count(&self) -> u32;
    fn key(&self, location: u32) -> Key;
    /// The number of an account, none if it has none.
    fn find(&self, address: &Address) -> Result<Option<u32>>;
    /// The value before the block.
    fn parent(&self, location: u32) -> Result<Value>;
    /// The account before the block.
    fn parent_account(&self, address: &Address) -> Result<Option<Account>>;
    fn code(&self, hash: &B256) -> Result<Bytecode>;
}

/// Locations numbered as they come, over the state before the block.
#[derive(Debug)]
pub struct Numbered {
    view: View,
    keys: Vec<Key>,
    numbers: Map<Key, u32>,
    codes: Map<B256, Bytecode>,
}

impl Numbered {
    pub fn new(view: View) -> Self {
        Self { view, keys: Vec::new(), numbers: Map::default(), codes: Map::default() }
    }

    pub fn number(&mut self, key: &Key) -> u32 {
        let next = self.keys.len() as u32;
        let number = *self.numbers.entry(*key).or_insert(next);
        if number == next {
            self.keys.push(*key);
        }
        number
    }

    pub fn add_codes(&mut self, codes: &Map<B256, Bytecode>) {
        self.codes.extend(codes.iter().map(|(hash, code)| (*hash, code.clone())));
    }
}

impl Places for Numbered {
    fn count(&self) -> u32 {
        self.keys.len() as u32
    }

    fn key(&self, location: u32) -> Key {
        self.keys[location as usize]
    }

    fn find(&self, address: &Address) -> Result<Option<u32>> {
        Ok(self.numbers.get(&Key::Account(*address)).copied())
    }

    fn parent(&self, location: u32) -> Result<Value> {
        match self.key(location) {
            Key::Account(address) => Ok(Value::Account(self.view.account(&address)?)),
            Key::Slot(address, slot) => Ok(Value::Slot(self.view.slot(&address, &slot)?)),
        }
    }

    fn parent_account(&self, address: &Address) -> Result<Option<Account>> {
        self.view.account(address)
    }

    fn code(&self, hash: &B256) -> Result<Bytecode> {
        let held = self.codes.get(hash).cloned().or_else(|| self.view.code(hash));
        held.ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))
    }
}

/// What a location was changed to, by index; mostly once.
type Changed = SmallVec<[(u32, Value); 1]>;

/// Every change of a block, by location and then by index.
struct Sorted<'a> {
    changes: Vec<&'a Change>,
    /// Where each location's begin.
    starts: Vec<u32>,
}

impl<'a> Sorted<'a> {
    fn of(log: &'a AccessLog, count: usize) -> Self {
        let all = || log.changes.iter().flatten();
        let mut starts = vec![0_u32; count + 2];
        all().for_each(|change| starts[change.location as usize + 2] += 1);
        for location in 2..starts.len() {
            starts[location] += starts[location - 1];
        }
        let (mut changes, mut next) = (all().collect::<Vec<_>>(), starts);
        for change in all() {
            let place = &mut next[change.location as usize + 1];
            changes[*place as usize] = change;
            *place += 1;
        }
        Self { changes, starts: next }
    }

    fn has(&self, location: u32) -> bool {
        self.starts[location as usize] < self.starts[location as usize + 1]
    }

    fn at(&self, location: u32) -> Changed {
        let (start, end) = (self.starts[location as usize], self.starts[location as usize + 1]);
        let mut values: Changed =
            self.changes[start as usize..end as usize].iter().map(|change| (change.index, change.value)).collect();
        // Lanes leave their changes task by task.
        if values.len() > 1 {
            values.sort_by_key(|(index, _)| *index);
        }
        values
    }
}

/// Adds to the beneficiary's logged values what they lack.
fn with_fees(base: Value, changes: &[(u32, Value)], fees: &[(u32, U256)]) -> Changed {
    let mut indices: Vec<u32> =
        changes.iter().map(|(index, _)| *index).chain(fees.iter().map(|(index, _)| *index)).collect();
    indices.sort_unstable();
    indices.dedup();
    let upto = |index: u32| changes.partition_point(|(changed, _)| *changed <= index);
    let owed = |index: u32| fees.partition_point(|(owed, _)| *owed <= index);
    let full = indices.into_iter().map(|index| {
        let value = upto(index).checked_sub(1).map_or(base, |last| changes[last].1);
        let fees = owed(index).checked_sub(1).map_or(U256::ZERO, |last| fees[last].1);
        let Value::Account(account) = value else { return (index, value) };
        let account = account.unwrap_or_default();
        let account = Account { balance: account.balance.saturating_add(fees), ..account };
        (index, Value::Account(Some(account).filter(|account| !account.is_empty())))
    });
    full.collect()
}

/// The states of one field after each index that changed it.
fn net<T: PartialEq + Copy>(before: T, values: impl Iterator<Item = (u32, T)>) -> Vec<(u32, T)> {
    let mut last: Vec<(u32, T)> = Vec::new();
    for (index, value) in values {
        match last.last_mut() {
            Some((same, present)) if *same == index => *present = value,
            _ => last.push((index, value)),
        }
    }
    let mut present = before;
    last.retain(|(_, value)| std::mem::replace(&mut present, *value) != *value);
    last
}

/// Changes and reads of some slots.
type Slots = (Vec<(U256, Vec<(u32, U256)>)>, Vec<U256>);

struct Builder<'a, P> {
    has_workers: bool,
    log: &'a AccessLog,
    is_touched: Vec<bool>,
    places: &'a P,
    sorted: Sorted<'a>,
    beneficiary: Address,
}

impl<P: Places> Builder<'_, P> {
    /// None for an account that nobody looked at, and that is as it was.
    fn account(&self, keys: &[(Key, u32)]) -> Result<Option<AccountAccess>> {
        let address = address_of(&keys[0].0);
        let mut access = AccountAccess { address, ..AccountAccess::default() };
        // An account's own key comes before those of its slots.
        let slots = match &keys[0] {
            (Key::Account(_), location) => {
                self.fields(&mut access, *location, self.places.parent(*location)?)?;
                &keys[1..]
            }
            (Key::Slot(..), _) => keys,
        };
        for (changes, reads) in self.slots(&address, slots)? {
            access.storage_changes.extend(changes);
            access.storage_reads.extend(reads);
        }
        let is_touched = keys.iter().any(|(_, location)| self.is_touched[*location as usize]);
        Ok(Some(access).filter(|access| is_touched || access.has_changes()))
    }

    /// Of one account, in order; many are shared among the workers, because one token may be most of a block.
    fn slots(&self, address: &Address, keys: &[(Key, u32)]) -> Result<Vec<Slots>> {
        if self.has_workers && keys.len() > SLOTS_AT_ONCE {
            return keys.par_chunks(SLOTS_AT_ONCE).map(|keys| self.some_slots(address, keys)).collect();
        }
        Ok(vec![self.some_slots(address, keys)?])
    }

    fn some_slots(&self, address: &Address, keys: &[(Key, u32)]) -> Result<Slots> {
        let (mut all_changes, mut reads) = (Vec::with_capacity(keys.len()), Vec::new());
        let mut has_code = None;
        for (key, location) in keys {
            let Key::Slot(_, slot) = key else { continue };
            let changed = self.sorted.at(*location);
            let word = |value| if let Value::Slot(word) = value { word } else { U256::ZERO };
            let changes = match changed.is_empty() {
                true => Vec::new(),
                false => {
                    let before = word(self.places.parent(*location)?);
                    net(before, changed.iter().map(|(index, value)| (*index, word(*value))))
                }
            };
            if !changes.is_empty() {
                all_changes.push((*slot, changes));
                continue;
            }
            // What an account holds that the block itself gave its code, EVMs do not ask the state for.
            if !self.is_touched[*location as usize] {
                continue;
            }
            let has_code = match has_code {
                Some(known) => known,
                None => *has_code.insert(self.has_code(address)?),
            };
            if has_code {
                reads.push(*slot);
            }
        }
        Ok((all_changes, reads))
    }

    /// Some accounts of the list, encoded.
    fn part(&self, accounts: &[&[(Key, u32)]]) -> Result<Vec<u8>> {
        let mut encoded = Vec::with_capacity(96 * accounts.len());
        for keys in accounts {
            if let Some(account) = self.account(keys)? {
                account.encode(&mut encoded);
            }
        }
        Ok(encoded)
    }

    fn has_code(&self, address: &Address) -> Result<bool> {
        Ok(self.places.parent_account(address)?.is_some_and(|account| account.has_code()))
    }

    fn fields(&self, access: &mut AccountAccess, location: u32, before: Value) -> Result<()> {
        let mut changed = self.sorted.at(location);
        if access.address == self.beneficiary {
            changed = with_fees(before, &changed, &self.log.fees);
        }
        let account = |value| if let Value::Account(account) = value { account } else { None }.unwrap_or_default();
        let before: Account = account(before);
        let after = || changed.iter().map(|(index, value)| (*index, account(*value)));
        access.balance_changes = net(before.balance, after().map(|(index, account)| (index, account.balance)));
        access.nonce_changes = net(before.nonce, after().map(|(index, account)| (index, account.nonce)));
        for (index, hash) in net(before.code_hash, after().map(|(index, account)| (index, account.code_hash))) {
            let code = if hash == Account::default().code_hash {
                Bytes::new()
            } else {
                Bytes::copy_from_slice(self.places.code(&hash)?.original_byte_slice())
            };
            access.code_changes.push((index, code));
        }
        Ok(())
    }
}

fn address_of(key: &Key) -> Address {
    match key {
        Key::Account(address) | Key::Slot(address, _) => *address,
    }
}

fn order(key: &Key) -> (Address, Option<U256>) {
    match key {
        Key::Account(address) => (*address, None),
        Key::Slot(address, slot) => (*address, Some(*slot)),
    }
}

/// The list of what was logged, encoded; shared among the workers of the pool it is called in, if there are any.
///
/// # Errors
/// Those of reading the state before the block.
pub fn build<P: Places>(log: &AccessLog, places: &P, beneficiary: Address, has_workers: bool) -> Result<Vec<u8>> {
    let is_paid = log.fees.iter().any(|(_, fees)| !fees.is_zero());
    let paid = if is_paid { places.find(&beneficiary)? } else { None };
    let count = places.count();
    let sorted = Sorted::of(log, count as usize);
    let mut is_touched = vec![false; count as usize];
    log.touched.iter().flatten().for_each(|location| is_touched[*location as usize] = true);
    // Only what was logged is asked for: some numbers below the highest may stand for nothing.
    let is_listed = |location: &u32| is_touched[*location as usize] || sorted.has(*location) || paid == Some(*location);
    let named = |location| (places.key(location), location);
    let mut listed: Vec<(Key, u32)> = if has_workers {
        (0..count).into_par_iter().with_min_len(LOCATIONS_AT_ONCE).filter(is_listed).map(named).collect()
    } else {
        (0..count).filter(is_listed).map(named).collect()
    };
    if has_workers {
        listed.par_sort_unstable_by_key(|(key, _)| order(key));
    } else {
        listed.sort_unstable_by_key(|(key, _)| order(key));
    }
    let builder = Builder { has_workers, log, is_touched, places, sorted, beneficiary };
    let accounts: Vec<&[(Key, u32)]> = listed.chunk_by(|(a, _), (b, _)| address_of(a) == address_of(b)).collect();
    let parts: Vec<Vec<u8>> = if has_workers {
        accounts.par_chunks(ACCOUNTS_AT_ONCE).map(|accounts| builder.part(accounts)).collect::<Result<_>>()?
    } else {
        vec![builder.part(&accounts)?]
    };
    Ok(join(&parts))
}
