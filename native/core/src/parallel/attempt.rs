//! Running one item once: by the fast path if it is a plain transfer, else in the EVM; and publishing what it wrote.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};

use super::crew::Outcome;
use super::lane::Lane;
use super::memory::{Delta, Key, Memory, Stamp, Value, Written};
use super::reader::{Reader, Reads, Stop};
use super::stats::begin_sample;
use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::gateway::GATEWAY;
use crate::ledger::{Done, deliver, transact};
use crate::state::{Account, BlockState, Sink, Source, Touched};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// What an item's last run left, for the committer.
#[derive(Debug, Default)]
pub struct Work {
    pub reads: Reads,
    /// Numbers of locations; of a transfer's two the recipient's first, the only one whose change may not fit.
    pub writes: Vec<u32>,
    /// Every location that it asked for.
    pub touched: Vec<u32>,
    pub codes: Vec<(B256, Bytecode)>,
    pub result: Option<Result<Done, NotExecuted>>,
    /// It ran when everything before it was committed: nothing it saw can have changed.
    pub is_final: bool,
    /// It saw the beneficiary's account with all fees, so if it wrote it, they are in it.
    pub saw_tips: bool,
    /// How long it took, if it was sampled.
    pub took: Duration,
    /// The last item before it that left what it read.
    pub nearest: u32,
}

impl Work {
    /// Makes room for the next item, keeping what is allocated.
    pub fn reset(&mut self) {
        self.reads.clear();
        self.writes.clear();
        self.touched.clear();
        self.codes.clear();
        self.is_final = false;
    }
}

pub struct Worker<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    pub id: usize,
    pub machine: Machine<'a, Reader>,
    /// For stretches that it runs alone.
    lane: Option<Lane<'a>>,
    /// Deliveries take several steps, which need a state of their own.
    stepwise: Option<Machine<'a, BlockState<Reader>>>,
    writes: Vec<(u32, Written)>,
    codes: Vec<(B256, Bytecode)>,
    reads: Reads,
    touched: Vec<u32>,
    saw_tips: bool,
    nearest: u32,
    result: Option<Result<Done, NotExecuted>>,
    took: Duration,
}

impl<'a> Worker<'a> {
    pub fn new(block: &'a Block<'a>, memory: &Arc<Memory>, id: usize) -> Self {
        Self {
            block,
            memory: memory.clone(),
            id,
            machine: block.machine(Reader::new(memory.clone(), block.env.beneficiary)),
            lane: None,
            stepwise: None,
            writes: Vec::new(),
            codes: Vec::new(),
            reads: Reads::default(),
            touched: Vec::new(),
            saw_tips: false,
            nearest: 0,
            result: None,
            took: Duration::ZERO,
        }
    }

    /// Runs item `index`; `tips` are the fees not yet in the memory when everything before it is committed. So much gas is
    /// used for certain: a transaction that fits no more is refused unexecuted, or a block full of them would be work for
    /// nothing.
    pub fn attempt(&mut self, index: usize, tips: Option<U256>, gas_used: u64, may_be_fast: bool) -> Result<Outcome> {
        self.writes.clear();
        self.codes.clear();
        let (receipts, began) = (self.block.receipts.len(), begin_sample(index));
        let stop = if index <= receipts {
            self.run_delivery(index, tips)
        } else {
            self.run_transaction(index, tips, gas_used, may_be_fast)
        };
        self.took = began.map_or(Duration::ZERO, |began| began.elapsed());
        match stop {
            Some(Stop::Blocked(writer)) => Ok(Outcome::Blocked(writer as usize)),
            Some(Stop::NotYet) => Ok(Outcome::NotYet),
            None => Ok(Outcome::Ran),
        }
    }

    fn run_transaction(&mut self, index: usize, tips: Option<U256>, gas_used: u64, may_be_fast: bool) -> Option<Stop> {
        let block = self.block;
        let transaction = block.transaction(index - block.receipts.len() - 1).and_then(|transaction| {
            block.check_gas(transaction, gas_used)?;
            Ok(transaction)
        });
        let reader = self.machine.state();
        reader.reset(index as u32, tips);
        let result = match transaction {
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
        std::mem::swap(&mut self.touched, &mut reader.touched);
        self.saw_tips = reader.saw_tips;
        self.nearest = reader.nearest;
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
        if !transfer.value.is_zero() {
            self.writes.push((recipient, Written::Delta(Delta { credit: transfer.value, ..Delta::default() })));
        }
        // No overflow: the predicate's balance covers the sum.
        let paid = Delta { debit: transfer.fee + transfer.value, ..paid };
        self.writes.push((sender, Written::Delta(paid)));
        Ok(true)
    }

    fn transact(&mut self, transaction: &'a Transaction) -> Result<Done, NotExecuted> {
        let (done, executed) = transact(&mut self.machine, self.block, transaction)?;
        let mut collector =
            Collector { reader: self.machine.state(), writes: &mut self.writes, codes: &mut self.codes };
        let empty = executed.apply(&mut collector)?;
        self.machine.recycle(empty);
        if !done.messages.is_empty() {
            let escrow = done.escrow()?;
            self.take_escrow(escrow)?;
        }
        Ok(done)
    }

    /// The escrow leaves the gateway in the item that brought it: what is left is usually what was there before, and
    /// then there is no write for others to depend on.
    fn take_escrow(&mut self, escrow: U256) -> Result<()> {
        let location = self.memory.locate(&Key::Account(GATEWAY))?;
        // Should another item have written it since this one read it first, then that read does not hold any more either.
        let before = self.machine.state().account(&GATEWAY)?;
        let place = self.writes.iter().position(|(written, _)| *written == location);
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
            self.writes.push((location, Written::Value(Value::Account(after))));
        }
        Ok(())
    }

