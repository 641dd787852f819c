//! The two hash functions: keccak256 is the protocol's (contracts can verify it), blake3 the state commitment's.

pub use alloy_primitives::keccak256;

/// Digests of the `offsets.len() - 1` pieces of `blob`, concatenated.
///
/// # Errors
/// When the offsets do not rise from 0 to the blob's length.
pub fn keccak256_many(blob: &[u8], offsets: &[usize]) -> Result<Vec<u8>, String> {
    let mut digests = Vec::with_capacity(32 * offsets.len().saturating_sub(1));
    for piece in pieces(blob, offsets)? {
        digests.extend_from_slice(keccak256(piece).as_slice());
    }
    Ok(digests)
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
