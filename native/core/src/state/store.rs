//! Where the state lives: one finalised base, overlays by block hash above it, undo records for the last blocks below it.
//!
//! A `View` names one state by the overlays between it and a numbered version of the base. It stays right while the
//! base moves on: values that later versions overwrote are found in their undo records. So executing and answering reads
//! never block finalising for longer than a few lookups, and a slow reader gets `MissingState`, never a wrong value.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use alloy_primitives::{Address, B256, U256};
use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use smallvec::SmallVec;

use super::table::Table;
use super::{Account, Changes, Map, Slots, Source, Update, commit};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::lthash::LtHash;

/// A block executed and adopted but not final.
#[derive(Debug)]
pub struct Overlay {
    pub parent: B256,
    pub height: u64,
    pub changes: Arc<Changes>,
    pub accumulator: Arc<LtHash>,
    pub root: B256,
}

/// The state before a version, kept as the values that version overwrote.
#[derive(Debug)]
struct Undo {
    /// The version that these values belong to.
    version: u64,
    block_hash: B256,
    root: B256,
    before: Arc<Changes>,
}

#[derive(Debug, Default)]
struct Inner {
    accounts: Table<Address, Account>,
    storage: Map<Address, Table<U256, U256>>,
    codes: Map<B256, Bytecode>,
    accumulator: Arc<LtHash>,
    root: B256,
    block_hash: B256,
    height: u64,
    version: u64,
    undo: VecDeque<Undo>,
    overlays: Map<B256, Arc<Overlay>>,
}

#[derive(Debug)]
pub struct Store {
    /// Sharded, because the workers of a block read at once: a plain lock's reader count would travel between their cores.
    inner: ShardedLock<Inner>,
    history: usize,
}

/// One state, named; holds no lock.
#[derive(Debug, Clone)]
pub struct View {
    store: Arc<Store>,
    /// From the newest to the oldest.
    overlays: Vec<Arc<Changes>>,
    version: u64,
    pub accumulator: Option<Arc<LtHash>>,
    pub root: B256,
}

impl Store {
    pub fn new(history: usize) -> Self {
        let inner = Inner { root: B256::new(LtHash::default().root()), ..Inner::default() };
        Self { inner: ShardedLock::new(inner), history }
    }

    fn read(&self) -> ShardedLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> ShardedLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by one state; views taken before answer `MissingState` from now on.
    pub fn replace(&self, changes: Changes, threads: usize) -> B256 {
        let mut fresh = Inner::default();
        let updates = fresh.fold(&changes).0;
        let accumulator = commit(&LtHash::default(), &[&updates], threads);
        fresh.root = B256::new(accumulator.root());
        fresh.accumulator = Arc::new(accumulator);
        let root = fresh.root;
        let mut inner = self.write();
        fresh.version = inner.version + 1;
        *inner = fresh;
        root
    }

    pub fn set_base(&self, block_hash: B256, height: u64) {
        let mut inner = self.write();
        inner.block_hash = block_hash;
        inner.height = height;
    }

    pub fn has(&self, at: &B256) -> bool {
        let inner = self.read();
        inner.overlays.contains_key(at) || inner.version_of(at).is_some()
    }

    /// # Errors
    /// `MissingState` when the block is neither an overlay, nor the base, nor within the history.
    pub fn view(self: &Arc<Self>, at: &B256) -> Result<View> {
        let inner = self.read();
        let missing = || CoreError::MissingState(format!("block {at} is not held"));
        let Some(tip) = inner.overlays.get(at) else {
            let (version, root) = inner.version_of(at).ok_or_else(missing)?;
            let accumulator = (version == inner.version).then(|| inner.accumulator.clone());
            return Ok(View { store: self.clone(), overlays: Vec::new(), version, accumulator, root });
        };
        let overlays = inner.path(at).ok_or_else(missing)?;
        Ok(View {
            store: self.clone(),
            overlays: overlays.iter().map(|(_, overlay)| overlay.changes.clone()).collect(),
            version: inner.version,
            accumulator: Some(tip.accumulator.clone()),
            root: tip.root,
        })
    }

