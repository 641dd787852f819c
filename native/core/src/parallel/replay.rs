//! Validating a block with its access list (EIP-7928): every item finds in the list what those before it left, so all of
//! them run side by side, each once, with no versions and no aborts.
//!
//! A wrong list cannot pass. Say every value that execution in order gives before index i stands in the list, and nothing
//! else does. Then item i reads what it would read in order: it runs as in order, and looks at and leaves the same. The
//! list made of what was really executed thus has at i what execution in order gives, and the lowest index at which the list
//! given has anything else is an index at which the two lists differ. Reads have no index; once all indices are right, all
//! items ran as in order, so what they looked at is right as well. Whatever depends on order beside the state (gas, the
//! outbox, outcomes) is accounted for afterwards, in order.
//!
//! Nonsense in a list may look like a fault of our own state on the way. Only then the block is executed without it, which
//! tells whose fault it is.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use alloy_primitives::{Address, B256, U256};
use rayon::ThreadPool;
use rayon::prelude::*;

use super::execute_in_parallel;
use super::memory::Value;
use super::stats::RunStats;
use crate::access_list::{AccessList, AccessLog, AccountAccess, Change, Changes, Numbered, before, build};
use crate::block::{Block, Ended, last_seq, transact_whole};
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::ledger::{Done, Ledger, deliver};
use crate::state::{Account, BlockState, Finished, Key, Map, Part, Slots, Source, Touched, Update, View};

/// Items that a worker takes at once: few enough to spread a short block, enough to pay for a machine.
const ITEMS_AT_ONCE: usize = 32;

/// A list with its codes ready to run.
#[derive(Debug)]
struct Prepared {
    list: AccessList,
    code_hashes: Map<Address, Changes<B256>>,
    codes: Map<B256, Bytecode>,
}

impl Prepared {
    fn new(list: AccessList) -> Result<Self> {
        let (mut code_hashes, mut codes) = (Map::default(), Map::default());
        for account in list.accounts.iter().filter(|account| !account.code_changes.is_empty()) {
            let mut hashes = Vec::with_capacity(account.code_changes.len());
            for (index, bytes) in &account.code_changes {
                if bytes.is_empty() {
                    hashes.push((*index, Account::default().code_hash));
                    continue;
                }
                let code = Bytecode::new_raw_checked(bytes.clone()).map_err(|reason| {
                    CoreError::InvalidBlock(format!("access list: code of {} refused: {reason}", account.address))
                })?;
                let hash = code.hash_slow();
                hashes.push((*index, hash));
                codes.insert(hash, code);
            }
            code_hashes.insert(account.address, hashes);
        }
        Ok(Self { list, code_hashes, codes })
    }

    /// An account before item `index`; `parent` is as the block found it.
    fn account(&self, address: &Address, parent: Option<Account>, index: u32) -> Option<Account> {
        let Some(access) = self.list.account(address) else { return parent };
        let mut account = parent.unwrap_or_default();
        if let Some(balance) = before(&access.balance_changes, index) {
            account.balance = *balance;
        }
        if let Some(nonce) = before(&access.nonce_changes, index) {
            account.nonce = *nonce;
        }
        if !access.code_changes.is_empty()
            && let Some(hash) = self.code_hashes.get(address).and_then(|hashes| before(hashes, index))
        {
            account.code_hash = *hash;
        }
        Some(account).filter(|account| !account.is_empty())
    }

    fn slot(&self, address: &Address, slot: &U256, index: u32) -> Option<U256> {
        let access = self.list.account(address)?;
        let place = access.storage_changes.binary_search_by_key(slot, |(slot, _)| *slot).ok()?;
        before(&access.storage_changes[place].1, index).copied()
    }

    /// What the block changes, if the list is its.
    fn finish(&self, view: &View) -> Result<Finished> {
        let mut part = Part::with_capacity(2 * self.list.accounts.len());
        for access in self.list.accounts.iter().filter(|access| access.has_changes()) {
            self.push_updates(view, access, &mut part)?;
        }
        Ok(Finished { parts: vec![part], codes: self.codes.clone() })
    }

