//! The journal that transactions run on one after the other: see `steps`.
//!
//! It follows revm's rules from Cancun on (EIP-2929, EIP-3529, EIP-6780, EIP-7702), as far as the transactions between two
//! `clear`s end no account. Accounts and slots lie in rows in the order in which they were first read, each with the place
//! where its source has it: whoever keeps what a step changed asks nobody where that is. Entries name rows, so they are small,
//! nothing is looked up to take one back, and each location is told once of a step however often it was written.

mod revm;

use std::hash::{BuildHasher, Hasher};

use ::revm::Database;
use ::revm::context::journaled_state::JournalLoadError;
use ::revm::context_interface::context::StateLoad;
use ::revm::primitives::{AddressMap, AddressSet, HashSet};
use ::revm::state::{Account as EvmAccount, AccountInfo, AccountStatus, EvmState, EvmStorageSlot, TransactionId};
use alloy_primitives::{Address, KECCAK256_EMPTY, Log, U256};
use hashbrown::HashTable;

use super::steps::StepChanges;
use super::{Bytecode, Db, StateError};
use crate::parallel::Value;
use crate::state::{Account, Map, Source, Word};
use crate::transfer::Transfer;

/// A source that numbers what it is asked for.
pub trait Numbering: Source {
    /// The number of the account or slot that was read last.
    fn place(&self) -> u32;
}

/// Of a slot that nobody had to read: its account was created on this journal.
pub const NOWHERE: u32 = u32::MAX;

/// Rows that are kept for the next steps.
const MOST_KEPT: usize = 1 << 12;
/// About what one transaction comes to; a power of two.
const GUESSES: usize = 16;
/// The bytes of an address that are zero in those of precompiles.
const PADDING: usize = 16;

type Load<T> = Result<T, JournalLoadError<StateError>>;

#[derive(Debug)]
struct Held {
    address: Address,
    account: EvmAccount,
    /// As the step found it that came here last.
    before: Account,
    place: u32,
    /// The step that told of it last.
    told: Option<TransactionId>,
}

#[derive(Debug)]
struct HeldSlot {
    /// Its account's row.
    owner: u32,
    place: u32,
    told: Option<TransactionId>,
    key: U256,
    slot: EvmStorageSlot,
}

/// What was done to a row, with what takes it back.
#[derive(Debug)]
enum Entry {
    Warmed(u32),
    Touched(u32),
    Created { account: u32, is_first: bool },
    Balance { account: u32, before: U256 },
    Paid { from: u32, to: u32, amount: U256 },
    Nonce { account: u32, before: u64 },
    Code { account: u32, before: Box<AccountInfo> },
    Destroyed { account: u32, target: u32, before: AccountStatus, balance: U256 },
    SlotWarmed(u32),
    Slot { slot: u32, before: U256 },
    Transient { row: u32, before: U256 },
}

/// Many are written in a step, and read once.
const _: () = assert!(size_of::<Entry>() <= 48, "an entry has grown");

/// What is warm before a transaction begins.
#[derive(Debug, Default)]
struct Warm {
    coinbase: Option<Address>,
    listed: AddressMap<HashSet<U256>>,
    precompiles: AddressSet,
    /// None of them has anything in the bytes that are their padding.
    are_padded: bool,
}

impl Warm {
    fn has(&self, address: &Address) -> bool {
        self.coinbase.as_ref() == Some(address)
            || (!self.listed.is_empty() && self.listed.contains_key(address))
            || ((!self.are_padded || is_padded(address)) && self.precompiles.contains(address))
    }

    fn has_slot(&self, address: &Address, key: &U256) -> bool {
        !self.listed.is_empty() && self.listed.get(address).is_some_and(|keys| keys.contains(key))
    }

    fn end(&mut self) {
        self.coinbase = None;
        if !self.listed.is_empty() {
            self.listed.clear();
        }
    }
}

fn is_padded(address: &Address) -> bool {
    address.first_chunk() == Some(&[0; PADDING])
}

/// A guess at a row: whoever asks compares its key.
#[derive(Debug, Default)]
struct Recent {
    accounts: [u32; GUESSES],
    slots: [u32; GUESSES],
}

