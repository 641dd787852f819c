//! The two hash functions: keccak256 is the protocol's (contracts can verify it), blake3 the state commitment's.
//!
//! One message at a time goes through `keccak256`; many at once through `keccak256_many`, which fills the processor's wide
//! registers with them (`lanes`) and gives the same digests.

mod lanes;
#[cfg(target_arch = "x86_64")]
mod permute_x86;

use alloy_primitives::B256;
pub use alloy_primitives::keccak256;
use lanes::Wide;

/// The digests of all messages, in their order.
pub fn keccak256_many<T: AsRef<[u8]>>(messages: &[T]) -> Vec<B256> {
    let mut digests = vec![B256::ZERO; messages.len()];
    lanes::digest_all(Wide::detect(), None, messages, &mut digests);
    digests
}

/// The digests of `tag ‖ message` for all messages, in their order.
pub fn keccak256_many_tagged<T: AsRef<[u8]>>(tag: u8, messages: &[T]) -> Vec<B256> {
    let mut digests = vec![B256::ZERO; messages.len()];
    lanes::digest_all(Wide::detect(), Some(tag), messages, &mut digests);
    digests
}

/// Digests of the `offsets.len() - 1` pieces of `blob`, concatenated.
///
/// # Errors
/// When the offsets do not rise from 0 to the blob's length.
pub fn keccak256_pieces(blob: &[u8], offsets: &[usize]) -> Result<Vec<u8>, String> {
    Ok(keccak256_many(&pieces(blob, offsets)?).iter().flat_map(|digest| digest.0).collect())
}

/// Cuts a blob at its offsets: `offsets` has one entry more than there are pieces.
///
/// # Errors
/// When the offsets are empty, fall, or do not span the blob exactly.
pub fn pieces<'a>(blob: &'a [u8], offsets: &[usize]) -> Result<Vec<&'a [u8]>, String> {
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return Err("offsets must hold at least the entry 0".into());
    };
    if first != 0 || last != blob.len() {
        return Err(format!("offsets must span 0..{}, got {first}..{last}", blob.len()));
    }
    offsets
        .windows(2)
        .map(|pair| blob.get(pair[0]..pair[1]).ok_or_else(|| format!("offsets fall: {} then {}", pair[0], pair[1])))
        .collect()
}

pub fn blake3(data: &[u8]) -> [u8; 32] {
    *blake3::hash(data).as_bytes()
}