    fn push_updates(&self, view: &View, access: &AccountAccess, part: &mut Part) -> Result<()> {
        let address = access.address;
        let old = view.account(&address)?;
        let new = self.account(&address, old, u32::MAX);
        if old != new {
            part.push(Update::Account(address, old, new))?;
        }
        for (slot, changes) in &access.storage_changes {
            let old = view.slot(&address, slot)?;
            let new = changes.last().map_or(old, |(_, value)| *value);
            if old != new {
                part.push(Update::Slot(address, *slot, old, new))?;
            }
        }
        Ok(())
    }
}

/// The state as one item finds it, by the list.
#[derive(Debug)]
struct ListReader {
    view: View,
    prepared: Arc<Prepared>,
    index: u32,
}

impl Source for ListReader {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        let parent = self.view.account(address)?;
        Ok(self.prepared.account(address, parent, self.index))
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        match self.prepared.slot(address, slot, self.index) {
            Some(value) => Ok(value),
            None => self.view.slot(address, slot),
        }
    }

    /// See `Reader::slots`.
    fn slots(&mut self, _: &Address) -> Result<Slots> {
        Ok(Slots::default())
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        let held = self.prepared.codes.get(hash).cloned().or_else(|| self.view.code(hash));
        held.ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))
    }
}

type ListMachine = Machine<BlockState<ListReader>>;

/// What one item did.
struct Left {
    index: u32,
    touched: HashSet<Key, foldhash::fast::RandomState>,
    changes: Vec<(Key, Value)>,
}

impl Left {
    fn take(machine: &mut ListMachine, index: u32) -> Self {
        let state = machine.state();
        let touched = state.take_touched().into_iter().collect();
        let (changed, _) = state.take_changes();
        let changes = changed.into_iter().map(|changed| match changed {
            Touched::Account(address, account) => (Key::Account(address), Value::Account(account)),
            Touched::Slot(address, slot, value) => (Key::Slot(address, slot), Value::Slot(value)),
        });
        Self { index, touched, changes: changes.collect() }
    }
}

struct Replay<'a> {
    block: &'a Block<'a>,
    view: View,
    prepared: Arc<Prepared>,
    gas_used: AtomicU64,
}

/// # Errors
/// `InvalidBlock` when a transaction cannot be in the block if the list is right: callers know beforehand that it is the one
/// the header names, so the block is invalid whichever of the two is wrong. Whether the list is the block's is left to
/// `Ended::check`.
pub fn replay<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool, given: &[u8]) -> Result<Ended<'a>> {
    let prepared = Arc::new(Prepared::new(block.decode_access_list(given)?)?);
    let replay = Replay { block, view: view.clone(), prepared, gas_used: AtomicU64::new(0) };
    match super::guard(|| workers.install(|| replay.execute())).and_then(|ended| ended) {
        Err(CoreError::Internal(_)) => execute_in_parallel(block, view, workers),
        ended => ended,
    }
}

impl<'a> Replay<'a> {
    fn machine(&self) -> ListMachine {
        let reader = ListReader { view: self.view.clone(), prepared: self.prepared.clone(), index: 0 };
        self.block.machine(BlockState::watched(reader))
    }

