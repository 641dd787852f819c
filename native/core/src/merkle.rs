//! The one binary Merkle tree of the protocol (X3): leaf = H(0x00 ‖ data), node = H(0x01 ‖ l ‖ r), keccak256.
//!
//! Leaf and node have different prefixes, so no inner node can be passed off as a leaf. An odd last node is promoted
//! unchanged; the root of no leaves is 32 zero bytes. A level's hashes are independent, so they are computed side by side.

use alloy_primitives::{B256, B512, Keccak256};
use rayon::prelude::*;

use crate::hash::keccak256_many_tagged;

const LEAF: u8 = 0;
const NODE: u8 = 1;

pub fn leaf_hash(data: &[u8]) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update([LEAF]);
    hasher.update(data);
    hasher.finalize()
}

pub fn node_hash(left: &B256, right: &B256) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update([NODE]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize()
}

pub fn merkle_root<T: AsRef<[u8]>>(leaves: &[T]) -> B256 {
    root_of_level(keccak256_many_tagged(LEAF, leaves))
}

/// Below this many leaves a thread costs more than it saves.
const PARALLEL_LEAVES: usize = 1024;

/// The same root, computed by the workers when there are enough leaves to share.
pub fn merkle_root_on<T: AsRef<[u8]> + Sync>(leaves: &[T], threads: usize) -> B256 {
    let Some(pool) = crate::pool::pool(threads).filter(|_| leaves.len() >= PARALLEL_LEAVES) else {
        return merkle_root(leaves);
    };
    // A power of two keeps every chunk a whole subtree; the subtrees' roots form the levels above.
    let chunk = (leaves.len() / (threads * 4)).next_power_of_two();
    root_of_level(pool.install(|| leaves.par_chunks(chunk).map(merkle_root).collect()))
}

fn root_of_level(mut level: Vec<B256>) -> B256 {
    while level.len() > 1 {
        level = parent_level(&level);
    }
    level.first().copied().unwrap_or(B256::ZERO)
}

fn parent_level(level: &[B256]) -> Vec<B256> {
    let (pairs, odd) = level.as_chunks::<2>();
    let children: Vec<B512> = pairs.iter().map(|[left, right]| left.concat_const(*right)).collect();
    let mut parents = keccak256_many_tagged(NODE, &children);
    parents.extend_from_slice(odd);
    parents
}

/// The siblings from leaf to root as (sibling is on the right, hash); a promoted level adds none.
///
/// # Errors
/// None when `index` is not a leaf.
pub fn merkle_proof<T: AsRef<[u8]>>(leaves: &[T], index: usize) -> Option<Vec<(bool, B256)>> {
    if index >= leaves.len() {
        return None;
    }
    let mut level = keccak256_many_tagged(LEAF, leaves);
    let (mut position, mut proof) = (index, Vec::new());
    while level.len() > 1 {
        let sibling = position ^ 1;
        if let Some(hash) = level.get(sibling) {
            proof.push((sibling > position, *hash));
        }
        level = parent_level(&level);
        position /= 2;
    }
    Some(proof)
}

pub fn verify_merkle_proof(leaf: &[u8], proof: &[(bool, B256)], root: &B256) -> bool {
    let reached = proof.iter().fold(leaf_hash(leaf), |hash, (is_right, sibling)| {
        if *is_right { node_hash(&hash, sibling) } else { node_hash(sibling, &hash) }
    });
    reached == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_small_tree_has_a_valid_proof() {
        for count in 1..=17_usize {
            let leaves: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; i]).collect();
            let root = merkle_root(&leaves);
            for (i, leaf) in leaves.iter().enumerate() {
                let proof = merkle_proof(&leaves, i).expect("index is a leaf");
                assert!(verify_merkle_proof(leaf, &proof, &root));
                assert!(!verify_merkle_proof(b"another leaf", &proof, &root));
            }
            assert!(merkle_proof(&leaves, count).is_none());
        }
    }

    #[test]
    fn an_inner_node_is_not_a_leaf() {
        let leaves = [b"a".to_vec(), b"b".to_vec(), b"c".to_vec(), b"d".to_vec()];
        let (left, right) = (leaf_hash(b"a"), leaf_hash(b"b"));
        let forged = [left.as_slice(), right.as_slice()].concat();
        let proof = vec![(true, node_hash(&leaf_hash(b"c"), &leaf_hash(b"d")))];
        assert!(!verify_merkle_proof(&forged, &proof, &merkle_root(&leaves)));
    }

    #[test]
    fn workers_compute_the_same_root() {
        for count in [1023, 1024, 1025, 1536, 2047, 3000, 4097, 9999_u32] {
            let leaves: Vec<[u8; 4]> = (0..count).map(u32::to_be_bytes).collect();
            assert_eq!(merkle_root_on(&leaves, 3), merkle_root(&leaves));
        }
    }

    #[test]
    fn the_root_of_no_leaves_is_zero() {
        assert_eq!(merkle_root::<Vec<u8>>(&[]), B256::ZERO);
    }
}