impl Recent {
    fn account(&mut self, address: &Address) -> &mut u32 {
        &mut self.accounts[usize::from(address[19]) % GUESSES]
    }

    fn slot(&mut self, owner: u32, key: &U256) -> &mut u32 {
        &mut self.slots[(key.as_limbs()[0] as usize ^ owner as usize) % GUESSES]
    }
}

#[derive(Debug)]
pub struct StepJournal<S> {
    pub db: Db<S>,
    /// What the steps have changed.
    pub changes: StepChanges,
    hasher: foldhash::fast::RandomState,
    /// The first `held` of them are accounts of this journal; the others are room.
    accounts: Vec<Held>,
    held: usize,
    account_rows: HashTable<u32>,
    slots: Vec<HeldSlot>,
    slot_rows: HashTable<u32>,
    /// Rows that were asked for last, by some bits of their keys: mostly they are asked for again.
    recent: Recent,
    /// Rows that were there at the last `mark`.
    known: (usize, usize),
    entries: Vec<Entry>,
    /// EIP-1153: of the present step.
    transient: Vec<U256>,
    transient_rows: Map<(u32, U256), u32>,
    logs: Vec<Log>,
    depth: usize,
    step: TransactionId,
    warm: Warm,
    /// revm asks for state as it keeps it, and nobody looks at it.
    none: EvmState,
}

impl<S> StepJournal<S> {
    fn hash_account(&self, address: &Address) -> u64 {
        hash(&self.hasher, 0, address)
    }

    fn hash_slot(&self, owner: u32, key: &U256) -> u64 {
        hash(&self.hasher, owner, key)
    }

    #[inline]
    fn find(&mut self, address: &Address) -> Option<u32> {
        let guess = *self.recent.account(address);
        if (guess as usize) < self.held && self.accounts[guess as usize].address == *address {
            return Some(guess);
        }
        self.search(address)
    }

    #[inline(never)]
    fn search(&mut self, address: &Address) -> Option<u32> {
        let (hash, accounts) = (self.hash_account(address), &self.accounts);
        let row = *self.account_rows.find(hash, |row| accounts[*row as usize].address == *address)?;
        *self.recent.account(address) = row;
        Some(row)
    }

    /// The row of an account that was loaded before.
    fn loaded(&mut self, address: &Address) -> u32 {
        self.find(address).expect("revm names accounts that it has loaded")
    }

    fn find_slot(&mut self, owner: u32, key: &U256) -> Option<u32> {
        let is_it = |held: &HeldSlot| held.owner == owner && held.key == *key;
        let guess = *self.recent.slot(owner, key);
        if self.slots.get(guess as usize).is_some_and(is_it) {
            return Some(guess);
        }
        let (hash, slots) = (self.hash_slot(owner, key), &self.slots);
        let row = *self.slot_rows.find(hash, |row| is_it(&slots[*row as usize]))?;
        *self.recent.slot(owner, key) = row;
        Some(row)
    }

    fn account(&mut self, row: u32) -> &mut EvmAccount {
        &mut self.accounts[row as usize].account
    }

    fn touch(&mut self, row: u32) {
        let account = &mut self.accounts[row as usize].account;
        if !account.is_touched() {
            account.mark_touch();
            self.entries.push(Entry::Touched(row));
        }
    }

