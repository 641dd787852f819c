//! The mempool: which transactions wait, in which order the builder gets them, and which are refused.
//!
//! The rules stand in `shards/mempool.py`, which this serves; here they are kept for whole groups at once. Each sender has
//! a queue by nonce; its *run* is the unbroken stretch from the account's nonce on, and only the run is executable. All is
//! bounded. When the pool is full, the sender who holds the cheapest transaction loses its *last* one, and a newcomer that
//! could not run now evicts nobody. Nothing depends on the order of a hash table, so equal calls leave equal pools.

mod queue;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::fmt;
use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use crate::batch::{Batch, Entry};
use crate::error::Result;
use crate::raw::RawList;
use crate::state::{Map, View};

use queue::Queue;
pub use queue::Waiting;

/// A replacement pays at least this share, rounded down as wallets compute it, of both fees of what it replaces.
const REPLACEMENT_PERCENT: u128 = 110;

/// Caps of one pool (I14).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_transactions: usize,
    /// Of raw transactions, and of their lists as decoded.
    pub max_bytes: usize,
    pub max_per_sender: usize,
    /// A nonce may lead the sender's run by at most this.
    pub max_gap: u64,
    pub max_gas: u64,
    pub min_fee: u64,
}

/// A transaction the pool does not take: geth's sentinel, and what made it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: &'static str,
    pub detail: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() { f.write_str(self.reason) } else { write!(f, "{}: {}", self.reason, self.detail) }
    }
}

fn rejected<T>(reason: &'static str, detail: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection { reason, detail: detail.into() })
}

const POOL_FULL: &str = "txpool is full";
const INSUFFICIENT_FUNDS: &str = "insufficient funds for gas * price + value";

/// Place in the order of eviction: cheapest first, of equals the one that came last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cheap {
    max_fee: u64,
    tip: u64,
    arrival: Reverse<u64>,
    hash: B256,
}

impl Cheap {
    fn of(entry: &Waiting) -> Self {
        Self { max_fee: entry.max_fee, tip: entry.tip, arrival: Reverse(entry.arrival), hash: entry.hash }
    }
}

/// Transactions of a block that is not final yet.
#[derive(Debug, Default)]
struct Included {
    hashes: HashSet<B256, foldhash::fast::RandomState>,
    /// Whose accounts the block may have changed so that what waits here is affected.
    senders: BTreeSet<Address>,
}

#[derive(Debug)]
pub struct Mempool {
    limits: Limits,
    by_hash: Map<B256, Arc<Waiting>>,
    queues: Map<Address, Queue>,
    bytes: usize,
    next_arrival: u64,
    /// Of all that came; what left the pool is passed over when it surfaces.
    cheapest: BinaryHeap<Reverse<Cheap>>,
    included: Map<B256, Included>,
    /// The block whose accounts newcomers are judged by.
    final_hash: B256,
}

