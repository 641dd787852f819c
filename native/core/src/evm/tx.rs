//! What revm is given to run: our transactions as they stand, lent and not copied, and calls that nobody signed.

use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_eips::eip7702::RecoveredAuthorization;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use revm::context::Transaction as RevmTransaction;
use revm::handler::SystemCallTx;

use crate::transaction::Transaction;

/// What revm's own system calls may use (EIP-4788, EIP-2935).
const SYSTEM_CALL_GAS: u64 = 30_000_000;

/// A call that nobody signed; of nonce 0, without a tip.
#[derive(Debug, Clone, Default)]
pub struct Unsigned {
    pub caller: Address,
    pub gas_limit: u64,
    pub gas_price: u128,
    pub to: TxKind,
    pub value: U256,
    pub input: Bytes,
    pub chain_id: Option<u64>,
    pub access_list: AccessList,
    pub authorizations: Vec<RecoveredAuthorization>,
}

#[derive(Debug)]
pub enum Tx<'t> {
    Signed(&'t Transaction),
    Unsigned(Box<Unsigned>),
}

impl Default for Tx<'_> {
    fn default() -> Self {
        Unsigned::default().into()
    }
}

impl From<Unsigned> for Tx<'_> {
    fn from(call: Unsigned) -> Self {
        Self::Unsigned(Box::new(call))
    }
}

impl SystemCallTx for Tx<'_> {
    fn new_system_tx_with_caller(caller: Address, contract: Address, input: Bytes) -> Self {
        Unsigned { caller, gas_limit: SYSTEM_CALL_GAS, to: TxKind::Call(contract), input, ..Unsigned::default() }.into()
    }
}

impl RevmTransaction for Tx<'_> {
    type AccessListItem<'a>
        = &'a AccessListItem
    where
        Self: 'a;
    type Authorization<'a>
        = &'a RecoveredAuthorization
    where
        Self: 'a;

    fn tx_type(&self) -> u8 {
        match self {
            Self::Signed(transaction) => transaction.tx_type,
            Self::Unsigned(call) if call.authorizations.is_empty() => u8::from(!call.access_list.is_empty()),
            Self::Unsigned(_) => super::SETS_CODE,
        }
    }

    fn caller(&self) -> Address {
        match self {
            Self::Signed(transaction) => transaction.sender,
            Self::Unsigned(call) => call.caller,
        }
    }

    fn gas_limit(&self) -> u64 {
        match self {
            Self::Signed(transaction) => transaction.gas_limit,
            Self::Unsigned(call) => call.gas_limit,
        }
    }

    fn value(&self) -> U256 {
        match self {
            Self::Signed(transaction) => transaction.value,
            Self::Unsigned(call) => call.value,
        }
    }

    fn input(&self) -> &Bytes {
        match self {
            Self::Signed(transaction) => &transaction.input,
            Self::Unsigned(call) => &call.input,
        }
    }

    fn nonce(&self) -> u64 {
        match self {
            Self::Signed(transaction) => transaction.nonce,
            Self::Unsigned(_) => 0,
        }
    }

    fn kind(&self) -> TxKind {
        match self {
            Self::Signed(transaction) => transaction.to,
            Self::Unsigned(call) => call.to,
        }
    }

    fn chain_id(&self) -> Option<u64> {
        match self {
            Self::Signed(transaction) => transaction.chain_id,
            Self::Unsigned(call) => call.chain_id,
        }
    }

    fn gas_price(&self) -> u128 {
        match self {
            Self::Signed(transaction) => transaction.max_fee,
            Self::Unsigned(call) => call.gas_price,
        }
    }

    fn access_list(&self) -> Option<impl Iterator<Item = Self::AccessListItem<'_>>> {
        let list = match self {
            Self::Signed(transaction) => &transaction.access_list,
            Self::Unsigned(call) => &call.access_list,
        };
        Some(list.0.iter())
    }

    fn blob_versioned_hashes(&self) -> &[B256] {
        match self {
            Self::Signed(transaction) => transaction.blobs.as_ref().map_or(&[], |blobs| &blobs.hashes),
            Self::Unsigned(_) => &[],
        }
    }

    fn max_fee_per_blob_gas(&self) -> u128 {
        match self {
            Self::Signed(transaction) => transaction.blobs.as_ref().map_or(0, |blobs| blobs.max_fee),
            Self::Unsigned(_) => 0,
        }
    }

    fn authorization_list_len(&self) -> usize {
        self.authorizations().len()
    }

    fn authorization_list(&self) -> impl Iterator<Item = Self::Authorization<'_>> {
        self.authorizations().iter()
    }

    fn max_priority_fee_per_gas(&self) -> Option<u128> {
        match self {
            Self::Signed(transaction) => transaction.tip,
            Self::Unsigned(_) => None,
        }
    }
}

impl Tx<'_> {
    fn authorizations(&self) -> &[RecoveredAuthorization] {
        match self {
            Self::Signed(transaction) => transaction.recover_authorizations(),
            Self::Unsigned(call) => &call.authorizations,
        }
    }
}