    /// Takes entries back from the last one on, until so many are left.
    fn revert(&mut self, left: usize) {
        while self.entries.len() > left {
            let Some(entry) = self.entries.pop() else { return };
            match entry {
                Entry::Warmed(row) => self.account(row).mark_cold(),
                Entry::Touched(row) => self.account(row).unmark_touch(),
                Entry::Created { account, is_first } => {
                    let account = self.account(account);
                    account.unmark_created_locally();
                    if is_first {
                        account.unmark_created();
                    }
                    // Only an account without a nonce can be created.
                    account.info.nonce = 0;
                }
                Entry::Balance { account, before } => self.account(account).info.balance = before,
                Entry::Paid { from, to, amount } => {
                    self.account(from).info.balance += amount;
                    self.account(to).info.balance -= amount;
                }
                Entry::Nonce { account, before } => self.account(account).info.nonce = before,
                Entry::Code { account, before } => {
                    let info = &mut self.account(account).info;
                    (info.code_hash, info.code) = (before.code_hash, before.code);
                }
                Entry::Destroyed { account, target, before, balance } => {
                    let destroyed = self.account(account);
                    let flags = AccountStatus::SelfDestructed | AccountStatus::SelfDestructedLocal;
                    destroyed.status = (destroyed.status - flags) | (before & flags);
                    destroyed.info.balance += balance;
                    if account != target {
                        self.account(target).info.balance -= balance;
                    }
                }
                Entry::SlotWarmed(row) => self.slots[row as usize].slot.mark_cold(),
                Entry::Slot { slot, before } => self.slots[slot as usize].slot.present_value = before,
                Entry::Transient { row, before } => self.transient[row as usize] = before,
            }
        }
    }

    /// Notes what the step changed, and begins the next.
    fn end_step(&mut self) {
        for nth in 0..self.entries.len() {
            match self.entries[nth] {
                Entry::Warmed(_) | Entry::Touched(_) | Entry::SlotWarmed(_) | Entry::Transient { .. } => {}
                Entry::Created { account, .. }
                | Entry::Balance { account, .. }
                | Entry::Nonce { account, .. }
                | Entry::Code { account, .. } => self.tell_account(account),
                Entry::Paid { from: one, to: other, .. } => {
                    self.tell_account(one);
                    self.tell_account(other);
                }
                Entry::Destroyed { account, target, .. } => {
                    self.changes.has_destroyed = true;
                    self.tell_account(account);
                    self.tell_account(target);
                }
                Entry::Slot { slot, .. } => self.tell_slot(slot),
            }
        }
        self.entries.clear();
        self.begin();
    }

    fn begin(&mut self) {
        self.logs.clear();
        self.depth = 0;
        if self.transient.len() > MOST_KEPT {
            (self.transient, self.transient_rows) = Default::default();
        } else if !self.transient.is_empty() {
            self.transient.clear();
            self.transient_rows.clear();
        }
        self.warm.end();
        self.step.increment();
    }

    /// What is read from here on can be forgotten again.
    pub fn mark(&mut self) {
        self.known = (self.held, self.slots.len());
    }

    /// Takes an account in, if the step left it otherwise than it was.
    fn tell_account(&mut self, row: u32) {
        let held = &mut self.accounts[row as usize];
        if held.told != Some(self.step) {
            held.told = Some(self.step);
            self.changes.note(held.place, &held.account, &held.before);
        }
    }

    fn tell_slot(&mut self, row: u32) {
        let held = &mut self.slots[row as usize];
        if held.told == Some(self.step) {
            return;
        }
        held.told = Some(self.step);
        let owner = &self.accounts[held.owner as usize];
        if held.slot.is_changed() && !owner.account.is_selfdestructed() {
            match held.place {
                NOWHERE => self.changes.push_unplaced(&owner.address, &held.key, held.slot.present_value),
                place => self.changes.push(place, Value::Slot(held.slot.present_value)),
            }
        }
    }

    /// Forgets the accounts and slots that were read first since the last `mark`; nothing may have been changed since.
    pub fn forget_new(&mut self) {
        let (held, slots) = self.known;
        for row in held..self.held {
            let hash = self.hash_account(&self.accounts[row].address);
            if let Ok(entry) = self.account_rows.find_entry(hash, |other| *other as usize == row) {
                entry.remove();
            }
        }
        for row in slots..self.slots.len() {
            let hash = self.hash_slot(self.slots[row].owner, &self.slots[row].key);
            if let Ok(entry) = self.slot_rows.find_entry(hash, |other| *other as usize == row) {
                entry.remove();
            }
        }
        self.held = held;
        self.slots.truncate(slots);
    }

