//! Executing a block: system calls, deliveries, user transactions in order, then the commitments the header carries.
//!
//! The builder and the validator run the same code; they differ only in what an invalid transaction means: the builder
//! leaves it out with a reason, for the validator the block is invalid.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bloom, U256};
use rayon::ThreadPool;
use smallvec::SmallVec;

use crate::access_list::{self, AccessList, AccessLog, Change, Numbered};
use crate::batch::Batch;
use crate::codec::Writer;
use crate::delivery::inbox_gas;
use crate::error::{CoreError, Result};
use crate::evm::{
    BEACON_ROOTS, HISTORY, Machine, NotExecuted, Numbering, REQUEST_CONTRACTS, Relaxed, Revision, Stepper,
};
use crate::gateway::{GATEWAY, MAX_DELIVERIES, MAX_OUTBOX_BYTES, base_fee_slot, last_seq_slot};
use crate::ledger::{Done, Ledger, Outcomes, deliver, transact};
use crate::lthash::LtHash;
use crate::merkle::merkle_root_on;
use crate::outbox::Outbox;
use crate::parallel::{Between, RunStats, Value, execute_in_parallel, replay};
use crate::pool::pool;
use crate::receipt::{MAX_REPLY_BYTES, Receipt};
use crate::state::{BlockState, Changes, Finished, Key, Sink, Source, Update, View, commit};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// Smaller blocks run in order: waking workers would cost more than they save.
const PARALLEL_ITEMS: usize = 64;
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
    /// Whether plain transfers may go without the interpreter; off only to measure and to test against.
    pub fast_path: bool,
    pub revision: Revision,
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
    /// Encoded (EIP-7928), and what the header says of it.
    pub access_list: Vec<u8>,
    pub access_list_hash: B256,
    pub stats: Vec<u8>,
}

/// A block to execute: its transactions, and the receipts it must take (X5).
#[derive(Debug)]
pub struct Block<'a> {
    pub chain: Chain,
    pub env: &'a BlockEnv,
    pub batch: &'a Batch,
    pub mode: Mode,
    pub receipts: Vec<Receipt>,
    /// Kept from the blocks before it.
    pub between: Arc<Between>,
    /// What came beside a block to validate, encoded: with it, no item has to wait for another.
    pub access_list: Option<&'a [u8]>,
    escrow_consumed: U256,
}

impl<'a> Block<'a> {
    /// # Errors
    /// `Malformed` for an inbox that no honest beacon orders.
    pub fn new<T: AsRef<[u8]>>(
        chain: Chain,
        env: &'a BlockEnv,
        batch: &'a Batch,
        mode: Mode,
        inbox: &[T],
    ) -> Result<Self> {
        let (mut receipts, mut reserved, mut escrow_consumed) = (Vec::new(), 0_u64, U256::ZERO);
        // X5: takes the next receipt iff it still fits, and then must; none is passed over.
        for bytes in inbox.iter().take(MAX_DELIVERIES) {
            let receipt = Receipt::decode(bytes.as_ref())?;
            reserved = reserved.saturating_add(inbox_gas(&receipt));
            if reserved > env.inbox_gas {
                break;
            }
            if receipt.dst != chain.shard {
                let (dst, shard) = (receipt.dst, chain.shard);
                return Err(CoreError::Malformed(format!("receipt for shard {dst} in the inbox of shard {shard}")));
            }
            escrow_consumed = escrow_consumed
                .checked_add(receipt.escrow()?)
                .ok_or_else(|| CoreError::Malformed("escrow of an inbox exceeds 256 bits".into()))?;
            receipts.push(receipt);
        }
        Ok(Self { chain, env, batch, mode, receipts, between: Arc::default(), access_list: None, escrow_consumed })
    }

    /// The index of the last item; what closes the block has the one after it.
    pub fn last(&self) -> usize {
        self.receipts.len() + self.batch.entries().len()
    }

