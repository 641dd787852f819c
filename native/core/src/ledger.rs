//! The accounts of a block, kept in commit order: gas, fees, outcomes, the outbox, and what was left out and why.
//!
//! Executing an item yields a `Done`, whichever path executed it; everything that depends on the items before it
//! (cumulative gas, the gas limit, sequence numbers, skips) is decided here, so no path can decide it differently.

use alloy_primitives::{Address, B256, Bloom, Log, U256};
use rayon::prelude::*;

use crate::block::{Block, DELIVERY_TYPE, Mode};
use crate::bloom::bloom_of;
use crate::codec::Writer;
use crate::delivery::Delivery;
use crate::error::{CoreError, Result};
use crate::evm::{Executed, Machine, NotExecuted};
use crate::gateway::{Emission, GATEWAY, MAX_OUTBOX_BYTES, emitted};
use crate::outbox::{Outbox, weigh};
use crate::pool::pool;
use crate::receipt::{Kind, Origin, Receipt};
use crate::state::{BlockState, Source};
use crate::transaction::Transaction;
use crate::transfer;

/// What an executed item (a delivery or a transaction) leaves for the block's accounts. What stands in the item itself does
/// not stand here again: this is moved from hand to hand.
#[derive(Debug)]
pub struct Done {
    pub is_success: bool,
    pub gas_used: u64,
    /// What the beneficiary earns.
    pub tip: U256,
    /// The beneficiary's account died in this very item, and the tip with it.
    pub is_tip_lost: bool,
    pub created: Option<Address>,
    pub logs: Vec<Log>,
    /// Receipts without sequence numbers; those of users were already taken out of the gateway's balance.
    pub messages: Vec<Receipt>,
}

impl Done {
    fn of_transaction(transaction: &Transaction, base_fee: u64, gas_used: u64) -> Self {
        let price = transaction.effective_gas_price(base_fee);
        Self {
            is_success: true,
            gas_used,
            tip: U256::from(price - u128::from(base_fee)) * U256::from(gas_used),
            is_tip_lost: false,
            created: None,
            logs: Vec::new(),
            messages: Vec::new(),
        }
    }

    /// # Errors
    /// `Invalid` when it sent what cannot be a message.
    pub fn of_executed(
        block: &Block<'_>,
        transaction: &Transaction,
        executed: &mut Executed,
        is_tip_lost: bool,
    ) -> Result<Self, NotExecuted> {
        let origin = Origin { tx_hash: transaction.hash, initiator: transaction.sender, depth: 0 };
        let emission = Emission { src: block.chain.shard, origin, parent_id: B256::ZERO };
        let messages = emitted(&executed.logs, &emission).map_err(|error| NotExecuted::Invalid(error.to_string()))?;
        Ok(Self {
            is_success: executed.is_success(),
            is_tip_lost,
            created: executed.created.filter(|_| executed.is_success()),
            logs: std::mem::take(&mut executed.logs),
            messages,
            ..Self::of_transaction(transaction, block.env.base_fee, executed.gas_used)
        })
    }

    /// Wei that the messages carry, in all.
    ///
    /// # Errors
    /// `Internal` when the sum exceeds 256 bits.
    pub fn escrow(&self) -> Result<U256> {
        let overflow = || CoreError::Internal("escrow exceeds 256 bits".into());
        self.messages
            .iter()
            .try_fold(U256::ZERO, |sum, message| sum.checked_add(message.escrow()?).ok_or_else(overflow))
    }

    /// The outcome of a plain transfer, which can only be one.
    pub fn of_transfer(transaction: &Transaction, base_fee: u64) -> Self {
        Self::of_transaction(transaction, base_fee, transfer::GAS)
    }
}

/// Executes a user's transaction; the caller writes what comes back and takes the messages' escrow from the gateway.
///
/// # Errors
/// `Invalid` when it cannot be in this block.
pub fn transact<'t, S: Source>(
    machine: &mut Machine<'t, S>,
    block: &Block<'_>,
    transaction: &'t Transaction,
) -> Result<(Done, Executed), NotExecuted> {
    let mut executed = machine.transact(transaction)?;
    let is_tip_lost = executed.destroys(&block.env.beneficiary);
    let done = Done::of_executed(block, transaction, &mut executed, is_tip_lost)?;
    Ok((done, executed))
}