    /// Registers an executed block; a block known already stays as it is.
    ///
    /// # Errors
    /// `UnknownParent` when the parent is neither the base nor an overlay.
    pub fn adopt(&self, block_hash: B256, overlay: Overlay) -> Result<()> {
        let mut inner = self.write();
        if inner.overlays.contains_key(&block_hash) || inner.version_of(&block_hash).is_some() {
            return Ok(());
        }
        if overlay.parent != inner.block_hash && !inner.overlays.contains_key(&overlay.parent) {
            return Err(CoreError::UnknownParent(format!("{} of block {block_hash}", overlay.parent)));
        }
        inner.overlays.insert(block_hash, Arc::new(overlay));
        Ok(())
    }

    /// Folds a block and its ancestors into the base and drops whatever does not descend from it (L5).
    ///
    /// # Errors
    /// `UnknownParent` when the block is not known.
    pub fn finalise(&self, block_hash: &B256) -> Result<()> {
        let mut inner = self.write();
        if inner.version_of(block_hash).is_some() {
            return Ok(());
        }
        let path = inner
            .path(block_hash)
            .ok_or_else(|| CoreError::UnknownParent(format!("block {block_hash} is not held")))?;
        for (hash, overlay) in path.into_iter().rev() {
            let before = inner.fold(&overlay.changes).1;
            let accumulator = overlay.accumulator.clone();
            inner.advance(hash, overlay.height, overlay.root, accumulator, before, self.history);
        }
        inner.drop_strangers();
        Ok(())
    }

    /// Drops an overlay and everything above it.
    pub fn discard(&self, block_hash: &B256) {
        let mut inner = self.write();
        if inner.overlays.remove(block_hash).is_some() {
            inner.drop_strangers();
        }
    }

    /// Recovery: base := base + changes. The block that is the base already changes nothing.
    ///
    /// No block may be executed meanwhile: its workers would wait for the state, and the hashing here for its workers.
    pub fn apply(&self, block_hash: B256, height: u64, changes: &Changes, threads: usize) -> B256 {
        let mut inner = self.write();
        if inner.block_hash == block_hash {
            return inner.root;
        }
        let (updates, before) = inner.fold(changes);
        let accumulator = commit(&inner.accumulator, &[&updates], threads);
        let root = B256::new(accumulator.root());
        inner.advance(block_hash, height, root, Arc::new(accumulator), before, self.history);
        inner.drop_strangers();
        root
    }

    /// The whole base as changes against nothing, with the code its accounts use.
    pub fn export(&self) -> Changes {
        let inner = self.read();
        let used = inner.accounts.values().filter(|account| account.has_code());
        let codes = used.filter_map(|account| inner.codes.get_key_value(&account.code_hash));
        Changes {
            accounts: inner.accounts.iter().map(|(address, account)| (*address, Some(*account))).collect(),
            storage: inner.storage.iter().map(|(address, slots)| (*address, collect(slots))).collect(),
            codes: codes.map(|(hash, code)| (*hash, code.clone())).collect(),
        }
    }
}

impl Inner {
    fn version_of(&self, at: &B256) -> Option<(u64, B256)> {
        if *at == self.block_hash {
            return Some((self.version, self.root));
        }
        self.undo.iter().rev().find(|undo| undo.block_hash == *at).map(|undo| (undo.version, undo.root))
    }

    /// The overlays from `at` down to the base.
    fn path(&self, at: &B256) -> Option<Vec<(B256, Arc<Overlay>)>> {
        let (mut path, mut hash) = (Vec::new(), *at);
        while hash != self.block_hash {
            let overlay = self.overlays.get(&hash)?;
            path.push((hash, overlay.clone()));
            hash = overlay.parent;
        }
        Some(path)
    }