    /// # Errors
    /// `InvalidBlock` for bytes that are no block's list.
    pub fn decode_access_list(&self, bytes: &[u8], has_workers: bool) -> Result<AccessList> {
        access_list::decode(bytes, self.last() as u32 + 1, has_workers)
            .map_err(|error| CoreError::InvalidBlock(error.to_string()))
    }

    /// Bytes of receipts that what one delivery runs may emit, its own reply not counted (X10): an equal share of what the
    /// replies leave, so that it depends on no other delivery and every one has some.
    pub fn room(&self) -> u64 {
        (MAX_OUTBOX_BYTES / (self.receipts.len() as u64).max(1)).saturating_sub(MAX_REPLY_BYTES)
    }

    /// Prague's calls at the start of a block, and the link prices as of the beacon block referred to.
    pub fn open<S: Source>(&self, machine: &mut Machine<'_, BlockState<S>>) -> Result<()> {
        machine.system_call(BEACON_ROOTS, self.env.beacon_root.0.into())?;
        machine.system_call(HISTORY, self.env.parent_hash.0.into())?;
        for (dst, base_fee) in &self.env.link_base_fees {
            machine.state().set_slot(&GATEWAY, &base_fee_slot(*dst), U256::from(*base_fee))?;
        }
        Ok(())
    }

    /// The fees of all items, Prague's calls at the end of a block, and where each link's sequence stands.
    pub fn close<S: Source>(
        &self,
        machine: &mut Machine<'_, BlockState<S>>,
        tips: U256,
        outbox: &Outbox,
    ) -> Result<()> {
        machine.state().credit(&self.env.beneficiary, tips)?;
        for contract in REQUEST_CONTRACTS {
            machine.system_call(contract, alloy_primitives::Bytes::new())?;
        }
        for (dst, seq) in outbox.last_seqs() {
            machine.state().set_slot(&GATEWAY, &last_seq_slot(dst), U256::from(seq))?;
        }
        Ok(())
    }

    /// A transaction as it can be executed, or why this chain never takes it.
    pub fn transaction(&self, index: usize) -> Result<&Transaction, NotExecuted> {
        let entry = &self.batch.entries()[index];
        match (&entry.transaction, &entry.refusal) {
            (Some(transaction), None) => Ok(transaction),
            (_, Some(refusal)) => Err(NotExecuted::Invalid(refusal.to_string())),
            (None, None) => Err(NotExecuted::Invalid("transaction was not read".into())),
        }
    }

    /// Whether a transaction's gas limit still fits when so much is used; decided before anything else about it.
    pub fn check_gas(&self, transaction: &Transaction, gas_used: u64) -> Result<(), NotExecuted> {
        if transaction.gas_limit > self.env.gas_limit.saturating_sub(gas_used) {
            return Err(NotExecuted::Invalid("gas limit reached".into()));
        }
        Ok(())
    }

    /// The plain transfer that a transaction is, if those may go without the interpreter.
    pub fn plan(&self, transaction: &Transaction) -> Option<Transfer> {
        if self.chain.fast_path { Transfer::plan(transaction, self.env.base_fee) } else { None }
    }

    pub fn machine<'t, S: Source>(&self, state: S) -> Machine<'t, S> {
        Machine::new(state, &self.chain, self.env, Relaxed::default())
    }

    /// For transactions that run on what those before them left.
    pub fn stepper<'t, S: Numbering>(&self, state: S) -> Stepper<'t, S> {
        Machine::new(state, &self.chain, self.env, Relaxed::default())
    }
}

/// # Errors
/// `InvalidBlock` when validating and a transaction cannot be in the block, or the access list given is not the block's;
/// `Internal` when the supply identity does not hold.
pub fn execute_block(view: View, parent: B256, block: &Block<'_>) -> Result<BlockResult> {
    let workers =
        pool(block.chain.threads).filter(|_| block.last() >= PARALLEL_ITEMS && block.chain.revision.keeps_storage());
    execute_on(workers.as_deref(), block, view, parent)
}