/// Executes a delivery on a state of its own, including what its messages take out of the gateway's balance.
pub fn deliver<S: Source>(
    machine: &mut Machine<'_, BlockState<S>>,
    block: &Block<'_>,
    receipt: &Receipt,
) -> Result<Done> {
    let delivered =
        Delivery { machine, env: block.env, shard: block.chain.shard, receipt, room: block.room() }.run()?;
    // A reply's escrow comes out of the message answered, not out of the gateway's balance.
    let is_reply =
        |message: &Receipt| matches!(message.kind, Kind::Result | Kind::Bounce) && message.parent_id == receipt.id;
    for message in delivered.emitted.iter().filter(|message| !is_reply(message)) {
        machine.state().debit(&GATEWAY, message.escrow()?)?;
    }
    Ok(Done {
        is_success: delivered.is_success,
        gas_used: delivered.gas_used,
        tip: delivered.tip,
        is_tip_lost: false,
        created: None,
        logs: delivered.logs,
        messages: delivered.emitted,
    })
}

#[derive(Debug)]
pub struct Ledger<'a> {
    block: &'a Block<'a>,
    /// With the cumulative gas after each.
    items: Vec<(Done, u64)>,
    pub outbox: Outbox,
    pub gas_used: u64,
    pub tips: U256,
    pub included: Vec<u32>,
    pub skipped: Vec<(u32, String)>,
}

/// Outcomes in their encoded form and the bloom of their logs.
pub struct Outcomes {
    pub encoded: Vec<Vec<u8>>,
    pub hashes: Vec<B256>,
    pub bloom: Bloom,
}

/// Below this many outcomes a thread costs more than it saves.
const PARALLEL_OUTCOMES: usize = 512;

impl<'a> Ledger<'a> {
    pub fn new(block: &'a Block<'a>) -> Self {
        let entries = block.batch.entries().len();
        Self {
            block,
            items: Vec::with_capacity(entries + block.receipts.len()),
            outbox: Outbox::default(),
            gas_used: 0,
            tips: U256::ZERO,
            included: Vec::with_capacity(entries),
            skipped: Vec::new(),
        }
    }

    pub fn check_gas(&self, transaction: &Transaction) -> Result<(), NotExecuted> {
        self.block.check_gas(transaction, self.gas_used)
    }

    /// Whether a transaction's messages still fit into what a crosslink carries (X10).
    pub fn check_outbox(&self, done: &Done) -> Result<(), NotExecuted> {
        if !done.messages.is_empty() && self.outbox.bytes + weigh(&done.messages) > MAX_OUTBOX_BYTES {
            return Err(NotExecuted::Invalid("outbox limit reached".into()));
        }
        Ok(())
    }

    /// Leaves transaction `index` out.
    ///
    /// # Errors
    /// `InvalidBlock` when validating: the proposer put it in.
    pub fn refuse(&mut self, index: u32, refusal: NotExecuted) -> Result<()> {
        match (refusal, self.block.mode) {
            (NotExecuted::Failed(error), _) => Err(error),
            (NotExecuted::Invalid(reason), Mode::Build) => {
                self.skipped.push((index, reason));
                Ok(())
            }
            (NotExecuted::Invalid(reason), Mode::Validate) => {
                Err(CoreError::InvalidBlock(format!("transaction {index}: {reason}")))
            }
        }
    }

    /// Accounts for an executed item; `index` is a transaction's place in the batch, `last_seq` reads the state.
    pub fn record(
        &mut self,
        mut done: Done,
        index: Option<u32>,
        mut last_seq: impl FnMut(u32) -> Result<u64>,
    ) -> Result<()> {
        self.gas_used += done.gas_used;
        self.tips = self.tips.saturating_add(done.tip);
        // Most have none: what is written to between two moves waits for all that was written before.
        if !done.messages.is_empty() {
            for message in std::mem::take(&mut done.messages) {
                let seq = self.outbox.next_seq(message.dst, || last_seq(message.dst))?;
                self.outbox.push(&Receipt { seq, ..message })?;
            }
        }
        self.included.extend(index);
        self.items.push((done, self.gas_used));
        Ok(())
    }

