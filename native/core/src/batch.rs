//! Batches: many raw transactions decoded, hashed and recovered at once, on all workers, each at most once per process.
//!
//! Recovery costs more than executing a transfer, so what it found is kept in one bounded cache for the whole process:
//! ingress, the builder and the validator of co-hosted replicas all ask for the same transactions.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alloy_primitives::B256;
use rayon::prelude::*;

use crate::error::{CoreError, Result};
use crate::hash::{keccak256_many, pieces};
use crate::pool::pool;
use crate::state::Map;
use crate::transaction::{Refusal, Transaction};

/// Entries and bytes of one generation of the cache; two generations are held.
const GENERATION_ENTRIES: usize = 65_536;
const GENERATION_BYTES: usize = 64 << 20;
/// Fewer transactions than this are not worth handing to workers.
const PARALLEL_TRANSACTIONS: usize = 8;
/// Transactions that one worker hashes side by side.
const HASHED_TOGETHER: usize = 32;

/// One transaction of a batch.
#[derive(Debug, Clone)]
pub struct Entry {
    pub hash: B256,
    /// What was read, even when it is then refused for this chain.
    pub transaction: Option<Arc<Transaction>>,
    pub refusal: Option<Refusal>,
}

#[derive(Debug, Clone, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    /// Gas limits of all, as long as 64 bits hold the sum.
    gas_limits: u64,
    /// Whether any has authorizations (EIP-7702).
    sets_code: bool,
}

/// Two generations: when the young one is full the old one is forgotten. A look-up promotes.
#[derive(Default)]
struct Cache {
    young: Map<B256, Arc<Transaction>>,
    old: Map<B256, Arc<Transaction>>,
    young_bytes: usize,
}

impl Cache {
    fn find(&mut self, hash: &B256) -> Option<Arc<Transaction>> {
        if let Some(found) = self.young.get(hash) {
            return Some(found.clone());
        }
        let found = self.old.remove(hash)?;
        self.insert(found.clone());
        Some(found)
    }

    fn insert(&mut self, transaction: Arc<Transaction>) {
        let bytes = 512 + transaction.input.len() + transaction.size_of_lists();
        if self.young.len() >= GENERATION_ENTRIES || self.young_bytes + bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(transaction.hash, transaction).is_none() {
            self.young_bytes += bytes;
        }
    }
}

static CACHE: OnceLock<Mutex<Cache>> = OnceLock::new();

fn with_cache<T>(work: impl FnOnce(&mut Cache) -> T) -> T {
    work(&mut CACHE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner))
}

impl FromIterator<Entry> for Batch {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut batch = Self { entries: Vec::with_capacity(entries.size_hint().0), ..Self::default() };
        entries.for_each(|entry| batch.push(entry));
        batch
    }
}

impl Batch {
    pub fn push(&mut self, entry: Entry) {
        if let Some(transaction) = &entry.transaction {
            self.gas_limits = self.gas_limits.saturating_add(transaction.gas_limit);
            self.sets_code |= transaction.tx_type == 4;
        }
        self.entries.push(entry);
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn gas_limits(&self) -> u64 {
        self.gas_limits
    }

    pub fn sets_code(&self) -> bool {
        self.sets_code
    }

    /// # Errors
    /// `Malformed` when the offsets do not cut the blob; a bad transaction is only an entry with a refusal.
    pub fn prepare(raw: &[u8], offsets: &[usize], chain_id: u64, threads: usize) -> Result<Self> {
        let pieces = pieces(raw, offsets).map_err(CoreError::Malformed)?;
        let batch = Self::of_pieces(&pieces, chain_id, threads, 0);
        batch.recover_authorizations(threads, |_| true);
        Ok(batch)
    }

    /// Finds out who signed the authorizations of those transactions that `is_wanted` names by their places.
    pub fn recover_authorizations(&self, threads: usize, is_wanted: impl Fn(usize) -> bool) {
        if !self.sets_code {
            return;
        }
        let wanted =
            self.entries.iter().enumerate().filter(|(place, entry)| entry.refusal.is_none() && is_wanted(*place));
        let wanted = wanted.filter_map(|(_, entry)| entry.transaction.as_ref());
        let wanted: Vec<&Arc<Transaction>> =
            wanted.filter(|transaction| !transaction.signed_authorizations.is_empty()).collect();
        on_workers(&wanted, threads, |transaction| transaction.recover_authorizations().len());
    }

    /// The batch of these raw transactions, whoever signed their authorizations; unknown ones that offer less than `least_fee`
    /// per gas are refused unrecovered.
    pub fn of_pieces(pieces: &[&[u8]], chain_id: u64, threads: usize, least_fee: u128) -> Self {
        let together: Vec<&[&[u8]]> = pieces.chunks(HASHED_TOGETHER).collect();
        let hashes = on_workers(&together, threads, |messages| keccak256_many(messages)).concat();
        let known: Vec<Option<Arc<Transaction>>> =
            with_cache(|cache| hashes.iter().map(|hash| cache.find(hash)).collect());
        let missing: Vec<usize> = (0..pieces.len()).filter(|i| known[*i].is_none()).collect();
        let decoded = on_workers(&missing, threads, |i| {
            Transaction::decode_paying(pieces[*i], hashes[*i], least_fee).map(Arc::new)
        });
        with_cache(|cache| decoded.iter().flatten().for_each(|transaction| cache.insert(transaction.clone())));
        let mut decoded = decoded.into_iter();
        hashes
            .into_iter()
            .zip(known)
            .map(|(hash, known)| match known.map_or_else(|| decoded.next().unwrap_or(Err(Refusal::Sender)), Ok) {
                Ok(transaction) => {
                    let refusal = transaction.check_chain(chain_id).err();
                    Entry { hash, transaction: Some(transaction), refusal }
                }
                Err(refusal) => Entry { hash, transaction: None, refusal: Some(refusal) },
            })
            .collect()
    }

    /// Fixed-width fields of all transactions, one after the other; a transaction that was not read gives zeros.
    pub fn pack<const N: usize>(&self, field: impl Fn(&Transaction) -> [u8; N]) -> Vec<u8> {
        let packed = self.entries.iter().map(|entry| entry.transaction.as_deref().map_or([0; N], &field));
        packed.flatten().collect()
    }
}

fn on_workers<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    match pool(threads) {
        Some(pool) if items.len() >= PARALLEL_TRANSACTIONS => pool.install(|| items.par_iter().map(work).collect()),
        _ => items.iter().map(work).collect(),
    }
}