impl Mempool {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            by_hash: Map::default(),
            queues: Map::default(),
            bytes: 0,
            next_arrival: 0,
            cheapest: BinaryHeap::new(),
            included: Map::default(),
            final_hash: B256::ZERO,
        }
    }

    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, hash: &B256) -> Option<&Arc<Waiting>> {
        self.by_hash.get(hash)
    }

    pub fn get_by_nonce(&self, sender: &Address, nonce: u64) -> Option<&Arc<Waiting>> {
        self.queues.get(sender)?.by_nonce.get(&nonce)
    }

    /// The nonce after the run of `sender` that begins at `account_nonce`, or before it.
    pub fn next_nonce(&self, sender: &Address, account_nonce: u64) -> u64 {
        let Some(queue) = self.queues.get(sender) else { return account_nonce };
        let first = account_nonce.max(queue.run_end);
        (first..).find(|nonce| !queue.by_nonce.contains_key(nonce)).unwrap_or(first)
    }

    /// How many are executable, and how many wait behind a gap.
    pub fn status(&self) -> (usize, usize) {
        let pending: u64 = self.queues.values().map(|queue| queue.run_end - queue.account_nonce).sum();
        (pending as usize, self.len() - pending as usize)
    }

    /// All that waits, in order of arrival.
    pub fn list(&self) -> Vec<Arc<Waiting>> {
        let mut all: Vec<Arc<Waiting>> = self.by_hash.values().cloned().collect();
        all.sort_unstable_by_key(|entry| entry.arrival);
        all
    }

    pub fn senders(&self) -> BTreeSet<Address> {
        self.queues.keys().copied().collect()
    }

    /// The least fee per gas that a newcomer must offer to have a chance: above the cheapest once the pool is full, else 0.
    pub fn least_fee(&mut self) -> u64 {
        if self.len() < self.limits.max_transactions && self.bytes < self.limits.max_bytes {
            return 0;
        }
        while let Some(Reverse(cheap)) = self.cheapest.peek() {
            if self.is_current(cheap) {
                return cheap.max_fee.saturating_add(1);
            }
            self.cheapest.pop();
        }
        0
    }

    // --- taking transactions ---

    /// Takes each transaction of a batch that the rules allow, by the accounts of the newest final block.
    ///
    /// # Errors
    /// `MissingState` when that block is not held.
    pub fn admit(
        &mut self,
        batch: &Batch,
        raws: &RawList,
        view: impl FnOnce(&B256) -> Result<View>,
    ) -> Result<Vec<Option<String>>> {
        let view = view(&self.final_hash)?;
        let mut problems = Vec::with_capacity(batch.entries().len());
        for (index, entry) in batch.entries().iter().enumerate() {
            let (Some(transaction), None) = (&entry.transaction, &entry.refusal) else {
                let refusal = entry.refusal.as_ref().map_or_else(|| "invalid transaction".into(), ToString::to_string);
                problems.push(Some(refusal));
                continue;
            };
            let account = view.account(&transaction.sender)?.unwrap_or_default();
            let waiting = Waiting::of(transaction, raws.get(index).unwrap_or_default());
            problems.push(self.add(waiting, account.nonce, account.balance).err().map(|problem| problem.to_string()));
        }
        Ok(problems)
    }

    /// Takes `entry`, whose sender has this account; gives the hashes of what had to leave for it.
    ///
    /// # Errors
    /// The rule that it breaks; then the pool is as before.
    pub fn add(&mut self, entry: Waiting, account_nonce: u64, balance: U256) -> Result<Vec<B256>, Rejection> {
        let sender = entry.sender;
        let known_nonce = self.queues.get(&sender).map(|queue| queue.account_nonce);
        // Whoever read the account may have done so before the last final block.
        let account_nonce = known_nonce.map_or(account_nonce, |known| account_nonce.max(known));
        self.check_entry(&entry, account_nonce, balance)?;
        if known_nonce.is_some_and(|known| account_nonce > known) {
            self.move_sender(&sender, account_nonce, balance);
        }
        let queue = self.queues.get(&sender);
        let replaced = queue.and_then(|queue| queue.by_nonce.get(&entry.nonce)).cloned();
        self.check_sender(&entry, queue, replaced.as_deref(), account_nonce, balance)?;
        let removed = match replaced {
            Some(replaced) => {
                self.take(&sender, entry.nonce);
                vec![replaced.hash]
            }
            None => self.make_room(&entry, entry.nonce == self.next_nonce(&sender, account_nonce))?,
        };
        self.next_arrival += 1;
        let entry = Arc::new(Waiting { arrival: self.next_arrival, ..entry });
        self.by_hash.insert(entry.hash, entry.clone());
        self.bytes += entry.weight();
        self.cheapest.push(Reverse(Cheap::of(&entry)));
        let queue = self.queues.entry(sender).or_insert_with(|| Queue::new(account_nonce, balance));
        queue.balance = balance;
        queue.put(entry);
        self.compact_heap();
        Ok(removed)
    }

    fn check_entry(&self, entry: &Waiting, account_nonce: u64, balance: U256) -> Result<(), Rejection> {
        let Limits { max_gas, min_fee, .. } = self.limits;
        if self.by_hash.contains_key(&entry.hash) {
            return rejected("already known", "");
        }
        if entry.gas_limit > max_gas {
            let detail = format!("got {}, expected at most {max_gas}", entry.gas_limit);
            return rejected("exceeds block gas limit", detail);
        }
        if entry.max_fee < min_fee {
            let detail = format!("gas fee cap {}, minimum needed {min_fee}", entry.max_fee);
            return rejected("transaction underpriced", detail);
        }
        if entry.nonce < account_nonce {
            return rejected("nonce too low", format!("next nonce {account_nonce}, tx nonce {}", entry.nonce));
        }
        if entry.cost > balance {
            let (cost, overshot) = (entry.cost, entry.cost - balance);
            return rejected(INSUFFICIENT_FUNDS, format!("balance {balance}, tx cost {cost}, overshot {overshot}"));
        }
        Ok(())
    }

    fn check_sender(
        &self,
        entry: &Waiting,
        queue: Option<&Queue>,
        replaced: Option<&Waiting>,
        account_nonce: u64,
        balance: U256,
    ) -> Result<(), Rejection> {
        let replaced_cost = replaced.map_or(U256::ZERO, |replaced| replaced.cost);
        let spent = queue.map_or(U256::ZERO, |queue| queue.total_cost).saturating_sub(replaced_cost);
        let total = spent.saturating_add(entry.cost);
        if total > balance {
            let (cost, overshot) = (entry.cost, total - balance);
            let detail = format!("balance {balance}, queued cost {spent}, tx cost {cost}, overshot {overshot}");
            return rejected(INSUFFICIENT_FUNDS, detail);
        }
        if let Some(replaced) = replaced {
            if !outbids(entry, replaced) {
                return rejected("replacement transaction underpriced", "");
            }
            if self.bytes - replaced.weight() + entry.weight() > self.limits.max_bytes {
                return rejected(POOL_FULL, "");
            }
            return Ok(());
        }
        let run_end = queue.map_or(account_nonce, |queue| account_nonce.max(queue.run_end));
        if entry.nonce.saturating_sub(run_end) > self.limits.max_gap {
            return rejected("nonce too high", format!("next nonce {run_end}, tx nonce {}", entry.nonce));
        }
        let held = queue.map_or(0, |queue| queue.by_nonce.len());
        if held >= self.limits.max_per_sender {
            return rejected("account limit exceeded", format!("pooled {held} txs"));
        }
        Ok(())
    }

    /// Chooses all victims first and evicts them then: a refusal must leave the pool as it was.
    fn make_room(&mut self, entry: &Waiting, is_executable: bool) -> Result<Vec<B256>, Rejection> {
        let mut count = (self.len() + 1).saturating_sub(self.limits.max_transactions);
        let mut size = (self.bytes + entry.weight()).saturating_sub(self.limits.max_bytes);
        if count == 0 && size == 0 {
            return Ok(Vec::new());
        }
        if !is_executable {
            return rejected(POOL_FULL, "only executable transactions may displace others");
        }
        let mut victims: Vec<Arc<Waiting>> = Vec::new();
        let mut chosen: HashSet<B256> = HashSet::new();
        let mut taken: Map<Address, usize> = Map::default();
        let mut surfaced: Vec<Cheap> = Vec::new();
        while count > 0 || size > 0 {
            let cheapest = self.pop_cheapest(&mut surfaced, &chosen);
            let payer = cheapest.filter(|found| found.sender != entry.sender && found.max_fee < entry.max_fee);
            let victim = payer.as_ref().and_then(|payer| {
                let offset = taken.entry(payer.sender).or_default();
                *offset += 1;
                self.queues.get(&payer.sender)?.get_from_end(*offset - 1).cloned()
            });
            let (Some(payer), Some(victim)) = (payer, victim) else {
                self.cheapest.extend(surfaced.into_iter().map(Reverse));
                return rejected(POOL_FULL, "");
            };
            chosen.insert(victim.hash);
            count = count.saturating_sub(1);
            size = size.saturating_sub(victim.weight());
            if victim.hash != payer.hash {
                // The cheap one stays and may cost its sender another.
                self.cheapest.extend(surfaced.pop().map(Reverse));
            }
            victims.push(victim);
        }
        for victim in &victims {
            self.take(&victim.sender, victim.nonce);
            self.drop_if_empty(&victim.sender);
        }
        Ok(victims.iter().map(|victim| victim.hash).collect())
    }

    /// Takes the cheapest waiting transaction off the heap, and notes in `surfaced` how to put it back.
    fn pop_cheapest(&mut self, surfaced: &mut Vec<Cheap>, passed_over: &HashSet<B256>) -> Option<Arc<Waiting>> {
        while let Some(Reverse(cheap)) = self.cheapest.pop() {
            if self.is_current(&cheap) {
                surfaced.push(cheap);
                if !passed_over.contains(&cheap.hash) {
                    return self.by_hash.get(&cheap.hash).cloned();
                }
            }
        }
        None
    }

    fn is_current(&self, cheap: &Cheap) -> bool {
        self.by_hash.get(&cheap.hash).is_some_and(|entry| entry.arrival == cheap.arrival.0)
    }

    fn compact_heap(&mut self) {
        if self.cheapest.len() > 2 * self.by_hash.len() + 64 {
            self.cheapest = self.by_hash.values().map(|entry| Reverse(Cheap::of(entry))).collect();
        }
    }

    /// Takes one transaction out of its queue and the pool; an emptied queue stays.
    fn take(&mut self, sender: &Address, nonce: u64) {
        if let Some(entry) = self.queues.get_mut(sender).and_then(|queue| queue.take(nonce)) {
            self.forget(&entry);
        }
    }

    fn forget(&mut self, entry: &Waiting) {
        if self.by_hash.remove(&entry.hash).is_some() {
            self.bytes -= entry.weight();
        }
    }

    fn drop_if_empty(&mut self, sender: &Address) {
        if self.queues.get(sender).is_some_and(|queue| queue.by_nonce.is_empty()) {
            self.queues.remove(sender);
        }
    }

    // --- offering transactions ---

    /// The best-paying executable transactions: by effective tip, then by arrival; nonces of a sender in order; sums of gas
    /// limits and bytes within the caps. What blocks of `ancestors` contain is passed over.
    pub fn select(&self, base_fee: u64, gas_limit: u64, max_bytes: usize, ancestors: &[B256]) -> (Batch, RawList) {
        let excluded: Vec<&Included> = ancestors.iter().filter_map(|block| self.included.get(block)).collect();
        let next = |queue: &'_ Queue, from: u64| -> Option<(u64, Reverse<u64>, Arc<Waiting>)> {
            let mut run = (from..).map_while(|nonce| queue.by_nonce.get(&nonce));
            let entry = run.find(|entry| !excluded.iter().any(|block| block.hashes.contains(&entry.hash)))?;
            Some((entry.effective_tip(base_fee)?, Reverse(entry.arrival), entry.clone()))
        };
        let mut heads: BinaryHeap<Head> =
            self.queues.values().filter_map(|queue| next(queue, queue.account_nonce)).map(Head).collect();
        let (mut batch, mut raws) = (Batch::default(), RawList::default());
        let mut gas_left = gas_limit;
        while gas_left > 0 {
            let Some(Head((_, _, entry))) = heads.pop() else { break };
            if entry.gas_limit > gas_left || raws.bytes().len() + entry.raw.len() > max_bytes {
                continue; // the sender's later nonces must wait with it
            }
            gas_left -= entry.gas_limit;
            raws.push(&entry.raw);
            batch.push(Entry { hash: entry.hash, transaction: entry.transaction.clone(), refusal: None });
            let after = entry.nonce.checked_add(1);
            let queue = self.queues.get(&entry.sender);
            heads.extend(queue.zip(after).and_then(|(queue, after)| next(queue, after)).map(Head));
        }
        (batch, raws)
    }

    // --- following the chain ---

    /// Notes what a block that is not final yet contains; undone by `on_discarded` or settled by `on_final`.
    pub fn mark_included(&mut self, block: B256, hashes: impl IntoIterator<Item = B256>) {
        let hashes = hashes.into_iter().collect();
        self.included.insert(block, Included { hashes, senders: BTreeSet::new() });
    }

    /// `mark_included` of the transactions at `indices` of a batch, whose senders are settled with the block.
    pub fn mark_batch(&mut self, block: B256, batch: &Batch, indices: &[u32]) {
        let mut included = Included::default();
        for entry in indices.iter().filter_map(|index| batch.entries().get(*index as usize)) {
            included.hashes.insert(entry.hash);
            let Some(transaction) = &entry.transaction else { continue };
            included.senders.insert(transaction.sender);
            // Whoever signed an authorization has a nonce less.
            included
                .senders
                .extend(transaction.recover_authorizations().iter().filter_map(|signed| signed.authority()));
        }
        self.included.insert(block, included);
    }

    pub fn on_discarded(&mut self, block: &B256) {
        self.included.remove(block);
    }

    /// Follows a final block by these accounts after it; gives the hashes that left.
    pub fn on_final(&mut self, block: &B256, accounts: &[(Address, u64, U256)]) -> Vec<B256> {
        self.included.remove(block);
        self.final_hash = *block;
        let moved = accounts.iter().flat_map(|(sender, nonce, balance)| self.move_sender(sender, *nonce, *balance));
        moved.collect()
    }

    /// `on_final` for a block told by `mark_batch`: reads the accounts of its senders.
    ///
    /// # Errors
    /// `MissingState` when the block is not held.
    pub fn settle(&mut self, block: &B256, view: impl FnOnce(&B256) -> Result<View>) -> Result<Vec<B256>> {
        let view = view(block)?;
        let senders = self.included.remove(block).unwrap_or_default().senders;
        let mut accounts = Vec::new();
        for sender in senders.into_iter().filter(|sender| self.queues.contains_key(sender)) {
            let account = view.account(&sender)?.unwrap_or_default();
            accounts.push((sender, account.nonce, account.balance));
        }
        Ok(self.on_final(block, &accounts))
    }

    /// Reads the accounts of the senders at `indices` of a batch again, whose transactions a builder could not use: code that
    /// acts for an account (EIP-7702) may have spent what its transactions need, and no block names it as a sender.
    ///
    /// # Errors
    /// `MissingState` when the final block is not held.
    pub fn refresh(
        &mut self,
        batch: &Batch,
        indices: &[u32],
        view: impl FnOnce(&B256) -> Result<View>,
    ) -> Result<Vec<B256>> {
        let view = view(&self.final_hash)?;
        let entries = indices.iter().filter_map(|index| batch.entries().get(*index as usize));
        let senders: BTreeSet<Address> =
            entries.filter_map(|entry| entry.transaction.as_ref()).map(|transaction| transaction.sender).collect();
        let mut removed = Vec::new();
        for sender in senders {
            let account = view.account(&sender)?.unwrap_or_default();
            removed.extend(self.move_sender(&sender, account.nonce, account.balance));
        }
        Ok(removed)
    }

    /// Judge newcomers by the accounts after `block` from now on.
    pub fn start_at(&mut self, block: B256) {
        self.final_hash = block;
    }

    /// Drops transactions that can never be proposed; unknown hashes are ignored.
    pub fn remove(&mut self, hashes: impl IntoIterator<Item = B256>) {
        for hash in hashes {
            if let Some(entry) = self.by_hash.get(&hash).cloned() {
                self.take(&entry.sender, entry.nonce);
                self.drop_if_empty(&entry.sender);
            }
        }
    }

    fn move_sender(&mut self, sender: &Address, nonce: u64, balance: U256) -> Vec<B256> {
        let gone = self.queues.get_mut(sender).map(|queue| queue.move_to(nonce, balance)).unwrap_or_default();
        gone.iter().for_each(|entry| self.forget(entry));
        self.drop_if_empty(sender);
        gone.iter().map(|entry| entry.hash).collect()
    }
}

/// The next transaction of a sender: the best tip first, of equals the one that came first.
struct Head((u64, Reverse<u64>, Arc<Waiting>));

impl Head {
    fn key(&self) -> (u64, Reverse<u64>) {
        (self.0.0, self.0.1)
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

fn outbids(entry: &Waiting, replaced: &Waiting) -> bool {
    let covers = |new: u64, old: u64| new > old && u128::from(new) >= u128::from(old) * REPLACEMENT_PERCENT / 100;
    covers(entry.max_fee, replaced.max_fee) && covers(entry.tip, replaced.tip)
}