    /// Writes changes into the base; gives each location's old and new value, and the old values by themselves.
    fn fold(&mut self, changes: &Changes) -> (Vec<Update>, Changes) {
        let mut before = Changes::default();
        let mut updates = Vec::with_capacity(changes.accounts.len() + changes.storage.len());
        for (address, after) in &changes.accounts {
            let old = match after {
                Some(account) => self.accounts.insert(*address, *account),
                None => self.accounts.remove(address),
            };
            before.accounts.insert(*address, old);
            updates.push(Update::Account(*address, old, *after));
        }
        for (address, slots) in &changes.storage {
            let stored = self.storage.entry(*address).or_default();
            let old_slots = before.storage.entry(*address).or_default();
            for (slot, after) in slots {
                let old = if after.is_zero() { stored.remove(slot) } else { stored.insert(*slot, *after) };
                let old = old.unwrap_or_default();
                old_slots.insert(*slot, old);
                updates.push(Update::Slot(*address, *slot, old, *after));
            }
            if stored.is_empty() {
                self.storage.remove(address);
            }
        }
        for (hash, code) in &changes.codes {
            self.codes.entry(*hash).or_insert_with(|| code.clone());
        }
        (updates, before)
    }

    fn advance(
        &mut self,
        block_hash: B256,
        height: u64,
        root: B256,
        accumulator: Arc<LtHash>,
        before: Changes,
        history: usize,
    ) {
        let (old_hash, old_root) = (self.block_hash, self.root);
        let before = Arc::new(before);
        self.undo.push_back(Undo { version: self.version, block_hash: old_hash, root: old_root, before });
        while self.undo.len() > history {
            self.undo.pop_front();
        }
        self.version += 1;
        self.block_hash = block_hash;
        self.height = height;
        self.root = root;
        self.accumulator = accumulator;
    }

    /// Keeps only overlays whose ancestry reaches the base.
    fn drop_strangers(&mut self) {
        let kept: Vec<B256> = self.overlays.keys().filter(|hash| self.path(hash).is_some()).copied().collect();
        if kept.len() < self.overlays.len() {
            let old = std::mem::take(&mut self.overlays);
            self.overlays =
                kept.into_iter().filter_map(|hash| old.get_key_value(&hash)).map(|(h, o)| (*h, o.clone())).collect();
        }
    }

    /// The undo records a view of `version` must look through, oldest first.
    fn undone_since(&self, version: u64) -> Result<impl Iterator<Item = &Arc<Changes>>> {
        let missing = (self.version - version) as usize;
        if missing > self.undo.len() {
            return Err(CoreError::MissingState("the state is older than the history kept".into()));
        }
        Ok(self.undo.iter().skip(self.undo.len() - missing).map(|undo| &undo.before))
    }
}

fn collect(slots: &Table<U256, U256>) -> Slots {
    slots.iter().map(|(slot, value)| (*slot, *value)).collect()
}

impl Source for View {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        View::account(self, address)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        View::slot(self, address, slot)
    }

    fn slots(&mut self, address: &Address) -> Result<Slots> {
        View::slots(self, address)
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        View::code(self, hash).ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))
    }
}

impl View {
    pub fn account(&self, address: &Address) -> Result<Option<Account>> {
        if let Some(found) = self.overlays.iter().find_map(|changes| changes.accounts.get(address)) {
            return Ok(*found);
        }
        let inner = self.store.read();
        if let Some(found) = inner.undone_since(self.version)?.find_map(|before| before.accounts.get(address)) {
            return Ok(*found);
        }
        Ok(inner.accounts.get(address).copied())
    }