#[cfg(test)]
mod tests {
    use alloy_consensus::TxEip7702;
    use alloy_consensus::transaction::RlpEcdsaEncodableTx;
    use alloy_eips::eip7702::{Authorization, SignedAuthorization};
    use alloy_primitives::{Address, Signature, U256};

    use super::*;

    fn transaction(number: u64) -> Arc<Transaction> {
        Arc::new(Transaction { input: vec![0; 1000].into(), ..Transaction::unsigned(number) })
    }

    #[test]
    fn a_batch_knows_what_its_transactions_may_use_and_whether_any_sets_code() {
        let entry = |gas_limit: u64, tx_type: u8| {
            let transaction = Transaction { gas_limit, tx_type, ..Transaction::unsigned(gas_limit) };
            Entry { hash: transaction.hash, transaction: Some(Arc::new(transaction)), refusal: None }
        };
        let unread = Entry { hash: B256::ZERO, transaction: None, refusal: Some(Refusal::Sender) };
        let batch: Batch = [entry(21_000, 2), unread, entry(50_000, 0)].into_iter().collect();
        assert_eq!((batch.entries.len(), batch.gas_limits(), batch.sets_code()), (3, 71_000, false));
        let batch: Batch = [entry(u64::MAX, 4), entry(1, 2)].into_iter().collect();
        assert_eq!((batch.gas_limits(), batch.sets_code()), (u64::MAX, true));
        // However it came about: a pool picks one after the other.
        let mut batch = Batch::default();
        [entry(30_000, 2), entry(12_000, 4)].into_iter().for_each(|entry| batch.push(entry));
        assert_eq!((batch.entries().len(), batch.gas_limits(), batch.sets_code()), (2, 42_000, true));
    }

    /// Signed by somebody: a signature of these numbers fits any message.
    fn set_code(number: u64, authorizations: usize) -> Vec<u8> {
        let inner = Authorization { chain_id: U256::from(31_337), address: Address::ZERO, nonce: 0 };
        let signed = SignedAuthorization::new_unchecked(inner, 0, U256::ONE, U256::ONE);
        let transaction = TxEip7702 {
            chain_id: 31_337,
            nonce: number,
            gas_limit: 200_000_000,
            authorization_list: vec![signed; authorizations],
            ..TxEip7702::default()
        };
        let mut raw = Vec::new();
        transaction.eip2718_encode(&Signature::new(U256::ONE, U256::ONE, false), &mut raw);
        raw
    }

    #[test]
    fn who_signed_authorizations_is_found_out_when_somebody_has_to_know() {
        let raw = set_code(0, 100);
        let is_known = |batch: &Batch| {
            let transaction = batch.entries()[0].transaction.as_ref().unwrap();
            transaction.authorizations.get().map(Vec::len)
        };
        let batch = Batch::of_pieces(&[&raw], 31_337, 1, 0);
        assert_eq!((batch.entries()[0].refusal.clone(), is_known(&batch)), (None, None));
        batch.recover_authorizations(1, |_| false);
        assert_eq!(is_known(&batch), None);
        batch.recover_authorizations(1, |place| place == 0);
        assert_eq!(is_known(&batch), Some(100));
        let raw = set_code(1, 100);
        assert_eq!(is_known(&Batch::prepare(&raw, &[0, raw.len()], 31_337, 1).unwrap()), Some(100));
    }

    #[test]
    fn the_cache_counts_lists_as_they_are_held() {
        let mut cache = Cache::default();
        for number in 0..200 {
            let raw = set_code(number, 4000);
            cache.insert(Arc::new(Transaction::decode(&raw, B256::from(U256::from(number))).unwrap()));
        }
        let held: usize =
            cache.young.values().chain(cache.old.values()).map(|transaction| transaction.size_of_lists()).sum();
        assert!(held <= 2 * GENERATION_BYTES, "{held}");
    }

    #[test]
    fn the_cache_stays_within_two_generations_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let kept = transaction(0);
        cache.insert(kept.clone());
        for number in 1..400_000 {
            cache.insert(transaction(number));
            if number % 1000 == 0 {
                assert!(cache.find(&kept.hash).is_some());
            }
        }
        assert!(cache.young.len() <= GENERATION_ENTRIES && cache.old.len() <= GENERATION_ENTRIES);
        assert!(cache.young_bytes <= GENERATION_BYTES);
        assert!(cache.find(&B256::with_last_byte(1)).is_none());
    }
}