/// Executes on these workers, or in order when there are none.
pub(crate) fn execute_on(
    workers: Option<&ThreadPool>,
    block: &Block<'_>,
    view: View,
    parent: B256,
) -> Result<BlockResult> {
    let (started, cpu_before) = (Instant::now(), processor_time());
    let accumulator = view
        .accumulator
        .clone()
        .ok_or_else(|| CoreError::UnknownParent(format!("{parent} is older than the final state")))?;
    let given = block.access_list.filter(|_| block.mode == Mode::Validate);
    let execute = || {
        let ended = match (workers, given) {
            (Some(workers), Some(given)) => replay(block, view, workers, given)?,
            (Some(workers), None) => execute_in_parallel(block, view, workers)?,
            (None, _) => execute_in_order(block, view)?,
        };
        let execute_cpu = processor_time().saturating_sub(cpu_before);
        let spent = Spent { started, execute: started.elapsed(), execute_cpu };
        finish(block, parent, &accumulator, ended, given, &spent)
    };
    match workers {
        // From here to the end on the workers: whenever the caller woke in between, somebody would lose their core to it.
        Some(workers) => workers.install(execute),
        None => execute(),
    }
}

/// Makes the encoded access list of what was executed. It commits to the block as its other hashes do, so it is made beside
/// them.
pub type Listing<'a> = Box<dyn FnOnce() -> Result<Vec<u8>> + Send + 'a>;

/// A block whose items are all executed, whichever way.
pub struct Ended<'a> {
    pub ledger: Ledger<'a>,
    pub finished: Finished,
    pub stats: RunStats,
    pub listing: Listing<'a>,
}

/// # Errors
/// `InvalidBlock` when `found` is not the list that came beside the block.
fn check_access_list(block: &Block<'_>, given: &[u8], found: &[u8]) -> Result<()> {
    if found == given {
        return Ok(());
    }
    let given = block.decode_access_list(given, false)?;
    given.check(&access_list::decode(found, block.last() as u32 + 1, false)?)?;
    Err(CoreError::InvalidBlock("access list: its bytes are not those of the block's".into()))
}

/// Writes down what items do to one state, for the access list.
struct Watch {
    log: AccessLog,
    places: Numbered,
}

impl Watch {
    /// What was done since the last item, by item `index`.
    fn note(&mut self, state: &mut BlockState, index: usize) {
        let mut touched: SmallVec<[(Key, u32); 16]> = SmallVec::new();
        for key in state.take_touched() {
            // One item asks for few locations, again and again.
            if !touched.iter().rev().take(16).any(|(known, _)| *known == key) {
                touched.push((key, self.places.number(&key)));
            }
        }
        let changes = touched.iter().filter_map(|(key, location)| {
            let value = state.present(key)?;
            Some(Change { index: index as u32, location: *location, value })
        });
        self.log.note(touched.iter().map(|(_, location)| *location), changes);
    }

    /// Credits a tip: what the beneficiary has then is listed, but no item has looked at it.
    fn pay(&mut self, state: &mut BlockState, beneficiary: &Address, tip: U256, index: usize) -> Result<()> {
        state.credit(beneficiary, tip)?;
        state.take_touched();
        if !tip.is_zero() {
            let key = Key::Account(*beneficiary);
            let (location, index) = (self.places.number(&key), index as u32);
            let value = state.present(&key).unwrap_or(Value::Account(None));
            self.log.note(std::iter::empty(), std::iter::once(Change { index, location, value }));
        }
        Ok(())
    }
}

