//! BLS12-381 signatures, minimal public keys (48 bytes in G1, signatures 96 bytes in G2), proof-of-possession scheme.
//!
//! The hardening of threat model "BLS" lives here: no identity key or signature, no empty or duplicate key set, no key
//! without proof of possession, no stray bits in a bitmap. blst itself accepts several of these.

use alloy_primitives::B256;
use blst::min_pk::{AggregatePublicKey, AggregateSignature, PublicKey, SecretKey, Signature};
use blst::{BLST_ERROR, MultiPoint};
use std::collections::{BTreeMap, HashSet};

const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
const POP_DST: &[u8] = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// Width of the coefficients of a batch. They come from a hash, so their width is what a grinding attacker faces.
const COEFFICIENT_BITS: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlsError(pub String);

impl std::fmt::Display for BlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BlsError {}

fn refused(text: impl Into<String>) -> BlsError {
    BlsError(text.into())
}

/// Derives a secret key from at least 32 bytes of key material.
pub fn secret_key(ikm: &[u8]) -> Result<[u8; 32], BlsError> {
    SecretKey::key_gen(ikm, &[])
        .map(|secret| secret.to_bytes())
        .map_err(|_| refused(format!("key material must have at least 32 bytes, got {}", ikm.len())))
}

fn parse_secret(secret: &[u8]) -> Result<SecretKey, BlsError> {
    SecretKey::from_bytes(secret).map_err(|_| refused("secret key is not 32 bytes below the group order and above 0"))
}

pub fn public_key(secret: &[u8]) -> Result<[u8; 48], BlsError> {
    Ok(parse_secret(secret)?.sk_to_pk().to_bytes())
}

pub fn sign(secret: &[u8], message: &[u8]) -> Result<[u8; 96], BlsError> {
    Ok(parse_secret(secret)?.sign(message, DST, &[]).to_bytes())
}

/// Signs the compressed public key under a tag of its own: shows that its owner knows the secret (no rogue keys).
pub fn prove_possession(secret: &[u8]) -> Result<[u8; 96], BlsError> {
    let secret = parse_secret(secret)?;
    let public = secret.sk_to_pk().to_bytes();
    Ok(secret.sign(&public, POP_DST, &[]).to_bytes())
}

pub fn verify_possession(public_key: &[u8], proof: &[u8]) -> bool {
    let (Ok(key), Ok(proof)) = (parse_public(public_key), parse_signature(proof)) else {
        return false;
    };
    proof.verify(false, public_key, POP_DST, &[], &key, false) == BLST_ERROR::BLST_SUCCESS
}

/// A key in its one accepted form: 48 compressed bytes, in the subgroup, not the identity.
fn parse_public(bytes: &[u8]) -> Result<PublicKey, BlsError> {
    if bytes.len() != 48 {
        return Err(refused(format!("public key must have 48 bytes, got {}", bytes.len())));
    }
    PublicKey::key_validate(bytes).map_err(|reason| refused(format!("public key refused: {reason:?}")))
}

fn parse_signature(bytes: &[u8]) -> Result<Signature, BlsError> {
    if bytes.len() != 96 {
        return Err(refused(format!("signature must have 96 bytes, got {}", bytes.len())));
    }
    Signature::sig_validate(bytes, true).map_err(|reason| refused(format!("signature refused: {reason:?}")))
}

/// Sums signatures, each checked to be in the subgroup and not the identity.
pub fn aggregate<T: AsRef<[u8]>>(signatures: &[T]) -> Result<[u8; 96], BlsError> {
    let parsed: Vec<Signature> =
        signatures.iter().map(|signature| parse_signature(signature.as_ref())).collect::<Result<_, _>>()?;
    if parsed.is_empty() {
        return Err(refused("no signatures to aggregate"));
    }
    let sum = MultiPoint::add(parsed.as_slice()).to_signature();
    // Signatures that cancel each other out would leave the identity, which verifies for an identity key.
    sum.validate(true).map_err(|_| refused("signatures sum to the identity"))?;
    Ok(sum.to_bytes())
}

