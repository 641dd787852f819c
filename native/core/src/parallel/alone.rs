//! One worker alone: items one after the other on one journal, when running them ahead of their turn does not pay.
//!
//! Everything before it is committed; what a straggler took behind it is validated at its turn. What the items changed goes
//! into the memory when the stretch ends, and nobody else is kept awake meanwhile.

use std::ops::Range;

use super::Run;
use super::committer::Committer;
use super::lane::{Lane, Ran, WARMED};
use super::memory::Stamp;
use crate::access_list::Change;
use crate::error::Result;
use crate::evm::NotExecuted;

/// The journal of more items than this leaves the nearer caches of the processor. A multiple of `WARMED`.
const STRETCH: usize = 128;

impl<'a> Committer<'a> {
    /// Commits the items of a stretch, all of them transactions that nobody took yet.
    pub fn commit_alone(&mut self, run: &Run<'a>, lane: &mut Lane<'a>, items: Range<usize>) -> Result<()> {
        for index in items.clone() {
            if (index - items.start).is_multiple_of(STRETCH) {
                if index > items.start {
                    self.end_stretch(run, lane)?;
                }
                lane.make_room(STRETCH.min(items.end - index));
            }
            if (index - items.start).is_multiple_of(WARMED) {
                lane.stand_alone(self.tips());
                let soon = index..items.end.min(index + WARMED);
                let entry = |index| &run.block.batch.entries()[self.place(index)];
                lane.warm(soon.filter_map(|index| Some((index, entry(index).transaction.as_deref()?))));
            }
            self.commit_next(run, lane, index)?;
            self.count_alone();
        }
        self.end_stretch(run, lane)
    }

    fn commit_next(&mut self, run: &Run<'a>, lane: &mut Lane<'a>, index: usize) -> Result<()> {
        let transaction = match self.block().transaction(self.place(index)) {
            Ok(transaction) => transaction,
            Err(refusal) => return self.refuse(index, refusal),
        };
        if let Err(refusal) = self.check_gas(transaction) {
            return self.refuse(index, refusal);
        }
        // revm asks whether an authority was touched, not whether it exists: on a journal of its own that is the same.
        let sets_code = transaction.tx_type == 4;
        if sets_code {
            self.end_stretch(run, lane)?;
        }
        lane.stand_alone(self.tips());
        match lane.run(index, transaction)? {
            Ran::Done(done) => {
                if let Err(refusal) = self.check_outbox(&done) {
                    return self.drop_last(run, lane, index, refusal);
                }
                // Fees are paid outside the EVM: the journal must not outlive an item that saw the account they go to.
                if lane.has_destroyed() || sets_code || lane.saw_tips() {
                    self.end_stretch(run, lane)?;
                }
                self.record(run, index, done, Some(self.place(index) as u32))
            }
            Ran::Refused(refusal) => {
                if lane.saw_tips() {
                    self.end_stretch(run, lane)?;
                }
                self.refuse(index, refusal)
            }
            Ran::Spoilt(refusal) => self.drop_last(run, lane, index, refusal),
            Ran::Stopped => Err(crate::error::CoreError::Internal(format!("item {index} was stopped at its turn"))),
        }
    }

    /// Leaves out an item whose changes the journal holds.
    fn drop_last(&mut self, run: &Run<'a>, lane: &mut Lane<'a>, index: usize, refusal: NotExecuted) -> Result<()> {
        lane.drop_from(index);
        self.end_stretch(run, lane)?;
        self.refuse(index, refusal)
    }

    /// Writes what the journal holds.
    fn end_stretch(&mut self, run: &Run<'a>, lane: &mut Lane<'a>) -> Result<()> {
        // Only the last item of a journal can have seen the fees, and then what it wrote holds them.
        let saw_tips = lane.saw_tips();
        let trail = lane.take_trail();
        let mut wrote_beneficiary = false;
        let beneficiary = self.beneficiary();
        run.memory.walk(&trail.changes, Change::place, |change| {
            wrote_beneficiary |= change.location == beneficiary;
            let stamp = Stamp { index: change.index, incarnation: 0 };
            run.memory.set(change.location, stamp, change.value, self.firsts())
        })?;
        for (_, hash, code) in trail.codes.drain(..) {
            run.memory.add_code(hash, code.clone());
            self.add_code(hash, code);
        }
        self.log().add(trail.touched.iter().map(|(location, _)| *location), std::mem::take(&mut trail.changes));
        trail.clear();
        if wrote_beneficiary && saw_tips {
            self.take_tips();
        }
        Ok(())
    }
}
