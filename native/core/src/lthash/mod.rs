//! The state commitment: LtHash, a homomorphic hash of a set, 1024 lanes of 16 bits (Bellare–Micciancio; Lewi et al. 2019).
//!
//! Each element expands through blake3's output stream to 2048 bytes that are added lane by lane, so an update costs two
//! expansions whatever the size of the state, and the order of updates does not matter. The root is blake3 of the lanes.
//! A block's updates go through a `Sum`, which expands many elements at once.

mod expand_portable;
#[cfg(target_arch = "x86_64")]
mod expand_x86;
mod sum;

pub use sum::Sum;

const LANES: usize = 1024;

/// An accumulator; the empty set is all zeros.
#[derive(Clone, PartialEq, Eq)]
pub struct LtHash(Box<[u16; LANES]>);

impl std::fmt::Debug for LtHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LtHash({:02x?})", self.root())
    }
}

impl Default for LtHash {
    fn default() -> Self {
        Self(Box::new([0; LANES]))
    }
}

impl LtHash {
    pub fn add(&mut self, element: &[u8]) {
        for (lane, word) in self.0.iter_mut().zip(expand(element).chunks_exact(2)) {
            *lane = lane.wrapping_add(u16::from_le_bytes([word[0], word[1]]));
        }
    }

    pub fn remove(&mut self, element: &[u8]) {
        for (lane, word) in self.0.iter_mut().zip(expand(element).chunks_exact(2)) {
            *lane = lane.wrapping_sub(u16::from_le_bytes([word[0], word[1]]));
        }
    }

    /// Adds what another accumulator gathered: partial sums of several threads become one.
    pub fn merge(&mut self, other: &Self) {
        for (lane, addend) in self.0.iter_mut().zip(other.0.iter()) {
            *lane = lane.wrapping_add(*addend);
        }
    }

    pub fn root(&self) -> [u8; 32] {
        let mut bytes = [0; LANES * 2];
        for (slot, lane) in bytes.chunks_exact_mut(2).zip(self.0.iter()) {
            slot.copy_from_slice(&lane.to_le_bytes());
        }
        *blake3::hash(&bytes).as_bytes()
    }
}

fn expand(element: &[u8]) -> [u8; LANES * 2] {
    let mut stream = [0; LANES * 2];
    blake3::Hasher::new().update(element).finalize_xof().fill(&mut stream);
    stream
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::hex;

    /// Commitments of old blocks must stay what they were: lengths of one to three blocks, past a chunk, and removals.
    #[test]
    fn the_definition_is_pinned() {
        let mut accumulator = LtHash::default();
        assert_eq!(hex::encode(accumulator.root()), "be2a8de3dcf46c94ce85cdc8e07ac308f4d8a95490d956c38d780fd610db0813");
        for length in [0, 1, 64, 85, 93, 128, 129, 1024, 1025, 5000_usize] {
            accumulator.add(&(0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        }
        accumulator.remove(&[7; 93]);
        assert_eq!(hex::encode(accumulator.root()), "455b17561513194815c35d55cf6e834d7f3ca755068b4d8e22f7317163d10ef1");
    }

    #[test]
    fn the_order_of_updates_does_not_matter() {
        let elements: Vec<Vec<u8>> = (0..50_u8).map(|i| vec![i; usize::from(i) + 1]).collect();
        let (mut forward, mut backward) = (LtHash::default(), LtHash::default());
        elements.iter().for_each(|element| forward.add(element));
        elements.iter().rev().for_each(|element| backward.add(element));
        assert_eq!(forward, backward);
        assert_eq!(forward.root(), backward.root());
    }

    #[test]
    fn removing_an_element_undoes_adding_it() {
        let mut accumulator = LtHash::default();
        accumulator.add(b"kept");
        let before = accumulator.root();
        accumulator.add(b"gone");
        assert_ne!(accumulator.root(), before);
        accumulator.remove(b"gone");
        assert_eq!(accumulator.root(), before);
    }

    #[test]
    fn partial_sums_merge_to_the_whole() {
        let (mut whole, mut left, mut right) = (LtHash::default(), LtHash::default(), LtHash::default());
        for i in 0..20_u8 {
            whole.add(&[i]);
            if i % 3 == 0 { left.add(&[i]) } else { right.add(&[i]) }
        }
        left.merge(&right);
        assert_eq!(whole, left);
    }
}