    fn run_delivery(&mut self, index: usize, tips: Option<U256>) -> Option<Stop> {
        let block = self.block;
        let machine = self.stepwise();
        machine.state().take_changes();
        machine.state().take_touched();
        machine.state().source().reset(index as u32, tips);
        let result = deliver(machine, block, &block.receipts[index - 1]);
        let stop = machine.state().source().stop.take();
        let collected = self.collect_steps();
        self.result = Some(result.and_then(|done| collected.map(|()| done)).map_err(NotExecuted::from));
        stop
    }

    pub fn lane(&mut self) -> &mut Lane<'a> {
        self.lane.get_or_insert_with(|| Lane::new(self.block, &self.memory))
    }

    /// A machine over a state that gathers the changes of several steps.
    pub fn stepwise(&mut self) -> &mut Machine<'a, BlockState<Reader>> {
        self.stepwise.get_or_insert_with(|| {
            let reader = Reader::new(self.memory.clone(), self.block.env.beneficiary);
            self.block.machine(BlockState::watched(reader))
        })
    }

    pub fn collect_steps(&mut self) -> Result<()> {
        let state = self.stepwise().state();
        let asked = state.take_touched();
        let (touched, codes) = state.take_changes();
        let reader = state.source();
        let (saw_tips, nearest) = (reader.saw_tips, reader.nearest);
        let reads = std::mem::take(&mut reader.reads);
        (self.reads, self.saw_tips, self.nearest) = (reads, saw_tips, nearest);
        self.touched = asked.iter().map(|key| self.memory.locate(key)).collect::<Result<_>>()?;
        self.writes.clear();
        for touched in touched {
            let (key, value) = match touched {
                Touched::Account(address, account) => (Key::Account(address), Value::Account(account)),
                Touched::Slot(address, slot, value) => (Key::Slot(address, slot), Value::Slot(value)),
            };
            self.writes.push((self.memory.locate(&key)?, Written::Value(value)));
        }
        self.codes = codes.into_iter().collect();
        Ok(())
    }

    /// Makes the last run's writes visible to later items and leaves the rest for the committer.
    pub fn publish(&mut self, work: &mut Work, index: usize, incarnation: u32) {
        for (hash, code) in &self.codes {
            self.memory.add_code(*hash, code.clone());
        }
        let index = index as u32;
        for (location, written) in &self.writes {
            self.memory.write(*location, Stamp { index, incarnation }, *written);
        }
        if !work.writes.is_empty() {
            let mut written: Vec<u32> = self.writes.iter().map(|(location, _)| *location).collect();
            written.sort_unstable();
            for location in work.writes.drain(..).filter(|location| written.binary_search(location).is_err()) {
                self.memory.retract(location, index);
            }
        }
        work.writes.extend(self.writes.drain(..).map(|(location, _)| location));
        std::mem::swap(&mut work.reads, &mut self.reads);
        std::mem::swap(&mut work.touched, &mut self.touched);
        std::mem::swap(&mut work.codes, &mut self.codes);
        work.result = self.result.take();
        work.saw_tips = self.saw_tips;
        work.took = self.took;
        work.nearest = self.nearest;
        work.is_final = false;
    }
}

/// Turns the changes of one execution into writes.
struct Collector<'a> {
    reader: &'a Reader,
    writes: &'a mut Vec<(u32, Written)>,
    codes: &'a mut Vec<(B256, Bytecode)>,
}

impl Sink for Collector<'_> {
    fn set_account(&mut self, address: &Address, account: Option<Account>) -> Result<()> {
        let value = Value::Account(account.filter(|account| !account.is_empty()));
        self.writes.push((self.reader.locate(&Key::Account(*address))?, Written::Value(value)));
        Ok(())
    }

    fn set_slot(&mut self, address: &Address, slot: &U256, value: U256) -> Result<()> {
        self.writes.push((self.reader.locate(&Key::Slot(*address, *slot))?, Written::Value(Value::Slot(value))));
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