    fn execute(&self) -> Result<Ended<'a>> {
        let (block, last) = (self.block, self.block.last());
        let mut machine = self.machine();
        block.open(&mut machine)?;
        let opened = Left::take(&mut machine, 0);
        let items: Vec<usize> = (1..=last).collect();
        let ran: Vec<Vec<(Result<Done, NotExecuted>, Left)>> =
            items.par_chunks(ITEMS_AT_ONCE).map(|items| self.run(items)).collect::<Result<_>>()?;
        let (mut ledger, mut log) = (Ledger::new(block), AccessLog::default());
        let mut places = Numbered::new(self.view.clone());
        let beneficiary = Key::Account(block.env.beneficiary);
        note(&mut log, &mut places, opened);
        for (result, left) in ran.into_iter().flatten() {
            let (index, done) = self.account(&mut ledger, &mut machine, result, &left)?;
            let tip = if done.is_tip_lost { U256::ZERO } else { done.tip };
            let found = left.changes.iter().find(|(key, _)| *key == beneficiary).map(|(_, value)| *value);
            note(&mut log, &mut places, left);
            if !tip.is_zero() {
                let value = self.paid(found, tip, index)?;
                let change = Change { index, location: places.number(&beneficiary), value };
                log.note(std::iter::empty(), std::iter::once(change));
            }
            let place = (index as usize).checked_sub(block.receipts.len() + 1).map(|place| place as u32);
            ledger.record(done, place, |dst| {
                machine.state().source().index = index;
                last_seq(machine.state().source(), dst)
            })?;
        }
        machine.state().source().index = last as u32 + 1;
        block.close(&mut machine, U256::ZERO, &ledger.outbox)?;
        note(&mut log, &mut places, Left::take(&mut machine, last as u32 + 1));
        places.add_codes(&self.prepared.codes);
        let finished = self.prepared.finish(&self.view)?;
        let listing = Box::new(move || build(&log, &places, block.env.beneficiary, true));
        Ok(Ended { ledger, finished, stats: RunStats::default(), listing })
    }

    /// Some consecutive items.
    fn run(&self, items: &[usize]) -> Result<Vec<(Result<Done, NotExecuted>, Left)>> {
        let (block, mut machine) = (self.block, self.machine());
        let receipts = block.receipts.len();
        let mut ran = Vec::with_capacity(items.len());
        for index in items {
            machine.state().source().index = *index as u32;
            let result = if *index <= receipts {
                deliver(&mut machine, block, &block.receipts[index - 1]).map_err(NotExecuted::from)
            } else {
                block
                    .transaction(index - receipts - 1)
                    .and_then(|transaction| transact_whole(&mut machine, block, transaction, |_| Ok(())))
            };
            let left = Left::take(&mut machine, *index as u32);
            let used = result.as_ref().map_or(0, |done| done.gas_used);
            let sum = self.gas_used.fetch_add(used, Relaxed).saturating_add(used);
            // Or a block full of what does not fit would be work for nothing.
            if *index > receipts && sum > block.env.gas_limit {
                return Err(CoreError::InvalidBlock(format!(
                    "transaction {}, by the access list: gas limit reached",
                    index - receipts - 1
                )));
            }
            let is_failed = result.is_err();
            ran.push((result, left));
            if is_failed {
                break;
            }
        }
        Ok(ran)
    }

    /// What every item is asked in order; its index, and what it did.
    fn account(
        &self,
        ledger: &mut Ledger<'_>,
        machine: &mut ListMachine,
        result: Result<Done, NotExecuted>,
        left: &Left,
    ) -> Result<(u32, Done)> {
        let place = (left.index as usize).checked_sub(self.block.receipts.len() + 1);
        machine.state().take_touched();
        let checked = result.and_then(|done| {
            if let Some(place) = place {
                ledger.check_gas(self.block.transaction(place)?)?;
                ledger.check_outbox(&done)?;
            }
            Ok(done)
        });
        match checked {
            Ok(done) => Ok((left.index, done)),
            Err(NotExecuted::Failed(error)) => Err(error),
            Err(NotExecuted::Invalid(reason)) => {
                let place = place.map_or(left.index as usize, |place| place);
                Err(CoreError::InvalidBlock(format!("transaction {place}, by the access list: {reason}")))
            }
        }
    }

    /// The beneficiary with the tip of item `index`; `found` is what the item itself left.
    fn paid(&self, found: Option<Value>, tip: U256, index: u32) -> Result<Value> {
        let address = self.block.env.beneficiary;
        let account = match found {
            Some(Value::Account(account)) => account,
            _ => self.prepared.account(&address, self.view.account(&address)?, index),
        };
        let mut account = account.unwrap_or_default();
        account.balance = account
            .balance
            .checked_add(tip)
            .ok_or_else(|| CoreError::Internal(format!("balance of {address} exceeds 256 bits")))?;
        Ok(Value::Account(Some(account)))
    }
}

fn note(log: &mut AccessLog, places: &mut Numbered, left: Left) {
    let Left { index, touched, changes } = left;
    let changes: Vec<Change> =
        changes.into_iter().map(|(key, value)| Change { index, location: places.number(&key), value }).collect();
    let touched: Vec<u32> = touched.iter().map(|key| places.number(key)).collect();
    log.note(touched.into_iter(), changes.into_iter());
}
