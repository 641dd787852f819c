//! Reading state tests: the JSON of ethereum/tests and execution-spec-tests, and the transactions that it spells out.
//!
//! A document holds named tests; a test has one state before, a transaction with lists of data, gas limits and values,
//! and for every revision the expectations for some of their combinations. Each combination is a vector.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use shardyard_core::block::BlockEnv;
use shardyard_core::evm::{Bytecode, HISTORY, Revision, SpecId};
use shardyard_core::state::{Account, Changes};
use shardyard_core::transaction::{Blobs, Transaction};

/// The chain of every vector.
pub const CHAIN_ID: u64 = 1;
/// EIP-2935; BLOCKHASH reads what lies there.
const HISTORY_WINDOW: u64 = 8191;

/// A value written as text, hexadecimal as a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spelled<T>(pub T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Spelled<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        text.parse().map(Self).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

pub type Document = BTreeMap<String, Test>;

#[derive(Debug, Deserialize)]
pub struct Test {
    pub env: Env,
    pub pre: BTreeMap<Spelled<Address>, Present>,
    pub transaction: Template,
    pub post: BTreeMap<String, Vec<Expected>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Env {
    current_coinbase: Spelled<Address>,
    #[serde(default)]
    current_difficulty: Spelled<U256>,
    current_gas_limit: Spelled<U256>,
    current_number: Spelled<U256>,
    current_timestamp: Spelled<U256>,
    #[serde(default)]
    current_base_fee: Spelled<U256>,
    current_random: Option<Spelled<U256>>,
    #[serde(default)]
    current_excess_blob_gas: Spelled<U256>,
}

#[derive(Debug, Deserialize)]
pub struct Present {
    nonce: Spelled<U256>,
    balance: Spelled<U256>,
    code: Spelled<Bytes>,
    storage: BTreeMap<Spelled<U256>, Spelled<U256>>,
}

/// Numbers stay text: some are written to be refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    sender: Spelled<Address>,
    nonce: String,
    gas_price: Option<String>,
    max_fee_per_gas: Option<String>,
    max_priority_fee_per_gas: Option<String>,
    to: String,
    data: Vec<Spelled<Bytes>>,
    gas_limit: Vec<String>,
    value: Vec<String>,
    #[serde(default)]
    access_lists: Vec<Option<Vec<Accessed>>>,
    blob_versioned_hashes: Option<Vec<Spelled<B256>>>,
    max_fee_per_blob_gas: Option<String>,
    authorization_list: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Accessed {
    address: Spelled<Address>,
    storage_keys: Vec<Spelled<B256>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Indexes {
    pub data: usize,
    pub gas: usize,
    pub value: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    pub hash: Spelled<B256>,
    pub logs: Spelled<B256>,
    pub indexes: Indexes,
    pub txbytes: Option<Spelled<Bytes>>,
    pub expect_exception: Option<String>,
}

/// The revision of a name in the tests, if the EVM knows it.
pub fn find_spec(name: &str) -> Option<SpecId> {
    Some(match name {
        "Frontier" => SpecId::FRONTIER,
        "Homestead" => SpecId::HOMESTEAD,
        "EIP150" => SpecId::TANGERINE,
        "EIP158" => SpecId::SPURIOUS_DRAGON,
        "Byzantium" => SpecId::BYZANTIUM,
        // Constantinople lived on no chain without Petersburg's correction, nor does it in the EVM.
        "Constantinople" | "ConstantinopleFix" => SpecId::PETERSBURG,
        "Istanbul" => SpecId::ISTANBUL,
        "Berlin" => SpecId::BERLIN,
        "London" => SpecId::LONDON,
        "Paris" | "Merge" => SpecId::MERGE,
        "Shanghai" => SpecId::SHANGHAI,
        "Cancun" => SpecId::CANCUN,
        "Prague" => SpecId::PRAGUE,
        "Osaka" => SpecId::OSAKA,
        _ => return None,
    })
}

fn number(what: &str, text: &str) -> Result<U256, String> {
    text.parse().map_err(|error| format!("{what} {text:?}: {error}"))
}

fn narrow<T: TryFrom<U256>>(what: &str, number: U256) -> Result<T, String> {
    T::try_from(number).map_err(|_| format!("{what} {number} is out of range"))
}

fn number_of<T: TryFrom<U256>>(what: &str, text: &str) -> Result<T, String> {
    narrow(what, number(what, text)?)
}

impl Env {
    /// # Errors
    /// When a number is larger than any block's.
    pub fn block(&self, spec: SpecId) -> Result<(BlockEnv, Revision), String> {
        let has_base_fee = spec.is_enabled_in(SpecId::LONDON);
        let env = BlockEnv {
            number: narrow("block number", self.current_number.0)?,
            timestamp: narrow("timestamp", self.current_timestamp.0)?,
            gas_limit: narrow("block gas limit", self.current_gas_limit.0)?,
            base_fee: if has_base_fee { narrow("base fee", self.current_base_fee.0)? } else { 0 },
            beneficiary: self.current_coinbase.0,
            prevrandao: self.current_random.unwrap_or(self.current_difficulty).0.into(),
            parent_hash: B256::ZERO,
            beacon_root: B256::ZERO,
            beacon_height: 0,
            inbox_gas: 0,
            link_base_fees: Vec::new(),
        };
        let excess_blob_gas = narrow("excess blob gas", self.current_excess_blob_gas.0)?;
        Ok((env, Revision { spec, excess_blob_gas, difficulty: self.current_difficulty.0 }))
    }

    /// The hashes of the blocks before, which the tests define as the hash of their number in decimal digits; kept where
    /// BLOCKHASH looks for them.
    pub fn history(&self) -> Changes {
        let number: u64 = self.current_number.0.saturating_to();
        let slot = |height: u64| (U256::from(height % HISTORY_WINDOW), keccak256(height.to_string()).into());
        let mut changes = Changes::default();
        changes.storage.insert(HISTORY, (number.saturating_sub(256)..number).map(slot).collect());
        changes
    }
}

impl Test {
    /// The state before.
    ///
    /// # Errors
    /// When a nonce or a code could not be.
    pub fn state(&self) -> Result<Changes, String> {
        let mut changes = Changes::default();
        for (address, present) in &self.pre {
            let nonce = narrow("nonce", present.nonce.0)?;
            let mut account = Account { nonce, balance: present.balance.0, ..Account::default() };
            if !present.code.0.is_empty() {
                let code = Bytecode::new_raw_checked(present.code.0.clone()).map_err(|error| error.to_string())?;
                account.code_hash = keccak256(&present.code.0);
                changes.codes.insert(account.code_hash, code);
            }
            if !account.is_empty() {
                changes.accounts.insert(address.0, Some(account));
            }
            let slots = present.storage.iter().filter(|(_, value)| !value.0.is_zero());
            changes.storage.insert(address.0, slots.map(|(slot, value)| (slot.0, value.0)).collect());
        }
        changes.storage.retain(|_, slots| !slots.is_empty());
        Ok(changes)
    }
}

impl Template {
    /// The transaction of a vector, from its fields; where its encoding can be read for our chains too, both must agree.
    ///
    /// # Errors
    /// The inner one: no transaction can have these fields, so it is refused. The outer one: the two forms differ.
    pub fn transaction(&self, expected: &Expected) -> Result<Result<Transaction, String>, String> {
        let encoded = expected.txbytes.as_ref().map(|raw| Transaction::decode(&raw.0, keccak256(&raw.0)));
        if self.authorization_list.is_some() {
            // Their fields come in several dialects; the encoding is the same for all.
            return match encoded {
                Some(read) => Ok(read.map_err(|refusal| refusal.to_string())),
                None => Err("a set-code transaction without txbytes".into()),
            };
        }
        let built = self.build(expected.indexes);
        if let (Some(Ok(read)), Ok(built)) = (&encoded, &built) {
            check_same(read, built)?;
        }
        if let (Some(Ok(_)), Err(reason)) = (&encoded, &built) {
            return Err(format!("its encoding is read, its fields are not: {reason}"));
        }
        Ok(built)
    }

    fn build(&self, indexes: Indexes) -> Result<Transaction, String> {
        fn at<'a, T>(what: &str, list: &'a [T], index: usize) -> Result<&'a T, String> {
            list.get(index).ok_or_else(|| format!("{what} has {} entries, got index {index}", list.len()))
        }
        let access_list = self.access_lists.get(indexes.data).cloned().flatten();
        let tip = self.max_priority_fee_per_gas.as_deref().map(|text| number_of("priority fee", text)).transpose()?;
        let fee = self.max_fee_per_gas.as_deref().or(self.gas_price.as_deref());
        let blobs = match (&self.blob_versioned_hashes, &self.max_fee_per_blob_gas) {
            (Some(hashes), Some(fee)) => Some(Arc::new(Blobs {
                hashes: hashes.iter().map(|hash| hash.0).collect(),
                max_fee: number_of("blob fee", fee)?,
            })),
            _ => None,
        };
        let tx_type = match (&blobs, tip, &access_list) {
            (Some(_), _, _) => 3,
            (None, Some(_), _) => 2,
            (None, None, Some(_)) => 1,
            (None, None, None) => 0,
        };
        let to = match self.to.as_str() {
            "" => TxKind::Create,
            text => TxKind::Call(text.parse().map_err(|error| format!("recipient {text:?}: {error}"))?),
        };
        if tx_type == 3 && to.is_create() {
            return Err("a blob transaction has a recipient, got none".into());
        }
        let accessed = |Accessed { address, storage_keys }| AccessListItem {
            address: address.0,
            storage_keys: storage_keys.into_iter().map(|key| key.0).collect(),
        };
        Ok(Transaction {
            hash: B256::ZERO,
            sender: self.sender.0,
            tx_type,
            chain_id: (tx_type != 0).then_some(CHAIN_ID),
            nonce: number_of("nonce", &self.nonce)?,
            gas_limit: number_of("gas limit", at("gasLimit", &self.gas_limit, indexes.gas)?)?,
            max_fee: number_of("gas price", fee.ok_or("no gas price")?)?,
            tip,
            to,
            value: number("value", at("value", &self.value, indexes.value)?)?,
            input: at("data", &self.data, indexes.data)?.0.clone(),
            access_list: AccessList(access_list.unwrap_or_default().into_iter().map(accessed).collect()),
            authorizations: Default::default(),
            signed_authorizations: Vec::new(),
            blobs,
            signature: Signature::new(U256::ZERO, U256::ZERO, false),
            intrinsic: Default::default(),
        })
    }
}

fn check_same(read: &Transaction, built: &Transaction) -> Result<(), String> {
    let fields = |of: &Transaction| {
        let head = (of.sender, of.tx_type, of.nonce, of.gas_limit, of.max_fee, of.tip, of.to, of.value);
        (head, of.input.clone(), of.access_list.clone())
    };
    let (read, built) = (fields(read), fields(built));
    if read == built { Ok(()) } else { Err(format!("its encoding is read as {read:?}, its fields are {built:?}")) }
}
