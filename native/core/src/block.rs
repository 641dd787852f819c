//! Executing a block: system calls, deliveries, user transactions in order, then the commitments the header carries.
//!
//! The builder and the validator run the same code; they differ only in what an invalid transaction means: the builder
//! leaves it out with a reason, for the validator the block is invalid.

use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::{Address, B256, Bloom, Log, U256};

use crate::batch::Batch;
use crate::codec::Writer;
use crate::delivery::{Delivery, inbox_gas};
use crate::error::{CoreError, Result};
use crate::evm::{BEACON_ROOTS, Executed, HISTORY, Machine, NotExecuted, REQUEST_CONTRACTS, Relaxed};
use crate::gateway::{Emission, GATEWAY, MAX_DELIVERIES, MAX_OUTBOX_BYTES, base_fee_slot, emitted, last_seq_slot};
use crate::lthash::LtHash;
use crate::merkle::merkle_root_on;
use crate::outbox::{Outbox, weigh};
use crate::receipt::{MAX_REPLY_BYTES, Origin, Receipt};
use crate::state::{BlockState, Changes, View, commit};
use crate::transaction::Transaction;

/// Transaction type under which a delivery appears (X13).
pub const DELIVERY_TYPE: u8 = 0x7e;

#[derive(Debug, Clone)]
pub struct BlockEnv {
    pub number: u64,
    /// Seconds.
    pub timestamp: u64,
    pub gas_limit: u64,
    pub base_fee: u64,
    pub beneficiary: Address,
    pub prevrandao: B256,
    pub parent_hash: B256,
    /// Hash of the beacon block that the header refers to.
    pub beacon_root: B256,
    pub beacon_height: u64,
    /// Gas that deliveries may reserve in this block (X5).
    pub inbox_gas: u64,
    /// (destination, its base fee as of `beacon_root`), for the gateway's minimum price (X2).
    pub link_base_fees: Vec<(u32, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Build,
    Validate,
}

/// The chain a block belongs to, and the threads it may use.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    pub chain_id: u64,
    pub shard: u32,
    pub threads: usize,
}

/// A block's results: what its header commits to, and what the state becomes when it is adopted.
#[derive(Debug)]
pub struct BlockResult {
    pub parent: B256,
    pub changes: Arc<Changes>,
    pub accumulator: Arc<LtHash>,
    pub state_root: B256,
    pub transactions_root: B256,
    pub outcomes_root: B256,
    pub outbox_root: B256,
    pub logs_bloom: Bloom,
    pub gas_used: u64,
    pub burnt: U256,
    pub tips: U256,
    pub included: Vec<u32>,
    pub skipped: Vec<(u32, String)>,
    pub inbox_taken: usize,
    pub outcomes: Vec<u8>,
    pub outbox: Vec<Vec<u8>>,
    pub links: Vec<u8>,
    pub diff: Vec<u8>,
    pub stats: Vec<u8>,
}

/// One outcome's fields that deliveries and transactions fill differently.
struct Outcome<'a> {
    tx_type: u8,
    is_success: bool,
    gas_used: u64,
    price: u128,
    created: Option<Address>,
    logs: &'a [Log],
    hash: B256,
    sender: Address,
    to: Option<Address>,
}

struct Run<'a> {
    chain: Chain,
    env: &'a BlockEnv,
    machine: Machine,
    outbox: Outbox,
    outcomes: Vec<Vec<u8>>,
    hashes: Vec<B256>,
    bloom: Bloom,
    gas_used: u64,
    tips: U256,
    escrow_consumed: U256,
    included: Vec<u32>,
    skipped: Vec<(u32, String)>,
    inbox_taken: usize,
}

