//! The state of one shard: accounts, storage and code; what a block changed; and the commitment to it all.
//!
//! `store` keeps one finalised base, the overlays above it and the undo records below it; `genesis` and `snapshot` turn
//! it from and to bytes. A block's changes are absolute new values, so a diff can be applied without knowing the old.

mod block_state;
mod genesis;
mod snapshot;
mod store;
mod table;

use std::collections::HashMap;

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256};
use indexmap::IndexMap;

use crate::codec::{Reader, Writer};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::lthash::{LtHash, Sum};

pub use block_state::{BlockState, Finished, Part, Touched};
pub use genesis::parse_genesis;
pub use snapshot::{read_snapshot, write_snapshot};
pub use store::{Overlay, Store, View};
pub use table::Word;

/// Keys are chosen by whoever sends transactions, so the hasher is seeded per process. Nothing may depend on the order.
pub type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
pub type Slots = Map<U256, U256>;
/// Entries lie together, and the table only says where: quicker to fill and to sort than a map of entries that are large.
pub type Accounts = IndexMap<Address, Option<Account>, foldhash::fast::RandomState>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub nonce: u64,
    pub balance: U256,
    pub code_hash: B256,
}

impl Default for Account {
    fn default() -> Self {
        Self { nonce: 0, balance: U256::ZERO, code_hash: KECCAK256_EMPTY }
    }
}

impl Account {
    /// Empty in the sense of EIP-161: such an account does not exist.
    pub fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && !self.has_code()
    }

    pub fn has_code(&self) -> bool {
        self.code_hash != KECCAK256_EMPTY
    }
}

/// What a location is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Account(Address),
    Slot(Address, U256),
}

/// Where state is read from: a view of the store, a block's own state, or one version of a block that runs in parallel.
pub trait Source {
    fn account(&mut self, address: &Address) -> Result<Option<Account>>;
    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256>;
    /// All non-zero slots of one account; needed only when an account is created or destroyed.
    fn slots(&mut self, address: &Address) -> Result<Slots>;
    /// # Errors
    /// `Internal` when an account names a code nobody stored.
    fn code(&mut self, hash: &B256) -> Result<Bytecode>;
}

/// Where an execution's changes go.
pub trait Sink {
    /// Sets an account; an empty one is gone (EIP-161).
    fn set_account(&mut self, address: &Address, account: Option<Account>) -> Result<()>;
    fn set_slot(&mut self, address: &Address, slot: &U256, value: U256) -> Result<()>;
    /// Clears an account's storage: it was destroyed, or created anew.
    fn wipe_storage(&mut self, address: &Address) -> Result<()>;
    fn add_code(&mut self, hash: B256, code: Bytecode);
}

/// What one block (or an undo record) sets: `None` and zero mean "gone".
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub accounts: Accounts,
    pub storage: Map<Address, Slots>,
    pub codes: Map<B256, Bytecode>,
}

/// One set element of the commitment, written into a reused buffer.
#[derive(Debug, Default)]
pub struct Element(Vec<u8>);

impl Element {
    pub fn account(&mut self, address: &Address, account: &Account) -> &[u8] {
        self.0.clear();
        self.0.push(0);
        self.0.extend_from_slice(address.as_slice());
        self.0.extend_from_slice(&account.nonce.to_be_bytes());
        self.0.extend_from_slice(&account.balance.to_be_bytes::<32>());
        self.0.extend_from_slice(account.code_hash.as_slice());
        &self.0
    }

    pub fn slot(&mut self, address: &Address, slot: &U256, value: &U256) -> &[u8] {
        self.0.clear();
        self.0.push(1);
        self.0.extend_from_slice(address.as_slice());
        self.0.extend_from_slice(&slot.to_be_bytes::<32>());
        self.0.extend_from_slice(&value.to_be_bytes::<32>());
        &self.0
    }
}

/// One touched location with its value before and after, as the commitment needs it.
#[derive(Debug, Clone, Copy)]
pub enum Update {
    Account(Address, Option<Account>, Option<Account>),
    Slot(Address, U256, U256, U256),
}

impl Update {
    fn apply(&self, sum: &mut Sum, element: &mut Element) {
        match self {
            Self::Account(address, before, after) => {
                before.iter().for_each(|account| sum.remove(element.account(address, account)));
                after.iter().for_each(|account| sum.add(element.account(address, account)));
            }
            Self::Slot(address, slot, before, after) => {
                if !before.is_zero() {
                    sum.remove(element.slot(address, slot, before));
                }
                if !after.is_zero() {
                    sum.add(element.slot(address, slot, after));
                }
            }
        }
    }
}

/// Below this many updates a thread costs more than it saves.
const PARALLEL_UPDATES: usize = 512;