    /// The place in the block of each item, from what precedes the first to what follows the last: transactions that are
    /// left out have none. `None` if nobody is left out.
    pub fn places(&self) -> Option<Vec<u32>> {
        if self.skipped.is_empty() {
            return None;
        }
        let (receipts, entries) = (self.block.receipts.len() as u32, self.block.batch.entries().len());
        let mut places: Vec<u32> = (0..=receipts).collect();
        let mut included = self.included.iter().peekable();
        let mut next = receipts + 1;
        for entry in 0..entries as u32 {
            places.push(next);
            next += u32::from(included.next_if_eq(&&entry).is_some());
        }
        places.push(next);
        Some(places)
    }

    /// What is in the block, from the item `from` on: the deliveries, then the transactions that are included.
    fn subjects(&self, from: usize) -> impl Iterator<Item = Subject> {
        let receipts = self.block.receipts.as_slice();
        let deliveries = receipts.iter().skip(from).map(|receipt| Subject {
            tx_type: DELIVERY_TYPE,
            price: receipt.gas_price.into(),
            hash: receipt.id,
            sender: GATEWAY,
            to: Some(receipt.target),
        });
        let entries = self
            .included
            .iter()
            .skip(from.saturating_sub(receipts.len()))
            .map(|place| &self.block.batch.entries()[*place as usize]);
        let transactions = entries.filter_map(|entry| entry.transaction.as_deref()).map(|transaction| Subject {
            tx_type: transaction.tx_type,
            price: transaction.effective_gas_price(self.block.env.base_fee),
            hash: transaction.hash,
            sender: transaction.sender,
            to: transaction.to.to().copied(),
        });
        deliveries.chain(transactions)
    }

    pub fn outcomes(&self) -> Outcomes {
        let part = |from: usize, items: &[(Done, u64)]| {
            let bloom = bloom_of(items.iter().flat_map(|(done, _)| &done.logs));
            let outcomes = self.subjects(from).zip(items);
            let encoded = outcomes.map(|(subject, (done, cumulative))| encode_outcome(&subject, done, *cumulative));
            (encoded.collect::<Vec<_>>(), bloom)
        };
        let hashes = self.subjects(0).map(|subject| subject.hash).collect();
        let workers = pool(self.block.chain.threads).filter(|_| self.items.len() >= PARALLEL_OUTCOMES);
        let Some(workers) = workers else {
            let (encoded, bloom) = part(0, &self.items);
            return Outcomes { encoded, hashes, bloom };
        };
        let chunk = self.items.len().div_ceil(self.block.chain.threads * 4);
        let chunks = self.items.par_chunks(chunk).enumerate();
        let parts: Vec<_> = workers.install(|| chunks.map(|(nth, items)| part(nth * chunk, items)).collect());
        let mut outcomes = Outcomes { encoded: Vec::with_capacity(self.items.len()), hashes, bloom: Bloom::ZERO };
        for (encoded, bloom) in parts {
            outcomes.encoded.extend(encoded);
            outcomes.bloom |= bloom;
        }
        outcomes
    }
}

/// What an outcome tells of the item itself.
struct Subject {
    tx_type: u8,
    price: u128,
    hash: B256,
    sender: Address,
    to: Option<Address>,
}

/// [type, status, gas used, cumulative gas, price, created, logs, hash, sender, to].
fn encode_outcome(subject: &Subject, done: &Done, cumulative: u64) -> Vec<u8> {
    let mut writer = Writer::with_capacity(160 + 160 * done.logs.len());
    writer.array(10).uint(subject.tx_type.into()).uint(u64::from(done.is_success));
    writer.uint(done.gas_used).uint(cumulative);
    // A price beyond 64 bits exceeds what any balance can pay for; it saturates rather than change its form.
    writer.uint(u64::try_from(subject.price).unwrap_or(u64::MAX));
    writer.bytes(done.created.as_ref().map_or(&[], |address| address.as_slice()));
    write_logs(&mut writer, &done.logs);
    writer.bytes(subject.hash.as_slice()).bytes(subject.sender.as_slice());
    writer.bytes(subject.to.as_ref().map_or(&[], |address| address.as_slice()));
    writer.finish()
}

/// [[address, [topics], data]…]
pub fn write_logs(writer: &mut Writer, logs: &[Log]) {
    writer.array(logs.len());
    for log in logs {
        writer.array(3).bytes(log.address.as_slice()).array(log.topics().len());
        log.topics().iter().for_each(|topic| {
            writer.bytes(topic.as_slice());
        });
        writer.bytes(&log.data.data);
    }
}
