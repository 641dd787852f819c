//! Running one item once: by the fast path if it is a plain transfer, else in the EVM; and publishing what it wrote.

use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::{Address, B256, U256};

use super::memory::{Delta, Key, Location, Memory, Value, Written};
use super::reader::{Read, Reader, Seen, Stop};
use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::gateway::GATEWAY;
use crate::ledger::{Done, deliver, transact};
use crate::state::{Account, BlockState, Sink, Touched};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// What an item's last run left, for the committer.
#[derive(Debug, Default)]
pub struct Work {
    pub reads: Vec<Read>,
    pub writes: Vec<Arc<Location>>,
    pub codes: Vec<(B256, Bytecode)>,
    pub result: Option<Result<Done, NotExecuted>>,
    /// It ran when everything before it was committed: nothing it saw can have changed.
    pub is_final: bool,
    /// The worker that ran it.
    pub worker: usize,
}

pub enum Outcome {
    /// To its end; the worker holds the result until it is published.
    Ran,
    Blocked(usize),
    NotYet,
}

pub struct Worker<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    pub id: usize,
    machine: Machine<Reader>,
    /// Deliveries take several steps, which need a state of their own.
    stepwise: Option<Machine<BlockState<Reader>>>,
    writes: Vec<(Arc<Location>, Written)>,
    codes: Vec<(B256, Bytecode)>,
    reads: Vec<Read>,
    result: Option<Result<Done, NotExecuted>>,
}

impl<'a> Worker<'a> {
    pub fn new(block: &'a Block<'a>, memory: &Arc<Memory>, id: usize) -> Self {
        Self {
            block,
            memory: memory.clone(),
            id,
            machine: block.machine(Reader::new(memory.clone(), block.env.beneficiary)),
            stepwise: None,
            writes: Vec::new(),
            codes: Vec::new(),
            reads: Vec::new(),
            result: None,
        }
    }

    /// Runs item `index`; `tips` are the fees not yet in the memory when everything before it is committed.
    pub fn attempt(&mut self, index: usize, tips: Option<U256>, may_be_fast: bool) -> Result<Outcome> {
        self.writes.clear();
        self.codes.clear();
        let receipts = self.block.receipts.len();
        let stop = if index <= receipts {
            self.run_delivery(index, tips)
        } else {
            self.run_transaction(index, index - receipts - 1, tips, may_be_fast)
        };
        match stop {
            Some(Stop::Blocked(writer)) => Ok(Outcome::Blocked(writer as usize)),
            Some(Stop::NotYet) => Ok(Outcome::NotYet),
            None => Ok(Outcome::Ran),
        }
    }

    fn run_transaction(&mut self, index: usize, place: usize, tips: Option<U256>, may_be_fast: bool) -> Option<Stop> {
        let block = self.block;
        let reader = self.machine.state();
        reader.reset(index as u32, tips);
        let result = match block.transaction(place) {
            Err(refusal) => Err(refusal),
            Ok(transaction) => {
                let plan = block.plan(transaction).filter(|_| may_be_fast);
                // The beneficiary's balance is not in the memory as others' are.
                let plan = plan.filter(|transfer| transfer.sender != block.env.beneficiary);
                match plan.map_or(Ok(false), |transfer| self.transfer(&transfer)) {
                    Ok(true) => Ok(Done::of_transfer(transaction, block.env.base_fee)),
                    Ok(false) => {
                        self.writes.clear();
                        self.machine.state().reset(index as u32, tips);
                        self.transact(transaction)
                    }
                    Err(error) => Err(error.into()),
                }
            }
        };
        let reader = self.machine.state();
        std::mem::swap(&mut self.reads, &mut reader.reads);
        let stop = reader.stop.take();
        self.result = Some(result);
        stop
    }

