//! Genesis allocation: the JSON map of address to balance, nonce, code and storage that Ethereum tools use.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::Deserialize;
use serde_json::Value;

use super::{Account, Changes, Slots};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    balance: Value,
    #[serde(default)]
    nonce: Value,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    storage: BTreeMap<String, String>,
}

fn malformed(what: &str, address: &str, reason: impl std::fmt::Display) -> CoreError {
    CoreError::Malformed(format!("genesis {what} of {address}: {reason}"))
}

/// # Errors
/// `Malformed` names the account and the field that does not parse.
pub fn parse_genesis(json: &[u8]) -> Result<Changes> {
    let entries: BTreeMap<String, Entry> =
        serde_json::from_slice(json).map_err(|error| CoreError::Malformed(format!("genesis allocation: {error}")))?;
    let mut changes = Changes::default();
    for (name, entry) in &entries {
        let address: Address = name.parse().map_err(|error| malformed("address", name, error))?;
        let code = parse_code(entry).map_err(|reason| malformed("code", name, reason))?;
        let mut account = Account {
            balance: parse_number(&entry.balance).map_err(|reason| malformed("balance", name, reason))?,
            nonce: parse_nonce(&entry.nonce).map_err(|reason| malformed("nonce", name, reason))?,
            ..Account::default()
        };
        if let Some(code) = code {
            account.code_hash = code.hash_slow();
            changes.codes.insert(account.code_hash, code);
        }
        let slots = parse_storage(entry).map_err(|reason| malformed("storage", name, reason))?;
        // EIP-7610: no contract could ever have left such an account, and creating one there would inherit its slots.
        if !slots.is_empty() && !account.has_code() {
            return Err(malformed("storage", name, "an account without code cannot have storage"));
        }
        if !slots.is_empty() {
            changes.storage.insert(address, slots);
        }
        if !account.is_empty() && changes.accounts.insert(address, Some(account)).is_some() {
            return Err(malformed("address", name, "given twice"));
        }
    }
    Ok(changes)
}

fn parse_number(value: &Value) -> Result<U256, String> {
    match value {
        Value::Null => Ok(U256::ZERO),
        Value::String(text) => text.parse::<U256>().map_err(|error| format!("{text:?}: {error}")),
        Value::Number(number) => {
            number.as_u64().map(U256::from).ok_or_else(|| format!("{number} is not a non-negative integer"))
        }
        other => Err(format!("{other} is not a number")),
    }
}

fn parse_nonce(value: &Value) -> Result<u64, String> {
    let number = parse_number(value)?;
    u64::try_from(number).map_err(|_| format!("{number} does not fit 64 bits"))
}

fn parse_code(entry: &Entry) -> Result<Option<Bytecode>, String> {
    let Some(text) = entry.code.as_deref().filter(|text| !matches!(*text, "" | "0x")) else {
        return Ok(None);
    };
    let bytes: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    Bytecode::new_raw_checked(bytes).map(Some).map_err(|error| error.to_string())
}

fn parse_storage(entry: &Entry) -> Result<Slots, String> {
    let mut slots = Slots::default();
    for (slot, value) in &entry.storage {
        let (slot, value) = (parse_word(slot)?, parse_word(value)?);
        if !value.is_zero() {
            slots.insert(slot, value);
        }
    }
    Ok(slots)
}

/// A storage word: 32 hex bytes, or any shorter number.
fn parse_word(text: &str) -> Result<U256, String> {
    text.parse::<B256>().map(Into::into).or_else(|_| text.parse::<U256>()).map_err(|error| format!("{text:?}: {error}"))
}