/// # Errors
/// `InvalidBlock` when validating and a transaction cannot be in the block; `Malformed` for an inbox that no honest
/// beacon orders; `Internal` when the supply identity does not hold.
pub fn execute_block<T: AsRef<[u8]>>(
    view: View,
    parent: B256,
    chain: Chain,
    env: &BlockEnv,
    batch: &Batch,
    mode: Mode,
    inbox: &[T],
) -> Result<BlockResult> {
    let started = Instant::now();
    let accumulator = view
        .accumulator
        .clone()
        .ok_or_else(|| CoreError::UnknownParent(format!("{parent} is older than the final state")))?;
    let machine = Machine::new(BlockState::new(view), chain.chain_id, env, Relaxed::default());
    let mut run = Run {
        chain,
        env,
        machine,
        outbox: Outbox::default(),
        outcomes: Vec::with_capacity(batch.entries.len()),
        hashes: Vec::with_capacity(batch.entries.len()),
        bloom: Bloom::ZERO,
        gas_used: 0,
        tips: U256::ZERO,
        escrow_consumed: U256::ZERO,
        included: Vec::with_capacity(batch.entries.len()),
        skipped: Vec::new(),
        inbox_taken: 0,
    };
    run.open()?;
    run.deliver_all(inbox)?;
    run.transact_all(batch, mode)?;
    run.close()?;
    let executed_us = started.elapsed().as_micros() as u64;
    run.finish(parent, &accumulator, executed_us, started)
}

