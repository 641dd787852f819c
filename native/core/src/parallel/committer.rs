//! Committing in order: validating what an item saw, running it again at its turn if it saw something else, and
//! accounting for it; and deciding whether speculation pays.

use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use alloy_primitives::{B256, U256};
use smallvec::SmallVec;

use super::attempt::{Work, Worker};
use super::crew::{Job, Outcome, Turn};
use super::memory::{First, Key, Memory};
use super::speculation::Speculation;
use super::stats::RunStats;
use super::status::State;
use super::{Run, lock, perturb, starts_alone};
use crate::access_list::{AccessLog, Change};
use crate::block::{Block, last_seq};
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::ledger::{Done, Ledger};
use crate::state::{BlockState, Map};
use crate::transaction::Transaction;

/// Commits between two looks at what speculation gained.
const SAMPLE: u32 = 32;
/// More aborts than this in a sample, and the items in flight are mostly wasted.
const MAX_ABORTS: u32 = SAMPLE / 4;
/// More than this, and neighbours are better taken one by one than in runs.
const FEW_ABORTS: u32 = SAMPLE / 16;
/// More than this, and the items are one chain: no number of workers makes it shorter.
const MAX_DEPENDENT: u32 = SAMPLE - SAMPLE / 4;
/// How many items run on one worker before speculation is tried again; four times as many each time it fails.
const FIRST_SOLO: usize = 512;
const LONGEST_SOLO: usize = 8192;
/// Items after an aborted one that are validated at once instead of at their turn.
const LOOK_AHEAD: usize = 8;

pub struct Committer<'a> {
    block: &'a Block<'a>,
    ledger: Ledger<'a>,
    codes: Map<B256, Bytecode>,
    firsts: Vec<First>,
    log: AccessLog,
    /// Where the beneficiary's account lies.
    beneficiary: u32,
    /// Fees earned by the beneficiary that are not in the memory yet.
    tips: U256,
    stats: RunStats,
    sample: Sample,
    solo_length: usize,
    solo_end: usize,
}

#[derive(Default)]
struct Sample {
    commits: u32,
    aborts: u32,
    /// Items that needed what one just before them left: closer than twice the number of workers.
    dependent: u32,
}

impl<'a> Committer<'a> {
    /// # Errors
    /// Those of reading the state.
    pub fn new(block: &'a Block<'a>, memory: &Memory) -> Result<Self> {
        Ok(Self {
            block,
            beneficiary: memory.locate(&Key::Account(block.env.beneficiary))?,
            ledger: Ledger::new(block),
            codes: Map::default(),
            firsts: Vec::new(),
            log: AccessLog::default(),
            tips: U256::ZERO,
            stats: RunStats { workers: block.chain.threads as u64, ..RunStats::default() },
            sample: Sample::default(),
            solo_length: FIRST_SOLO,
            solo_end: if starts_alone() { usize::MAX / 2 } else { 0 },
        })
    }