    /// Empties it, keeping its room.
    pub fn clear(&mut self) {
        self.entries.clear();
        if self.held.max(self.slots.len()) > MOST_KEPT {
            // Emptying a table takes as long as it is large.
            (self.account_rows, self.slot_rows) = Default::default();
        }
        self.held = 0;
        self.accounts.truncate(MOST_KEPT);
        self.accounts.shrink_to(MOST_KEPT);
        self.account_rows.clear();
        self.slots.clear();
        self.slots.shrink_to(MOST_KEPT);
        self.slot_rows.clear();
        self.entries.shrink_to(MOST_KEPT);
        self.step = TransactionId::ZERO;
        self.begin();
        self.mark();
    }

    /// What an account has been left with by the steps so far, if any of them came to it.
    pub fn peek(&mut self, address: &Address) -> Option<&mut EvmAccount> {
        let row = self.find(address)?;
        Some(self.account(row))
    }

    /// Takes from an account that the last step has called.
    pub fn debit(&mut self, address: &Address, amount: U256) -> Option<()> {
        let row = self.find(address)?;
        let held = &mut self.accounts[row as usize];
        held.account.mark_touch();
        held.account.info.balance = held.account.info.balance.checked_sub(amount)?;
        self.changes.note_again(held.place, &held.account, &held.before);
        Some(())
    }
}

fn hash(hasher: &foldhash::fast::RandomState, owner: u32, key: &impl Word) -> u64 {
    let mut hasher = hasher.build_hasher();
    key.feed(&mut hasher);
    hasher.write_u32(owner);
    hasher.finish()
}

pub fn present(account: &EvmAccount) -> Account {
    let info = &account.info;
    Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash }
}

impl<S: Numbering> StepJournal<S> {
    pub fn new(db: Db<S>) -> Self {
        Self {
            db,
            changes: StepChanges::default(),
            hasher: foldhash::fast::RandomState::default(),
            accounts: Vec::new(),
            held: 0,
            account_rows: HashTable::new(),
            slots: Vec::new(),
            slot_rows: HashTable::new(),
            recent: Recent::default(),
            known: (0, 0),
            entries: Vec::new(),
            transient: Vec::new(),
            transient_rows: Map::default(),
            logs: Vec::new(),
            depth: 0,
            step: TransactionId::ZERO,
            warm: Warm::default(),
            none: EvmState::default(),
        }
    }

    /// The row of an account, and whether it was cold (EIP-2929).
    #[inline]
    fn load(&mut self, address: &Address, skip_cold: bool) -> Load<(u32, bool)> {
        let Some(row) = self.find(address) else { return self.load_new(address, skip_cold) };
        let held = &mut self.accounts[row as usize];
        if !held.account.is_cold_transaction_id(self.step) {
            return Ok((row, false));
        }
        let is_cold = !self.warm.has(address);
        if is_cold && skip_cold {
            return Err(JournalLoadError::ColdLoadSkipped);
        }
        held.account.mark_warm_with_transaction_id(self.step);
        held.account.unmark_created_locally();
        held.before = present(&held.account);
        self.entries.push(Entry::Warmed(row));
        Ok((row, is_cold))
    }

    #[inline(never)]
    fn load_new(&mut self, address: &Address, skip_cold: bool) -> Load<(u32, bool)> {
        let is_cold = !self.warm.has(address);
        if is_cold && skip_cold {
            return Err(JournalLoadError::ColdLoadSkipped);
        }
        let read = self.db.basic(*address)?;
        let place = self.db.source.place();
        let row = self.held;
        if row == self.accounts.len() {
            let account = EvmAccount::default();
            self.accounts.push(Held { address: *address, account, before: Account::default(), place, told: None });
        }
        let held = &mut self.accounts[row];
        let account = &mut held.account;
        account.status = if read.is_some() { AccountStatus::empty() } else { AccountStatus::LoadedAsNotExisting };
        account.transaction_id = self.step;
        let info = read.unwrap_or_default();
        // Room of an account without code has the empty code already: to get it again is to count it.
        let is_alike = info.code_hash == KECCAK256_EMPTY && account.info.code.as_ref().is_some_and(Bytecode::is_empty);
        let code = if is_alike { account.info.code.take() } else { info.code };
        account.info = AccountInfo { code, ..info };
        (held.address, held.place, held.told) = (*address, place, None);
        held.before = present(account);
        let hashed = self.hash_account(address);
        let row = row as u32;
        let (hasher, accounts) = (&self.hasher, &self.accounts);
        self.account_rows.insert_unique(hashed, row, |row| hash(hasher, 0, &accounts[*row as usize].address));
        self.held += 1;
        *self.recent.account(address) = row;
        if is_cold {
            self.entries.push(Entry::Warmed(row));
        }
        Ok((row, is_cold))
    }

