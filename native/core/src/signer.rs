//! Signing of many transactions at once, for load generators: a node signs no transactions, it holds no accounts.

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip2930::AccessList;
use alloy_primitives::{Address, Bytes, Signature, TxKind, U256, keccak256};
use rayon::prelude::*;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, SecretKey};

use crate::error::{CoreError, Result};
use crate::pool::pool;
use crate::raw::RawList;

/// An EIP-1559 transaction to be signed; fees in wei per gas, no receiver for a creation.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    pub secret: [u8; 32],
    pub nonce: u64,
    pub tip: u128,
    pub max_fee: u128,
    pub gas_limit: u64,
    pub to: Option<Address>,
    pub value: U256,
    pub data: &'a [u8],
}

/// The account of a secret key.
///
/// # Errors
/// `Malformed` when the number is no key.
pub fn address(secret: &[u8; 32]) -> Result<Address> {
    let key = read_key(secret)?.public_key();
    Ok(Address::from_slice(&keccak256(&key.serialize_uncompressed()[1..])[12..]))
}

/// The signed transactions in order, on `threads` workers. Nonces of signatures are RFC 6979's: same draft, same bytes.
///
/// # Errors
/// `Malformed` when a secret is no key.
pub fn sign(chain_id: u64, drafts: &[Draft<'_>], threads: usize) -> Result<RawList> {
    let signed: Result<Vec<Vec<u8>>> = match pool(threads) {
        Some(pool) => pool.install(|| drafts.par_iter().map(|draft| sign_one(chain_id, draft)).collect()),
        None => drafts.iter().map(|draft| sign_one(chain_id, draft)).collect(),
    };
    let mut list = RawList::default();
    signed?.iter().for_each(|raw| list.push(raw));
    Ok(list)
}

fn read_key(secret: &[u8; 32]) -> Result<SecretKey> {
    SecretKey::from_secret_bytes(*secret).map_err(|error| CoreError::Malformed(format!("secret key: {error}")))
}

fn sign_one(chain_id: u64, draft: &Draft<'_>) -> Result<Vec<u8>> {
    let transaction = TxEip1559 {
        chain_id,
        nonce: draft.nonce,
        gas_limit: draft.gas_limit,
        max_fee_per_gas: draft.max_fee,
        max_priority_fee_per_gas: draft.tip,
        to: draft.to.map_or(TxKind::Create, TxKind::Call),
        value: draft.value,
        access_list: AccessList::default(),
        input: Bytes::copy_from_slice(draft.data),
    };
    let key = read_key(&draft.secret)?;
    let message = Message::from_digest(transaction.signature_hash().0);
    let signed = RecoverableSignature::sign_ecdsa_recoverable(message, &key);
    let (parity, compact) = signed.serialize_compact();
    let (r, s) = (U256::from_be_slice(&compact[..32]), U256::from_be_slice(&compact[32..]));
    let signature = Signature::new(r, s, matches!(parity, RecoveryId::One));
    Ok(transaction.into_signed(signature).encoded_2718())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Transaction;

    #[test]
    fn the_signer_of_a_signed_transaction_comes_out() {
        let drafts: Vec<Draft<'_>> = (1..40_u8)
            .map(|number| Draft {
                secret: [number; 32],
                nonce: number.into(),
                tip: 1,
                max_fee: 7_000_000_000,
                gas_limit: 90_000,
                to: (number % 3 != 0).then_some(Address::repeat_byte(number)),
                value: U256::from(number),
                data: &[1, 2, 3],
            })
            .collect();
        let list = sign(31337, &drafts, 2).unwrap();
        for (draft, raw) in drafts.iter().zip(list.pieces()) {
            let found = Transaction::decode(raw, keccak256(raw)).unwrap();
            assert_eq!(found.sender, address(&draft.secret).unwrap());
            assert_eq!((found.nonce, found.value), (draft.nonce, draft.value));
        }
    }

    #[test]
    fn zero_is_no_key() {
        assert!(address(&[0; 32]).is_err());
    }
}