/// One item after the other on one state: what every other way of executing must agree with.
fn execute_in_order<'a>(block: &'a Block<'a>, view: View) -> Result<Ended<'a>> {
    let beneficiary = block.env.beneficiary;
    let mut watch = Watch { log: AccessLog::default(), places: Numbered::new(view.clone()) };
    let mut machine = block.machine(BlockState::watched(view));
    let mut ledger = Ledger::new(block);
    block.open(&mut machine)?;
    watch.note(machine.state(), 0);
    for (place, receipt) in block.receipts.iter().enumerate() {
        let done = deliver(&mut machine, block, receipt)?;
        watch.note(machine.state(), place + 1);
        watch.pay(machine.state(), &beneficiary, done.tip, place + 1)?;
        ledger.record(done, None, |dst| last_seq(machine.state(), dst))?;
        machine.state().take_touched();
    }
    for place in 0..block.batch.entries().len() {
        let index = block.receipts.len() + 1 + place;
        match transact_in_order(&mut machine, block, &ledger, place) {
            Ok(done) => {
                watch.note(machine.state(), index);
                let tip = if done.is_tip_lost { U256::ZERO } else { done.tip };
                watch.pay(machine.state(), &beneficiary, tip, index)?;
                ledger.record(done, Some(place as u32), |dst| last_seq(machine.state(), dst))?;
            }
            Err(refusal) => ledger.refuse(place as u32, refusal)?,
        }
        machine.state().take_touched();
    }
    block.close(&mut machine, U256::ZERO, &ledger.outbox)?;
    watch.note(machine.state(), block.last() + 1);
    let finished = machine.into_state().finish()?;
    watch.places.add_codes(&finished.codes);
    watch.log.renumber(&ledger);
    let listing = Box::new(move || access_list::build(&watch.log, &watch.places, beneficiary, false));
    Ok(Ended { ledger, finished, stats: RunStats::default(), listing })
}

fn transact_in_order<'t>(
    machine: &mut Machine<'t, BlockState>,
    block: &'t Block<'_>,
    ledger: &Ledger<'_>,
    place: usize,
) -> Result<Done, NotExecuted> {
    let transaction = block.transaction(place)?;
    ledger.check_gas(transaction)?;
    transact_whole(machine, block, transaction, |done| ledger.check_outbox(done))
}

/// Executes a user's transaction and writes what it does, its messages' escrow included, unless `accept` refuses it.
pub fn transact_whole<'t, S: Source>(
    machine: &mut Machine<'t, BlockState<S>>,
    block: &Block<'_>,
    transaction: &'t Transaction,
    accept: impl FnOnce(&Done) -> Result<(), NotExecuted>,
) -> Result<Done, NotExecuted> {
    if let Some(transfer) = block.plan(transaction)
        && transfer.apply(machine.state())?
    {
        return Ok(Done::of_transfer(transaction, block.env.base_fee));
    }
    let (done, executed) = transact(machine, block, transaction)?;
    accept(&done)?;
    machine.commit(executed)?;
    for message in &done.messages {
        machine.state().debit(&GATEWAY, message.escrow()?)?;
    }
    Ok(done)
}

/// The last sequence number that the state knows of a link.
pub fn last_seq(state: &mut impl Source, dst: u32) -> Result<u64> {
    Ok(state.slot(&GATEWAY, &last_seq_slot(dst))?.saturating_to())
}

