//! One worker alone: items one after the other on one journal, when running them ahead of their turn does not pay.
//!
//! It starts behind everything that was ever taken, so nothing is in flight, and writes what the items changed into the
//! memory when the stretch ends: as fast as executing in order can be, and nobody else is kept awake meanwhile.

use std::ops::Range;

use super::Run;
use super::attempt::Worker;
use super::committer::Committer;
use super::memory::{Key, Stamp, Value};
use crate::error::{CoreError, Result};
use crate::evm::{NotExecuted, Stepped};
use crate::gateway::GATEWAY;
use crate::ledger::Done;

/// What became of an item.
enum Step {
    /// With whether the journal has to be written before the next.
    Done(Done, bool),
    Refused(NotExecuted),
    /// Its messages find no room: it was run and has to be undone.
    TooMuch(NotExecuted),
}

impl<'a> Committer<'a> {
    /// Commits the items of a stretch, all of them transactions that nobody took yet.
    pub fn commit_alone(&mut self, run: &Run<'a>, worker: &mut Worker<'a>, items: Range<usize>) -> Result<()> {
        // Included items whose changes only the journal has.
        let mut unwritten = Vec::with_capacity(items.len());
        let last = items.end - 1;
        for index in items {
            // revm asks whether an authority was touched, not whether it exists: on a journal of its own that is the same.
            if self.sets_code(index) {
                self.end_stretch(run, worker, index - 1)?;
                unwritten.clear();
            }
            match self.step(worker, index, false)? {
                Step::Done(done, must_end) => {
                    if must_end {
                        self.end_stretch(run, worker, index)?;
                        unwritten.clear();
                    } else {
                        unwritten.push(index);
                    }
                    self.record(run, index, done, Some(self.place(index) as u32))?;
                }
                Step::Refused(refusal) => {
                    if worker.machine.state().saw_tips {
                        self.end_stretch(run, worker, index)?;
                        unwritten.clear();
                    }
                    self.refuse(index, refusal)?;
                }
                Step::TooMuch(refusal) => {
                    worker.machine.drop_steps();
                    for again in unwritten.drain(..) {
                        let Step::Done(..) = self.step(worker, again, true)? else {
                            return Err(CoreError::Internal(format!(
                                "item {again} ended otherwise when it was repeated"
                            )));
                        };
                    }
                    self.end_stretch(run, worker, index)?;
                    self.refuse(index, refusal)?;
                }
            }
            run.crew.schedule.commit(index);
            self.count_alone();
        }
        self.end_stretch(run, worker, last)
    }

    fn sets_code(&self, index: usize) -> bool {
        self.block().transaction(self.place(index)).is_ok_and(|transaction| transaction.tx_type == 4)
    }

    /// Runs an item on the journal; a repeated one is in the accounts already, which have room for it.
    fn step(&mut self, worker: &mut Worker<'a>, index: usize, is_repeated: bool) -> Result<Step> {
        let block = self.block();
        let transaction = match block.transaction(self.place(index)) {
            Ok(transaction) => transaction,
            Err(refusal) => return Ok(Step::Refused(refusal)),
        };
        if !is_repeated && let Err(refusal) = self.check_gas(transaction) {
            return Ok(Step::Refused(refusal));
        }
        let tips = self.tips();
        worker.machine.state().reset_alone(index as u32, tips);
        if let Some(transfer) = block.plan(transaction)
            && worker.machine.step_transfer(&transfer)?
        {
            let must_end = worker.machine.state().saw_tips;
            return Ok(Step::Done(Done::of_transfer(transaction, block.env.base_fee), must_end));
        }
        let (mut executed, has_destroyed) = match worker.machine.step(transaction) {
            Ok(stepped) => stepped,
            Err(NotExecuted::Failed(error)) => return Err(error),
            Err(refusal) => return Ok(Step::Refused(refusal)),
        };
        let is_tip_lost = has_destroyed && worker.machine.has_destroyed(&block.env.beneficiary);
        let done = match Done::of_executed(block, transaction, &mut executed, is_tip_lost) {
            Ok(done) => done,
            Err(refusal) => return Ok(Step::TooMuch(refusal)),
        };
        if !done.messages.is_empty() {
            if !is_repeated && let Err(refusal) = self.check_outbox(&done) {
                return Ok(Step::TooMuch(refusal));
            }
            worker.machine.debit_step(&GATEWAY, done.escrow()?)?;
        }
        // Fees are paid outside the EVM: the journal must not outlive an item that saw the account they go to.
        let must_end = has_destroyed || transaction.tx_type == 4 || worker.machine.state().saw_tips;
        Ok(Step::Done(done, must_end))
    }

    /// Writes what the journal holds as of item `index`.
    fn end_stretch(&mut self, run: &Run<'a>, worker: &mut Worker<'a>, index: usize) -> Result<()> {
        let stamp = Stamp { index: index as u32, incarnation: 0 };
        let saw_tips = worker.machine.state().saw_tips;
        let memory = &run.memory;
        let mut wrote_beneficiary = false;
        let mut codes = Vec::new();
        worker.machine.end_steps(&mut |stepped| {
            match stepped {
                Stepped::Account(address, account) => {
                    let location = memory.locate(&Key::Account(*address))?;
                    let (account, code) = account.unzip();
                    let account = account.filter(|account| !account.is_empty());
                    let code = code.flatten();
                    if code.is_none() && location != self.beneficiary() {
                        memory.set_blindly(location, stamp, Value::Account(account));
                        return Ok(());
                    }
                    // Even as it was before: what is gone with its fees and never was in the memory looks the same.
                    wrote_beneficiary |= location == self.beneficiary();
                    let Some(before) = memory.set(location, stamp, Value::Account(account))? else { return Ok(()) };
                    let hash = account.unwrap_or_default().code_hash;
                    let is_new = !matches!(before, Value::Account(Some(before)) if before.code_hash == hash);
                    if let Some(code) = code.filter(|_| is_new) {
                        memory.add_code(hash, code.clone());
                        codes.push((hash, code));
                    }
                }
                Stepped::Slot(address, slot, value) => {
                    memory.set_blindly(memory.locate(&Key::Slot(*address, *slot))?, stamp, Value::Slot(value));
                }
            }
            Ok::<(), CoreError>(())
        })?;
        self.take_over(codes, wrote_beneficiary && saw_tips);
        Ok(())
    }
}