    fn transfer(&mut self, transfer: &Transfer) -> Result<bool> {
        let reader = self.machine.state();
        let Some(sender) = reader.sender(&transfer.sender, transfer.predicate)? else { return Ok(false) };
        let paid = Delta { nonces: 1, credit: U256::ZERO, debit: transfer.fee };
        if transfer.to == transfer.sender {
            self.writes.push((sender, Written::Delta(paid)));
            return Ok(true);
        }
        let Some(recipient) = reader.recipient(&transfer.to)? else { return Ok(false) };
        // No overflow: the predicate's balance covers the sum.
        let paid = Delta { debit: transfer.fee + transfer.value, ..paid };
        self.writes.push((sender, Written::Delta(paid)));
        if !transfer.value.is_zero() {
            self.writes.push((recipient, Written::Delta(Delta { credit: transfer.value, ..Delta::default() })));
        }
        Ok(true)
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<Done, NotExecuted> {
        let (done, executed) = transact(&mut self.machine, self.block, transaction)?;
        let mut collector = Collector { memory: &self.memory, writes: &mut self.writes, codes: &mut self.codes };
        executed.apply(&mut collector)?;
        if !done.messages.is_empty() {
            let escrow = done.messages.iter().try_fold(U256::ZERO, |sum, message| {
                let escrow = message.escrow()?;
                sum.checked_add(escrow).ok_or_else(|| CoreError::Internal("escrow exceeds 256 bits".into()))
            })?;
            self.take_escrow(escrow)?;
        }
        Ok(done)
    }

    /// The escrow leaves the gateway in the item that brought it: what is left is usually what was there before, and
    /// then there is no write for others to depend on.
    fn take_escrow(&mut self, escrow: U256) -> Result<()> {
        let key = Key::Account(GATEWAY);
        let read = self.machine.state().reads.iter().find(|read| read.location.key == key);
        let before = match read.map(|read| read.seen) {
            Some(Seen::Value(Value::Account(account))) => account,
            _ => return Err(CoreError::Internal("the gateway sent without being called".into())),
        };
        let place = self.writes.iter().position(|(location, _)| location.key == key);
        let mut account = match place.map(|place| self.writes[place].1) {
            Some(Written::Value(Value::Account(account))) => account,
            _ => before,
        }
        .unwrap_or_default();
        account.balance = account
            .balance
            .checked_sub(escrow)
            .ok_or_else(|| CoreError::Internal(format!("balance of {GATEWAY} does not cover {escrow}")))?;
        let after = Some(account).filter(|account| !account.is_empty());
        if let Some(place) = place {
            self.writes.swap_remove(place);
        }
        if after != before {
            self.writes.push((self.memory.locate(&key), Written::Value(Value::Account(after))));
        }
        Ok(())
    }

    fn run_delivery(&mut self, index: usize, tips: Option<U256>) -> Option<Stop> {
        let block = self.block;
        let machine = self.stepwise();
        machine.state().take_changes();
        machine.state().source().reset(index as u32, tips);
        let result = deliver(machine, block, &block.receipts[index - 1]);
        let stop = machine.state().source().stop.take();
        self.collect_steps();
        self.result = Some(result.map_err(NotExecuted::from));
        stop
    }

    /// A machine over a state that gathers the changes of several steps.
    pub fn stepwise(&mut self) -> &mut Machine<BlockState<Reader>> {
        self.stepwise.get_or_insert_with(|| {
            let reader = Reader::new(self.memory.clone(), self.block.env.beneficiary);
            self.block.machine(BlockState::new(reader))
        })
    }

    pub fn collect_steps(&mut self) {
        let state = self.stepwise().state();
        let (touched, codes) = state.take_changes();
        self.reads = std::mem::take(&mut self.stepwise().state().source().reads);
        self.writes.clear();
        self.writes.extend(touched.into_iter().map(|touched| match touched {
            Touched::Account(address, account) => {
                (self.memory.locate(&Key::Account(address)), Written::Value(Value::Account(account)))
            }
            Touched::Slot(address, slot, value) => {
                (self.memory.locate(&Key::Slot(address, slot)), Written::Value(Value::Slot(value)))
            }
        }));
        self.codes = codes.into_iter().collect();
    }

    /// Makes the last run's writes visible to later items and leaves the rest for the committer.
    pub fn publish(&mut self, work: &Mutex<Work>, index: usize, incarnation: u32) {
        for (hash, code) in &self.codes {
            self.memory.add_code(*hash, code.clone());
        }
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        for (location, written) in &self.writes {
            self.memory.write(location, index as u32, incarnation, *written);
        }
        for location in work.writes.drain(..) {
            self.memory.retract(&location, index as u32, Some(incarnation));
        }
        work.writes.extend(self.writes.drain(..).map(|(location, _)| location));
        std::mem::swap(&mut work.reads, &mut self.reads);
        std::mem::swap(&mut work.codes, &mut self.codes);
        work.result = self.result.take();
        work.worker = self.id;
    }
}

/// Turns the changes of one execution into writes.
struct Collector<'a> {
    memory: &'a Memory,
    writes: &'a mut Vec<(Arc<Location>, Written)>,
    codes: &'a mut Vec<(B256, Bytecode)>,
}

impl Sink for Collector<'_> {
    fn set_account(&mut self, address: &Address, account: Option<Account>) -> Result<()> {
        let value = Value::Account(account.filter(|account| !account.is_empty()));
        self.writes.push((self.memory.locate(&Key::Account(*address)), Written::Value(value)));
        Ok(())
    }

    fn set_slot(&mut self, address: &Address, slot: &U256, value: U256) -> Result<()> {
        self.writes.push((self.memory.locate(&Key::Slot(*address, *slot)), Written::Value(Value::Slot(value))));
        Ok(())
    }

    /// See `Reader::slots`: there is nothing to wipe.
    fn wipe_storage(&mut self, _: &Address) -> Result<()> {
        Ok(())
    }

    fn add_code(&mut self, hash: B256, code: Bytecode) {
        self.codes.push((hash, code));
    }
}