fn finish(
    block: &Block<'_>,
    parent: B256,
    accumulator: &LtHash,
    ended: Ended<'_>,
    given: Option<&[u8]>,
    spent: &Spent,
) -> Result<BlockResult> {
    let Ended { ledger, finished, stats: run, mut listing } = ended;
    let threads = block.chain.threads;
    if let Some(given) = given {
        // What a wrong list led to need not make sense: the list is what is wrong with it.
        let list = both(threads, listing, || ()).0?;
        check_access_list(block, given, &list)?;
        listing = Box::new(move || Ok(list));
    }
    // X11: what came in and was here, less what went out and is here, is burnt; it can never be negative.
    let (supply_before, supply_after) = finished.supplies()?;
    let burnt = supply_before
        .checked_add(block.escrow_consumed)
        .zip(supply_after.checked_add(ledger.outbox.escrow))
        .and_then(|(before, after)| before.checked_sub(after))
        .ok_or_else(|| CoreError::Internal("the block creates value".into()))?;
    let updates: Vec<&[Update]> = finished.parts.iter().map(|part| part.updates.as_slice()).collect();
    let list = || {
        let list = listing()?;
        Ok::<_, CoreError>((access_list::hash(&list), list))
    };
    let index = || {
        let changes = finished.changes();
        let diff = changes.encode();
        (changes, diff)
    };
    // The longest that one worker does by itself begins first.
    let ((listed, accumulator), ((changes, diff), sealed)) = both(
        threads,
        || both(threads, list, || commit(accumulator, &updates, threads)),
        || both(threads, index, || Sealed::of(&ledger, threads)),
    );
    let (access_list_hash, access_list) = listed?;
    let (outbox_root, links) = ledger.outbox.commit();
    let mut result = BlockResult {
        parent,
        state_root: B256::new(accumulator.root()),
        accumulator: Arc::new(accumulator),
        transactions_root: sealed.transactions_root,
        outcomes_root: sealed.outcomes_root,
        outbox_root,
        logs_bloom: sealed.bloom,
        gas_used: ledger.gas_used,
        burnt,
        tips: ledger.tips,
        included: ledger.included,
        skipped: ledger.skipped,
        inbox_taken: block.receipts.len(),
        outcomes: sealed.outcomes,
        outbox: ledger.outbox.receipts,
        links,
        diff,
        access_list_hash,
        access_list,
        changes: Arc::new(changes),
        stats: Vec::new(),
    };
    result.stats = stats(&result, finished.count(), &run, spent);
    Ok(result)
}

/// Runs both, on two workers when there are some.
fn both<A: Send, B: Send>(threads: usize, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    match pool(threads) {
        Some(workers) => workers.install(|| rayon::join(a, b)),
        None => (a(), b()),
    }
}

/// What a header commits to of a block's items.
struct Sealed {
    outcomes: Vec<u8>,
    bloom: Bloom,
    transactions_root: B256,
    outcomes_root: B256,
}

impl Sealed {
    fn of(ledger: &Ledger<'_>, threads: usize) -> Self {
        let Outcomes { encoded, hashes, bloom } = ledger.outcomes();
        let mut outcomes = Writer::with_capacity(8 + encoded.iter().map(Vec::len).sum::<usize>());
        outcomes.array(encoded.len());
        encoded.iter().for_each(|outcome| {
            outcomes.encoded(outcome);
        });
        Self {
            outcomes: outcomes.finish(),
            bloom,
            transactions_root: merkle_root_on(&hashes, threads),
            outcomes_root: merkle_root_on(&encoded, threads),
        }
    }
}

/// Where a block's time went; for people, never for the protocol (M3).
struct Spent {
    started: Instant,
    execute: Duration,
    /// Of all threads of the process.
    execute_cpu: Duration,
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the struct it is given; a refusal leaves it zero.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// For people and benchmarks only; never part of an event (M3).
fn stats(result: &BlockResult, updates: usize, run: &RunStats, spent: &Spent) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.map(8 + RunStats::FIELDS).text("execute_us").uint(spent.execute.as_micros() as u64);
    writer.text("execute_cpu_us").uint(spent.execute_cpu.as_micros() as u64);
    writer.text("commit_us").uint((spent.started.elapsed().saturating_sub(spent.execute)).as_micros() as u64);
    writer.text("transactions").uint(result.included.len() as u64);
    writer.text("deliveries").uint(result.inbox_taken as u64);
    writer.text("messages").uint(result.outbox.len() as u64);
    writer.text("accounts").uint(result.changes.accounts.len() as u64);
    writer.text("updates").uint(updates as u64);
    run.write(&mut writer, spent.execute);
    writer.finish()
}