    /// Tells many accounts. One lock for all, and what lies in the base is brought near for all before any is looked at: so
    /// their waits for memory overlap. `tell` runs under the store's lock and may take no other.
    ///
    /// # Errors
    /// As `account`; some may have been told by then.
    pub fn accounts<'k>(
        &self,
        addresses: impl Iterator<Item = &'k Address>,
        mut tell: impl FnMut(Option<Account>),
    ) -> Result<()> {
        let inner = self.store.read();
        let undone: SmallVec<[&Arc<Changes>; 4]> = inner.undone_since(self.version)?.collect();
        let expected: SmallVec<[(&Address, u64); 32]> =
            addresses.map(|address| (address, inner.accounts.expect(address))).collect();
        for (address, hash) in expected {
            let above = self.overlays.iter().chain(undone.iter().copied());
            let found = above.into_iter().find_map(|changes| changes.accounts.get(address).copied());
            tell(found.unwrap_or_else(|| inner.accounts.get_hashed(address, hash).copied()));
        }
        Ok(())
    }

    /// As `accounts`, for slots.
    ///
    /// # Errors
    /// As `slot`; some may have been told by then.
    pub fn words(&self, slots: &[(Address, U256)], mut tell: impl FnMut(U256)) -> Result<()> {
        let inner = self.store.read();
        let undone: SmallVec<[&Arc<Changes>; 4]> = inner.undone_since(self.version)?.collect();
        let expect = |(address, slot): &(Address, U256)| {
            let stored = inner.storage.get(address)?;
            Some((stored, stored.expect(slot)))
        };
        let expected: SmallVec<[_; 32]> = slots.iter().map(expect).collect();
        for ((address, slot), expected) in slots.iter().zip(expected) {
            let seek = |changes: &Arc<Changes>| changes.storage.get(address).and_then(|slots| slots.get(slot)).copied();
            let mut above = self.overlays.iter().chain(undone.iter().copied());
            let base =
                || expected.and_then(|(stored, hash)| stored.get_hashed(slot, hash)).copied().unwrap_or_default();
            tell(above.find_map(seek).unwrap_or_else(base));
        }
        Ok(())
    }

    pub fn slot(&self, address: &Address, slot: &U256) -> Result<U256> {
        let seek = |changes: &Arc<Changes>| changes.storage.get(address).and_then(|slots| slots.get(slot)).copied();
        if let Some(found) = self.overlays.iter().find_map(seek) {
            return Ok(found);
        }
        let inner = self.store.read();
        if let Some(found) = inner.undone_since(self.version)?.find_map(seek) {
            return Ok(found);
        }
        Ok(inner.storage.get(address).and_then(|slots| slots.get(slot)).copied().unwrap_or_default())
    }

    /// Code by hash: content, so it has no versions.
    pub fn code(&self, hash: &B256) -> Option<Bytecode> {
        let found = self.overlays.iter().find_map(|changes| changes.codes.get(hash)).cloned();
        found.or_else(|| self.store.read().codes.get(hash).cloned())
    }

    /// All non-zero slots of one account; needed only when an account loses its storage at once.
    pub fn slots(&self, address: &Address) -> Result<Slots> {
        let inner = self.store.read();
        let mut slots = inner.storage.get(address).map(collect).unwrap_or_default();
        let undone: Vec<_> = inner.undone_since(self.version)?.collect();
        for changes in undone.into_iter().rev().chain(self.overlays.iter().rev()) {
            slots.extend(changes.storage.get(address).into_iter().flatten().map(|(slot, value)| (*slot, *value)));
        }
        slots.retain(|_, value| !value.is_zero());
        Ok(slots)
    }

    /// The sum of all balances, for audits: reads every account.
    pub fn total_supply(&self) -> Result<U256> {
        let inner = self.store.read();
        let mut touched: Map<Address, Option<Account>> = Map::default();
        let undone: Vec<_> = inner.undone_since(self.version)?.collect();
        for changes in undone.into_iter().rev().chain(self.overlays.iter().rev()) {
            touched.extend(changes.accounts.iter().map(|(address, account)| (*address, *account)));
        }
        let untouched = inner.accounts.iter().filter(|(address, _)| !touched.contains_key(*address));
        let balances = untouched.map(|(_, account)| account).chain(touched.values().flatten());
        balances
            .map(|account| account.balance)
            .try_fold(U256::ZERO, U256::checked_add)
            .ok_or_else(|| CoreError::Internal("the sum of balances exceeds 256 bits".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> Address {
        Address::repeat_byte(number)
    }

    fn hash(number: u64) -> B256 {
        U256::from(number).into()
    }

    fn balance(amount: u64) -> Option<Account> {
        Some(Account { balance: U256::from(amount), ..Account::default() })
    }

    /// Block `number` sets account 1 to its number, and slot 0 of account 2 likewise.
    fn extend(store: &Arc<Store>, parent: u64, number: u64) {
        let mut changes = Changes::default();
        changes.accounts.insert(address(1), balance(number));
        changes.storage.entry(address(2)).or_default().insert(U256::ZERO, U256::from(number));
        let overlay = Overlay {
            parent: hash(parent),
            height: number,
            changes: Arc::new(changes),
            accumulator: Arc::default(),
            root: hash(1000 + number),
        };
        store.adopt(hash(number), overlay).expect("parent is held");
    }

    fn reads(view: &View) -> Result<(u64, u64)> {
        let account = view.account(&address(1))?.unwrap_or_default();
        Ok((account.balance.to(), view.slot(&address(2), &U256::ZERO)?.to()))
    }

    #[test]
    fn a_view_keeps_its_state_while_the_base_moves_past_it() {
        let store = Arc::new(Store::new(3));
        store.set_base(hash(100), 0);
        extend(&store, 100, 101);
        extend(&store, 101, 102);
        let views: Vec<View> = [100, 101, 102].iter().map(|at| store.view(&hash(*at)).expect("held")).collect();
        for number in 101..=103 {
            if number == 103 {
                extend(&store, 102, 103);
            }
            store.finalise(&hash(number)).expect("held");
            assert_eq!(reads(&views[0]), Ok((0, 0)));
            assert_eq!(reads(&views[1]), Ok((101, 101)));
            assert_eq!(reads(&views[2]), Ok((102, 102)));
        }
        assert_eq!(store.view(&hash(101)).and_then(|view| reads(&view)), Ok((101, 101)));
        extend(&store, 103, 104);
        store.finalise(&hash(104)).expect("held");
        // Its base is out of the history by now, but both values lie in overlays of its own.
        assert_eq!(reads(&views[2]), Ok((102, 102)));
        assert!(matches!(reads(&views[0]), Err(CoreError::MissingState(_))));
    }

    #[test]
    fn a_view_of_a_branch_that_lost_still_reads_its_own_values() {
        let store = Arc::new(Store::new(8));
        store.set_base(hash(100), 0);
        extend(&store, 100, 101);
        extend(&store, 100, 102);
        let loser = store.view(&hash(102)).expect("held");
        store.finalise(&hash(101)).expect("held");
        assert_eq!(reads(&loser), Ok((102, 102)));
        assert!(!store.has(&hash(102)));
        assert_eq!(loser.account(&address(9)), Ok(None));
    }

    #[test]
    fn replacing_the_state_ends_older_views_instead_of_changing_them() {
        let store = Arc::new(Store::new(8));
        store.set_base(hash(100), 0);
        let view = store.view(&hash(100)).expect("held");
        let mut changes = Changes::default();
        changes.accounts.insert(address(1), balance(7));
        store.replace(changes, 1);
        assert!(matches!(reads(&view), Err(CoreError::MissingState(_))));
    }

    #[test]
    fn folding_changes_one_by_one_commits_to_what_a_fresh_state_commits_to() {
        let (stepwise, fresh) = (Arc::new(Store::new(8)), Arc::new(Store::new(8)));
        stepwise.set_base(hash(0), 0);
        for number in 1..20_u64 {
            let mut changes = Changes::default();
            let gone = number % 3 == 0;
            let account = address((number % 5) as u8 + 1);
            changes.accounts.insert(account, if gone { None } else { balance(number) });
            let value = if gone { U256::ZERO } else { U256::from(number) };
            changes.storage.entry(account).or_default().insert(U256::from(number % 4), value);
            stepwise.apply(hash(number), number, &changes, 1);
        }
        let root = fresh.replace(stepwise.export(), 1);
        assert_eq!(stepwise.view(&hash(19)).expect("held").root, root);
    }

    #[test]
    fn accounts_are_encoded_by_address_however_they_came() {
        let encode = |accounts: &mut dyn Iterator<Item = Address>| {
            let mut changes = Changes::default();
            changes.accounts.extend(accounts.map(|address| (address, balance(1))));
            changes.encode()
        };
        // Of some the first half is alike, of others it alone differs.
        let mut addresses: Vec<Address> = (0..200_u8).map(|n| Address::with_last_byte(n.wrapping_mul(77))).collect();
        addresses.extend((1..200_u8).map(|n| address(n.wrapping_mul(77))));
        let bytes = encode(&mut addresses.iter().copied());
        assert_eq!(encode(&mut addresses.iter().rev().copied()), bytes);
        let decoded = Changes::decode(&bytes).expect("canonical");
        assert!(decoded.accounts.keys().is_sorted());
        assert_eq!(decoded.accounts.len(), addresses.iter().collect::<std::collections::HashSet<_>>().len());
    }
}