/// A committee's keys, parsed and checked once; votes and certificates name them by index.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    digest: [u8; 32],
}

/// One vote to check: (index of the key, message, signature).
pub type Vote<'a> = (usize, &'a [u8], &'a [u8]);

impl KeySet {
    /// Proofs may be left out only for keys proven before (the registry's).
    pub fn new<T: AsRef<[u8]>>(keys: &[T], proofs: Option<&[T]>) -> Result<Self, BlsError> {
        if keys.is_empty() {
            return Err(refused("a key set cannot be empty"));
        }
        if proofs.is_some_and(|proofs| proofs.len() != keys.len()) {
            return Err(refused("one proof of possession per key is needed"));
        }
        let mut seen = HashSet::new();
        let mut hasher = blake3::Hasher::new();
        let mut parsed = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().map(AsRef::as_ref).enumerate() {
            parsed.push(parse_public(key).map_err(|error| refused(format!("key {i}: {error}")))?);
            if !seen.insert(key) {
                return Err(refused(format!("key {i} is a duplicate")));
            }
            if proofs.is_some_and(|proofs| !verify_possession(key, proofs[i].as_ref())) {
                return Err(refused(format!("key {i}: wrong proof of possession")));
            }
            hasher.update(key);
        }
        Ok(Self { keys: parsed, digest: *hasher.finalize().as_bytes() })
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether `signature` is the aggregate of exactly the keys whose bits are set, all over one message.
    pub fn verify(&self, bitmap: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let (Some(signers), Ok(signature)) = (self.signers(bitmap), parse_signature(signature)) else {
            return false;
        };
        let sum = MultiPoint::add(signers.as_slice()).to_public_key();
        // Two keys may cancel out although each has its proof of possession: the identity key verifies anything.
        sum.validate().is_ok() && signature.verify(false, message, DST, &[], &sum, false) == BLST_ERROR::BLST_SUCCESS
    }

    /// The keys of a bitmap: bit `i % 8` of byte `i / 8`, exactly as many bytes as the set needs, at least one bit.
    fn signers(&self, bitmap: &[u8]) -> Option<Vec<PublicKey>> {
        if bitmap.len() != self.keys.len().div_ceil(8) {
            return None;
        }
        let mut signers = Vec::new();
        for i in 0..bitmap.len() * 8 {
            if bitmap[i / 8] >> (i % 8) & 1 == 1 {
                signers.push(*self.keys.get(i)?);
            }
        }
        (!signers.is_empty()).then_some(signers)
    }

    /// Checks many votes at two pairings per distinct message; a batch that fails is bisected to the culprits.
    pub fn verify_votes(&self, votes: &[Vote<'_>]) -> Vec<bool> {
        let mut valid = vec![false; votes.len()];
        let mut by_message: BTreeMap<&[u8], Vec<(usize, PublicKey, Signature)>> = BTreeMap::new();
        for (position, (index, message, signature)) in votes.iter().enumerate() {
            if let (Some(key), Ok(signature)) = (self.keys.get(*index), parse_signature(signature)) {
                by_message.entry(message).or_default().push((position, *key, signature));
            }
        }
        for (message, group) in by_message {
            self.bisect(message, &group, &mut valid);
        }
        valid
    }

    fn bisect(&self, message: &[u8], group: &[(usize, PublicKey, Signature)], valid: &mut [bool]) {
        if self.verify_combination(message, group) {
            group.iter().for_each(|(position, ..)| valid[*position] = true);
        } else if group.len() > 1 {
            let (left, right) = group.split_at(group.len() / 2);
            self.bisect(message, left, valid);
            self.bisect(message, right, valid);
        }
    }

    /// One check of Σ cᵢ·sigᵢ against Σ cᵢ·pkᵢ. The coefficients hash the whole batch: nobody can choose signatures
    /// that cancel out for coefficients that depend on them, and equal inputs give equal answers without randomness.
    fn verify_combination(&self, message: &[u8], group: &[(usize, PublicKey, Signature)]) -> bool {
        if let [(_, key, signature)] = group {
            return signature.verify(false, message, DST, &[], key, false) == BLST_ERROR::BLST_SUCCESS;
        }
        let coefficients = self.coefficients(message, group);
        let (keys, signatures): (Vec<_>, Vec<_>) = group.iter().map(|(_, key, signature)| (*key, *signature)).unzip();
        let key: AggregatePublicKey = keys.as_slice().mult(&coefficients, COEFFICIENT_BITS);
        let signature: AggregateSignature = signatures.as_slice().mult(&coefficients, COEFFICIENT_BITS);
        let (key, signature) = (key.to_public_key(), signature.to_signature());
        key.validate().is_ok() && signature.verify(false, message, DST, &[], &key, false) == BLST_ERROR::BLST_SUCCESS
    }

    fn coefficients(&self, message: &[u8], group: &[(usize, PublicKey, Signature)]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_derive_key("shardyard vote batch coefficients v1");
        hasher.update(&self.digest).update(alloy_primitives::keccak256(message).as_slice());
        for (_, key, signature) in group {
            hasher.update(&key.to_bytes()).update(&signature.to_bytes());
        }
        let mut coefficients = vec![0; group.len() * COEFFICIENT_BITS / 8];
        hasher.finalize_xof().fill(&mut coefficients);
        coefficients
    }
}

/// A name for a key set that does not depend on how it was built.
impl KeySet {
    pub fn digest(&self) -> B256 {
        B256::new(self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(count: u8) -> Vec<[u8; 32]> {
        (0..count).map(|i| secret_key(&[i + 1; 32]).expect("32 bytes")).collect()
    }

    fn key_set(secrets: &[[u8; 32]]) -> KeySet {
        let keys: Vec<[u8; 48]> = secrets.iter().map(|secret| public_key(secret).expect("valid")).collect();
        KeySet::new::<[u8; 48]>(&keys, None).expect("distinct keys")
    }

    #[test]
    fn a_batch_with_bad_votes_finds_exactly_the_bad_ones() {
        let secrets = secrets(9);
        let set = key_set(&secrets);
        let mut signatures: Vec<[u8; 96]> = secrets.iter().map(|s| sign(s, b"block").expect("valid")).collect();
        signatures[3] = sign(&secrets[3], b"another block").expect("valid");
        signatures.swap(6, 7);
        let votes: Vec<Vote<'_>> = signatures.iter().enumerate().map(|(i, s)| (i, &b"block"[..], &s[..])).collect();
        let valid = set.verify_votes(&votes);
        let bad: Vec<usize> = (0..9).filter(|i| !valid[*i]).collect();
        assert_eq!(bad, [3, 6, 7]);
    }

    #[test]
    fn keys_that_cancel_out_do_not_verify_anything() {
        let secret = secrets(1)[0];
        let key = parse_public(&public_key(&secret).expect("valid")).expect("valid");
        let mut negative: blst::blst_p1 = AggregatePublicKey::from_public_key(&key).into();
        let mut affine = blst::blst_p1_affine::default();
        // SAFETY: both pointers are to live, properly initialised points.
        unsafe {
            blst::blst_p1_cneg(&mut negative, true);
            blst::blst_p1_to_affine(&mut affine, &negative);
        }
        let opposite = PublicKey::from(affine);
        let set = KeySet::new(&[key.to_bytes(), opposite.to_bytes()], None).expect("distinct keys");
        let mut identity = [0_u8; 96];
        identity[0] = 0xc0;
        assert!(!set.verify(&[0b11], b"anything", &identity));
    }
}