    /// Runs what belongs to no item (the protocol's own calls) as item `index`, committed at once.
    pub fn write_outside(
        &mut self,
        memory: &Memory,
        worker: &mut Worker<'a>,
        index: usize,
        step: impl FnOnce(&mut Machine<'a, BlockState<super::reader::Reader>>) -> Result<()>,
    ) -> Result<()> {
        let machine = worker.stepwise();
        machine.state().source().reset(index as u32, Some(self.tips));
        step(machine)?;
        worker.collect_steps()?;
        let mut work = Work::default();
        worker.publish(&mut work, index, 0);
        if self.settle(memory, &mut work, index)? {
            Ok(())
        } else {
            Err(CoreError::Internal("the protocol's own calls do not fit".into()))
        }
    }

    pub fn close(&mut self, memory: &Memory, worker: &mut Worker<'a>, index: usize) -> Result<()> {
        let (block, tips) = (self.block, std::mem::take(&mut self.tips));
        let outbox = std::mem::take(&mut self.ledger.outbox);
        self.write_outside(memory, worker, index, |machine| block.close(machine, tips, &outbox))?;
        self.log.owe(index as u32, U256::ZERO);
        self.ledger.outbox = outbox;
        Ok(())
    }

    pub fn log(&mut self) -> &mut AccessLog {
        &mut self.log
    }

    pub fn outbox_bytes(&self) -> u64 {
        self.ledger.outbox.bytes
    }

    pub fn gas_used(&self) -> u64 {
        self.ledger.gas_used
    }

    pub fn take_firsts(&mut self) -> Vec<First> {
        std::mem::take(&mut self.firsts)
    }

    /// Where something was first committed, by one worker alone.
    pub fn firsts(&mut self) -> &mut Vec<First> {
        &mut self.firsts
    }

    pub fn into_parts(mut self, memory: &Memory) -> (Ledger<'a>, Map<B256, Bytecode>, AccessLog, RunStats) {
        if self.stats.aborts > 0 {
            self.stats.hottest = memory.hottest(8);
        }
        (self.ledger, self.codes, self.log, self.stats)
    }

    /// Commits item `index`, the lowest that is not; false when someone else is about to run it.
    pub fn commit(&mut self, job: &Speculation<'_, 'a>, worker: &mut Worker<'a>, index: usize) -> Result<bool> {
        perturb();
        let place = index.checked_sub(self.block.receipts.len() + 1);
        let mut work = lock(job.work(index));
        match job.crew.take_turn(index, worker.id) {
            Turn::Done => {}
            Turn::NotYet => return Ok(false),
            Turn::Run(incarnation) => {
                self.run_at_turn(job, worker, &mut work, index, incarnation, true)?;
                self.stats.at_turn += 1;
            }
        }
        if let Some(place) = place
            && let Ok(transaction) = self.block.transaction(place)
            && let Err(refusal) = self.ledger.check_gas(transaction)
        {
            return self.leave_out(job, &mut work, index, place, refusal);
        }
        self.validate(job, worker, &mut work, index)?;
        if let (Some(place), Some(Ok(done))) = (place, &work.result)
            && let Err(refusal) = self.ledger.check_outbox(done)
        {
            return self.leave_out(job, &mut work, index, place, refusal);
        }
        if !self.settle(&job.run.memory, &mut work, index)? {
            retract(&job.run.memory, &mut work, index);
            let incarnation = job.crew.schedule.abort(index, true, worker.id);
            self.run_at_turn(job, worker, &mut work, index, incarnation, false)?;
            if !self.settle(&job.run.memory, &mut work, index)? {
                return Err(CoreError::Internal(format!("what item {index} did at its turn does not fit")));
            }
        }
        self.stats.sampled += work.took;
        let nearest = job.previous(index).max(work.nearest as usize);
        self.sample.dependent += u32::from(nearest > 0 && index - nearest < 2 * self.block.chain.threads);
        let result = work.result.take().ok_or_else(|| CoreError::Internal(format!("item {index} left no result")))?;
        drop(work);
        let place = place.map(|place| place as u32);
        match (result, place) {
            (Ok(done), place) => self.record(job.run, index, done, place)?,
            (Err(refusal), Some(place)) => self.ledger.refuse(place, refusal)?,
            (Err(NotExecuted::Failed(error)), None) => return Err(error),
            (Err(NotExecuted::Invalid(reason)), None) => return Err(CoreError::Internal(reason)),
        }
        job.crew.schedule.commit(index);
        Ok(true)
    }

    /// Commits an item that leaves nothing behind.
    fn leave_out(
        &mut self,
        job: &Speculation<'_, 'a>,
        work: &mut Work,
        index: usize,
        place: usize,
        refusal: NotExecuted,
    ) -> Result<bool> {
        retract(&job.run.memory, work, index);
        work.reset();
        self.ledger.refuse(place as u32, refusal)?;
        job.crew.schedule.commit(index);
        Ok(true)
    }

    pub fn block(&self) -> &'a Block<'a> {
        self.block
    }

    pub fn beneficiary(&self) -> u32 {
        self.beneficiary
    }

    pub fn tips(&self) -> U256 {
        self.tips
    }

    /// A transaction's place in the batch.
    pub fn place(&self, index: usize) -> usize {
        index - self.block.receipts.len() - 1
    }

    pub fn check_gas(&self, transaction: &Transaction) -> Result<(), NotExecuted> {
        self.ledger.check_gas(transaction)
    }

    pub fn check_outbox(&self, done: &Done) -> Result<(), NotExecuted> {
        self.ledger.check_outbox(done)
    }

    pub fn refuse(&mut self, index: usize, refusal: NotExecuted) -> Result<()> {
        self.ledger.refuse(self.place(index) as u32, refusal)
    }

    pub fn count_alone(&mut self) {
        self.stats.incarnations += 1;
        self.stats.at_turn += 1;
    }

    pub fn count_solo(&mut self) {
        self.stats.solos += 1;
    }

    pub fn add_alone(&mut self, took: Duration) {
        self.stats.alone += took;
    }

    pub fn add_code(&mut self, hash: B256, code: Bytecode) {
        self.codes.entry(hash).or_insert(code);
    }

    /// The fees are in the memory now: the beneficiary's account was written with them.
    pub fn take_tips(&mut self) {
        self.tips = U256::ZERO;
    }

    /// Counts what a window of lanes did: how many items ran, and how many of them for nothing.
    pub fn count_window(&mut self, ran: usize, wasted: usize, took: Duration) {
        self.stats.incarnations += ran as u64;
        self.stats.aborts += wasted as u64;
        self.stats.alone += took;
    }

    /// How far one worker goes alone from `next` on, once everything that was taken is committed.
    pub fn stretch(&self, job: &Speculation<'_, 'a>, next: usize) -> Option<Range<usize>> {
        let stretch = next..self.solo_end.min(job.crew.last) + 1;
        (next > self.block.receipts.len() && job.crew.reserve_alone(stretch.clone())).then_some(stretch)
    }

    pub fn record(&mut self, run: &Run<'a>, index: usize, done: Done, place: Option<u32>) -> Result<()> {
        if !done.is_tip_lost {
            self.tips = self
                .tips
                .checked_add(done.tip)
                .ok_or_else(|| CoreError::Internal("the beneficiary's balance exceeds 256 bits".into()))?;
        }
        self.log.owe(index as u32, self.tips);
        // Only a first message on a link asks the state for its sequence.
        self.ledger.record(done, place, |dst| {
            let mut reader = super::reader::Reader::new(run.memory.clone(), run.block.env.beneficiary);
            reader.reset(index as u32, Some(U256::ZERO));
            last_seq(&mut reader, dst)
        })
    }

    /// Makes sure that item `index` saw what is committed; runs it again if not.
    fn validate(
        &mut self,
        job: &Speculation<'_, 'a>,
        worker: &mut Worker<'a>,
        work: &mut Work,
        index: usize,
    ) -> Result<()> {
        self.stats.incarnations += 1;
        if work.is_final {
            return Ok(());
        }
        let is_failure = matches!(work.result, Some(Err(NotExecuted::Failed(_))) | None);
        if !is_failure && work.reads.still_hold(&job.run.memory, index as u32)? {
            return Ok(());
        }
        self.stats.aborts += 1;
        self.stats.incarnations += 1;
        self.sample.aborts += 1;
        work.writes.iter().for_each(|location| job.run.memory.estimate(*location, index as u32));
        let incarnation = job.crew.schedule.abort(index, true, worker.id);
        self.run_at_turn(job, worker, work, index, incarnation, true)?;
        self.look_ahead(job, worker, index)
    }

    /// Runs an item when everything before it is committed, so nothing can stop or abort it.
    fn run_at_turn(
        &mut self,
        job: &Speculation<'_, 'a>,
        worker: &mut Worker<'a>,
        work: &mut Work,
        index: usize,
        incarnation: u32,
        may_be_fast: bool,
    ) -> Result<()> {
        match worker.attempt(index, Some(self.tips), self.ledger.gas_used, may_be_fast)? {
            Outcome::Ran => {
                worker.publish(work, index, incarnation);
                work.is_final = true;
                job.crew.finish(index, incarnation, worker.id);
                Ok(())
            }
            Outcome::Blocked(_) | Outcome::NotYet => {
                Err(CoreError::Internal(format!("item {index} was stopped at its turn")))
            }
        }
    }

    /// Items just behind an aborted one likely read what it wrote: better to let workers run them again now, waiting for
    /// estimates, than one by one at their turns.
    fn look_ahead(&mut self, job: &Speculation<'_, 'a>, worker: &Worker<'a>, index: usize) -> Result<()> {
        let end = job.crew.schedule.taken().min(index + 1 + LOOK_AHEAD * self.block.chain.threads);
        for later in index + 1..end {
            if job.crew.schedule.state(later) != State::Done {
                continue;
            }
            let work = lock(job.work(later));
            if work.reads.still_hold(&job.run.memory, later as u32)? {
                continue;
            }
            self.stats.aborts += 1;
            self.stats.incarnations += 1;
            self.sample.aborts += 1;
            work.writes.iter().for_each(|location| job.run.memory.estimate(*location, later as u32));
            job.crew.schedule.abort(later, false, worker.id);
        }
        Ok(())
    }

    /// Makes the item's changes the committed state and takes over its codes; false, and nothing done, if one does not fit.
    fn settle(&mut self, memory: &Memory, work: &mut Work, index: usize) -> Result<bool> {
        let mut writes_beneficiary = false;
        let mut changes: SmallVec<[Change; 4]> = SmallVec::new();
        for (nth, location) in work.writes.iter().enumerate() {
            match memory.commit(*location, index as u32, &mut self.firsts)? {
                Some(value) => {
                    writes_beneficiary |= *location == self.beneficiary;
                    changes.push(Change { index: index as u32, location: *location, value });
                }
                None if nth == 0 => return Ok(false),
                None => return Err(CoreError::Internal(format!("item {index} fits only in part"))),
            }
        }
        // Only an item that read the beneficiary's account with all its fees can have written it whole.
        if writes_beneficiary && work.saw_tips {
            self.tips = U256::ZERO;
        }
        // Nobody else ever sees what an item looked at that is left out.
        if !matches!(work.result, Some(Err(_))) {
            self.log.note(work.touched.drain(..), changes.into_iter());
        }
        self.codes.extend(work.codes.drain(..));
        work.reset();
        Ok(true)
    }

    /// Shrinks to one worker when speculation is mostly wasted, and tries again later.
    pub fn adapt(&mut self, job: &Speculation<'_, 'a>, index: usize) {
        if job.crew.is_solo() {
            if index >= self.solo_end {
                self.sample = Sample::default();
                job.wasted.store(0, SeqCst);
                job.crew.end_alone(index + 1);
            }
            return;
        }
        self.sample.commits += 1;
        let wasted = self.sample.aborts + job.wasted.load(SeqCst);
        if self.sample.commits < SAMPLE && wasted <= MAX_ABORTS {
            return;
        }
        let sample = std::mem::take(&mut self.sample);
        job.wasted.store(0, SeqCst);
        if wasted > MAX_ABORTS || sample.dependent > MAX_DEPENDENT {
            self.solo_end = index + self.solo_length;
            self.solo_length = (4 * self.solo_length).min(LONGEST_SOLO);
            self.stats.solos += 1;
            job.crew.go_alone();
        } else {
            self.solo_length = FIRST_SOLO;
            job.crew.widen_window(wasted > FEW_ABORTS);
        }
    }
}

/// Takes an item's versions back.
fn retract(memory: &Memory, work: &mut Work, index: usize) {
    work.writes.drain(..).for_each(|location| memory.retract(location, index as u32));
}