impl Run<'_> {
    /// Prague's calls at the start of a block, and the link prices as of the beacon block referred to.
    fn open(&mut self) -> Result<()> {
        self.machine.system_call(BEACON_ROOTS, self.env.beacon_root.0.into())?;
        self.machine.system_call(HISTORY, self.env.parent_hash.0.into())?;
        for (dst, base_fee) in &self.env.link_base_fees {
            self.machine.state().set_slot(&GATEWAY, &base_fee_slot(*dst), U256::from(*base_fee))?;
        }
        Ok(())
    }

    /// X5: takes the next receipt iff it still fits, and then must; none is passed over.
    fn deliver_all<T: AsRef<[u8]>>(&mut self, inbox: &[T]) -> Result<()> {
        let mut reserved = 0_u64;
        let mut taken = Vec::new();
        for bytes in inbox.iter().take(MAX_DELIVERIES) {
            let receipt = Receipt::decode(bytes.as_ref())?;
            reserved = reserved.saturating_add(inbox_gas(&receipt));
            if reserved > self.env.inbox_gas {
                break;
            }
            taken.push(receipt);
        }
        for (index, receipt) in taken.iter().enumerate() {
            // Every receipt that is still to come, this one included, may need room for a reply.
            self.deliver(receipt, (taken.len() - index) as u64 * MAX_REPLY_BYTES)?;
        }
        self.inbox_taken = taken.len();
        Ok(())
    }

    fn deliver(&mut self, receipt: &Receipt, replies: u64) -> Result<()> {
        if receipt.dst != self.chain.shard {
            let (dst, shard) = (receipt.dst, self.chain.shard);
            return Err(CoreError::Malformed(format!("receipt for shard {dst} in the inbox of shard {shard}")));
        }
        let escrow = receipt.escrow()?;
        self.escrow_consumed = self
            .escrow_consumed
            .checked_add(escrow)
            .ok_or_else(|| CoreError::Malformed("escrow of an inbox exceeds 256 bits".into()))?;
        let (shard, env) = (self.chain.shard, self.env);
        let room = MAX_OUTBOX_BYTES.saturating_sub(self.outbox.bytes + replies);
        let delivered = Delivery { machine: &mut self.machine, env, shard, receipt, room }.run()?;
        self.tips = self.tips.saturating_add(delivered.tip);
        self.record(&Outcome {
            tx_type: DELIVERY_TYPE,
            is_success: delivered.is_success,
            gas_used: delivered.gas_used,
            price: receipt.gas_price.into(),
            created: None,
            logs: &delivered.logs,
            hash: receipt.id,
            sender: GATEWAY,
            to: Some(receipt.target),
        });
        let (reply, messages) = match delivered.emitted.split_last() {
            // A reply's escrow comes out of the message answered, not out of the gateway's balance.
            Some((last, rest)) if last.parent_id == receipt.id && is_reply(last) => (Some(last), rest),
            _ => (None, &delivered.emitted[..]),
        };
        self.send(messages, true)?;
        self.send(reply.map(std::slice::from_ref).unwrap_or_default(), false)
    }

    /// Assigns sequence numbers and moves receipts into the outbox; a user's message leaves the gateway's balance.
    fn send(&mut self, receipts: &[Receipt], from_gateway: bool) -> Result<()> {
        for receipt in receipts {
            if from_gateway {
                self.machine.state().debit(&GATEWAY, receipt.escrow()?)?;
            }
            let slot = last_seq_slot(receipt.dst);
            let state = self.machine.state();
            let seq = self.outbox.next_seq(receipt.dst, || Ok(state.slot(&GATEWAY, &slot)?.saturating_to()))?;
            self.outbox.push(&Receipt { seq, ..receipt.clone() })?;
        }
        Ok(())
    }

    fn transact_all(&mut self, batch: &Batch, mode: Mode) -> Result<()> {
        for (index, entry) in batch.entries.iter().enumerate() {
            let attempt = match (&entry.transaction, &entry.refusal) {
                (Some(transaction), None) => self.transact(transaction),
                (_, Some(refusal)) => Err(NotExecuted::Invalid(refusal.to_string())),
                (None, None) => Err(NotExecuted::Invalid("transaction was not read".into())),
            };
            let index = index as u32;
            match attempt {
                Ok(()) => self.included.push(index),
                Err(NotExecuted::Failed(error)) => return Err(error),
                Err(NotExecuted::Invalid(reason)) if mode == Mode::Build => self.skipped.push((index, reason)),
                Err(NotExecuted::Invalid(reason)) => {
                    return Err(CoreError::InvalidBlock(format!("transaction {index}: {reason}")));
                }
            }
        }
        Ok(())
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<(), NotExecuted> {
        if transaction.gas_limit > self.env.gas_limit.saturating_sub(self.gas_used) {
            return Err(NotExecuted::Invalid("gas limit reached".into()));
        }
        let executed = self.machine.transact(transaction)?;
        let messages = self.messages_of(transaction, &executed)?;
        if self.outbox.bytes + weigh(&messages) > MAX_OUTBOX_BYTES {
            return Err(NotExecuted::Invalid("outbox limit reached".into()));
        }
        let price = transaction.effective_gas_price(self.env.base_fee);
        let tip = U256::from(price - u128::from(self.env.base_fee)) * U256::from(executed.gas_used);
        self.tips = self.tips.saturating_add(tip);
        self.record(&Outcome {
            tx_type: transaction.tx_type,
            is_success: executed.is_success(),
            gas_used: executed.gas_used,
            price,
            created: executed.created.filter(|_| executed.is_success()),
            logs: &executed.logs,
            hash: transaction.hash,
            sender: transaction.sender,
            to: transaction.to.to().copied(),
        });
        self.machine.commit(executed)?;
        Ok(self.send(&messages, true)?)
    }

    fn messages_of(&self, transaction: &Transaction, executed: &Executed) -> Result<Vec<Receipt>, NotExecuted> {
        let origin = Origin { tx_hash: transaction.hash, initiator: transaction.sender, depth: 0 };
        let emission = Emission { src: self.chain.shard, origin, parent_id: B256::ZERO };
        emitted(&executed.logs, &emission).map_err(|error| NotExecuted::Invalid(error.to_string()))
    }

    /// Appends an outcome: [type, status, gas used, cumulative gas, price, created, logs, hash, sender, to].
    fn record(&mut self, outcome: &Outcome<'_>) {
        self.gas_used += outcome.gas_used;
        for log in outcome.logs {
            self.bloom.accrue_log(log);
        }
        let mut writer = Writer::with_capacity(160 + 160 * outcome.logs.len());
        writer.array(10).uint(outcome.tx_type.into()).uint(u64::from(outcome.is_success));
        writer.uint(outcome.gas_used).uint(self.gas_used);
        // A price beyond 64 bits exceeds what any balance can pay for; it saturates rather than change its form.
        writer.uint(u64::try_from(outcome.price).unwrap_or(u64::MAX));
        writer.bytes(outcome.created.as_ref().map_or(&[], |address| address.as_slice()));
        write_logs(&mut writer, outcome.logs);
        writer.bytes(outcome.hash.as_slice()).bytes(outcome.sender.as_slice());
        writer.bytes(outcome.to.as_ref().map_or(&[], |address| address.as_slice()));
        self.outcomes.push(writer.finish());
        self.hashes.push(outcome.hash);
    }

    fn close(&mut self) -> Result<()> {
        for contract in REQUEST_CONTRACTS {
            self.machine.system_call(contract, alloy_primitives::Bytes::new())?;
        }
        for (dst, seq) in self.outbox.last_seqs() {
            self.machine.state().set_slot(&GATEWAY, &last_seq_slot(dst), U256::from(seq))?;
        }
        Ok(())
    }

    fn finish(self, parent: B256, accumulator: &LtHash, executed_us: u64, started: Instant) -> Result<BlockResult> {
        let finished = self.machine.into_state().finish()?;
        // X11: what came in and was here, less what went out and is here, is burnt; it can never be negative.
        let burnt = finished
            .supply_before
            .checked_add(self.escrow_consumed)
            .zip(finished.supply_after.checked_add(self.outbox.escrow))
            .and_then(|(before, after)| before.checked_sub(after))
            .ok_or_else(|| CoreError::Internal("the block creates value".into()))?;
        let accumulator = commit(accumulator, &finished.updates, self.chain.threads);
        let (outbox_root, links) = self.outbox.commit();
        let mut outcomes = Writer::with_capacity(8 + self.outcomes.iter().map(Vec::len).sum::<usize>());
        outcomes.array(self.outcomes.len());
        self.outcomes.iter().for_each(|outcome| {
            outcomes.encoded(outcome);
        });
        let mut result = BlockResult {
            parent,
            state_root: B256::new(accumulator.root()),
            accumulator: Arc::new(accumulator),
            transactions_root: merkle_root_on(&self.hashes, self.chain.threads),
            outcomes_root: merkle_root_on(&self.outcomes, self.chain.threads),
            outbox_root,
            logs_bloom: self.bloom,
            gas_used: self.gas_used,
            burnt,
            tips: self.tips,
            included: self.included,
            skipped: self.skipped,
            inbox_taken: self.inbox_taken,
            outcomes: outcomes.finish(),
            outbox: self.outbox.receipts,
            links,
            diff: finished.changes.encode(),
            changes: Arc::new(finished.changes),
            stats: Vec::new(),
        };
        result.stats = stats(&result, finished.updates.len(), executed_us, started);
        Ok(result)
    }
}

/// For people and benchmarks only; never part of an event (M3).
fn stats(result: &BlockResult, updates: usize, executed_us: u64, started: Instant) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.map(7).text("execute_us").uint(executed_us);
    writer.text("commit_us").uint((started.elapsed().as_micros() as u64).saturating_sub(executed_us));
    writer.text("transactions").uint(result.included.len() as u64);
    writer.text("deliveries").uint(result.inbox_taken as u64);
    writer.text("messages").uint(result.outbox.len() as u64);
    writer.text("accounts").uint(result.changes.accounts.len() as u64);
    writer.text("updates").uint(updates as u64);
    writer.finish()
}

fn is_reply(receipt: &Receipt) -> bool {
    use crate::receipt::Kind;
    matches!(receipt.kind, Kind::Result | Kind::Bounce)
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