/// The accumulator after all updates; their order does not matter, so threads may share the work.
pub fn commit(accumulator: &LtHash, parts: &[&[Update]], threads: usize) -> LtHash {
    let partial = |part: &[Update]| {
        let (mut sum, mut element) = (Sum::default(), Element::default());
        part.iter().for_each(|update| update.apply(&mut sum, &mut element));
        sum.finish()
    };
    let mut result = accumulator.clone();
    let count: usize = parts.iter().map(|part| part.len()).sum();
    match crate::pool::pool(threads) {
        Some(pool) if count >= PARALLEL_UPDATES => {
            use rayon::prelude::*;
            let chunk = count.div_ceil(threads * 4);
            let chunks = parts.par_iter().flat_map(|part| part.par_chunks(chunk));
            let sums: Vec<LtHash> = pool.install(|| chunks.map(partial).collect());
            sums.iter().for_each(|sum| result.merge(sum));
        }
        _ => parts.iter().for_each(|part| result.merge(&partial(part))),
    }
    result
}

impl Changes {
    /// Canonical bytes: [accounts, storage, codes], each sorted by key, so that equal changes have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(128 * (self.accounts.len() + self.storage.len()) + 64);
        writer.array(3).array(self.accounts.len());
        for (address, account) in sorted_accounts(&self.accounts) {
            encode_account(&mut writer, address, account.as_ref());
        }
        let mut storage: Vec<_> = self.storage.iter().collect();
        storage.sort_unstable_by_key(|(address, _)| **address);
        writer.array(storage.len());
        for (address, slots) in storage {
            writer.array(2).bytes(address.as_slice());
            encode_slots(&mut writer, &sorted_slots(slots));
        }
        let mut codes: Vec<_> = self.codes.iter().collect();
        codes.sort_unstable_by_key(|(hash, _)| **hash);
        writer.array(codes.len());
        for (_, code) in codes {
            writer.bytes(code.original_byte_slice());
        }
        writer.finish()
    }

    /// # Errors
    /// When the bytes are not the canonical form of any changes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut reader, mut changes) = (Reader::new(bytes), Self::default());
        reader.array_of(3)?;
        for _ in 0..reader.array()? {
            let (address, account) = decode_account(&mut reader)?;
            changes.accounts.insert(address, account);
        }
        for _ in 0..reader.array()? {
            reader.array_of(2)?;
            let address = reader.address()?;
            changes.storage.insert(address, decode_slots(&mut reader)?);
        }
        for _ in 0..reader.array()? {
            let code = decode_code(reader.bytes()?)?;
            changes.codes.insert(code.hash_slow(), code);
        }
        reader.finish()?;
        if changes.encode() == bytes {
            Ok(changes)
        } else {
            Err(CoreError::Malformed("diff is not in canonical order".into()))
        }
    }
}

/// By address.
fn sorted_accounts(accounts: &Accounts) -> impl Iterator<Item = (&Address, &Option<Account>)> {
    // The first bytes mostly tell the order, and few words are quicker to move than to follow.
    let prefix = |address: &Address| u64::from_be_bytes(std::array::from_fn(|byte| address[byte]));
    let address = |place: u32| accounts.get_index(place as usize).map(|(address, _)| address);
    let mut order: Vec<(u64, u32)> = accounts.keys().map(prefix).zip(0..).collect();
    order.sort_unstable_by(|(prefix, place), (other, at)| {
        prefix.cmp(other).then_with(|| address(*place).cmp(&address(*at)))
    });
    order.into_iter().filter_map(|(_, place)| accounts.get_index(place as usize))
}

fn sorted_slots(slots: &Slots) -> Vec<(U256, U256)> {
    let mut sorted: Vec<_> = slots.iter().map(|(slot, value)| (*slot, *value)).collect();
    sorted.sort_unstable_by_key(|(slot, _)| *slot);
    sorted
}

/// [address] for an account that is gone, [address, nonce, balance, code hash] otherwise.
fn encode_account(writer: &mut Writer, address: &Address, account: Option<&Account>) {
    match account {
        None => {
            writer.array(1).bytes(address.as_slice());
        }
        Some(account) => {
            writer.array(4).bytes(address.as_slice()).uint(account.nonce);
            writer.u256(&account.balance).bytes(account.code_hash.as_slice());
        }
    }
}

fn decode_account(reader: &mut Reader<'_>) -> Result<(Address, Option<Account>)> {
    match reader.array()? {
        1 => Ok((reader.address()?, None)),
        4 => {
            let address = reader.address()?;
            let account = Account { nonce: reader.uint()?, balance: reader.u256()?, code_hash: reader.hash()? };
            if account.is_empty() {
                return Err(CoreError::Malformed(format!("account {address} is empty")));
            }
            Ok((address, Some(account)))
        }
        fields => Err(CoreError::Malformed(format!("an account has 1 or 4 fields, got {fields}"))),
    }
}

fn encode_slots(writer: &mut Writer, slots: &[(U256, U256)]) {
    writer.array(slots.len());
    for (slot, value) in slots {
        writer.array(2).u256(slot).u256(value);
    }
}

fn decode_slots(reader: &mut Reader<'_>) -> Result<Slots> {
    let mut slots = Slots::default();
    for _ in 0..reader.array()? {
        reader.array_of(2)?;
        slots.insert(reader.u256()?, reader.u256()?);
    }
    Ok(slots)
}

fn decode_code(bytes: &[u8]) -> Result<Bytecode> {
    Bytecode::new_raw_checked(bytes.to_vec().into())
        .map_err(|reason| CoreError::Malformed(format!("contract code refused: {reason}")))
}