    /// A plain transfer, without the interpreter; false, and nothing done, if it needs it after all.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn transfer_plainly(&mut self, transfer: &Transfer) -> Result<bool, StateError> {
        let mut load = |address: Address| match self.load(&address, false) {
            Ok((row, _)) => Ok((row, present(&self.accounts[row as usize].account))),
            Err(error) => Err(error.unwrap_db_error()),
        };
        let (from, sender) = load(transfer.sender)?;
        // Whoever cannot pay is refused, and nobody looks at whom they meant to pay.
        let to = if transfer.predicate.holds(Some(&sender)) { Some(load(transfer.to)?) } else { None };
        let paid = to.filter(|(_, to)| !to.has_code());
        let paid = paid.and_then(|(row, to)| Some((row, to, to.balance.checked_add(transfer.value)?)));
        self.entries.clear();
        let Some((to, receiver, credited)) = paid else {
            // What was loaded is cold again.
            self.begin();
            return Ok(false);
        };
        let nonce = sender.nonce + 1;
        let value = if from == to { U256::ZERO } else { transfer.value };
        self.set(from, Account { nonce, balance: sender.balance - transfer.fee - value, ..sender });
        if !value.is_zero() {
            self.set(to, Account { balance: credited, ..receiver });
        }
        self.begin();
        Ok(true)
    }

    fn set(&mut self, row: u32, present: Account) {
        let held = &mut self.accounts[row as usize];
        held.account.mark_touch();
        (held.account.info.nonce, held.account.info.balance) = (present.nonce, present.balance);
        let left = Some(present).filter(|account| !account.is_empty());
        self.changes.push(held.place, Value::Account(left));
    }

    fn load_code(&mut self, row: u32) -> Result<&Bytecode, StateError> {
        let info = &mut self.accounts[row as usize].account.info;
        match info.code {
            Some(ref code) => Ok(code),
            None => Ok(info.code.insert(self.db.code_by_hash(info.code_hash)?)),
        }
    }

    /// The row of a slot, and whether it was cold (EIP-2929).
    fn load_slot(&mut self, owner: u32, key: &U256, skip_cold: bool) -> Load<StateLoad<u32>> {
        let found = self.find_slot(owner, key);
        let Held { address, account, .. } = &self.accounts[owner as usize];
        let row = match found {
            Some(row) if !self.slots[row as usize].slot.is_cold_transaction_id(self.step) => {
                return Ok(StateLoad::new(row, false));
            }
            found => found,
        };
        let is_cold = !self.warm.has_slot(address, key);
        if is_cold && skip_cold {
            return Err(JournalLoadError::ColdLoadSkipped);
        }
        let row = match row {
            Some(row) => {
                self.slots[row as usize].slot.mark_warm_with_transaction_id(self.step);
                row
            }
            // What the block itself gave its code stands in no access list with what is read of it.
            None => {
                let (value, place) = if account.is_created() {
                    (U256::ZERO, NOWHERE)
                } else {
                    (self.db.storage(*address, *key)?, self.db.source.place())
                };
                let row = self.slots.len() as u32;
                let slot = EvmStorageSlot::new(value, self.step);
                self.slots.push(HeldSlot { owner, place, told: None, key: *key, slot });
                let (hashed, hasher, slots) = (self.hash_slot(owner, key), &self.hasher, &self.slots);
                self.slot_rows.insert_unique(hashed, row, |row| {
                    let held = &slots[*row as usize];
                    hash(hasher, held.owner, &held.key)
                });
                *self.recent.slot(owner, key) = row;
                row
            }
        };
        if is_cold {
            self.entries.push(Entry::SlotWarmed(row));
        }
        Ok(StateLoad::new(row, is_cold))
    }
}
