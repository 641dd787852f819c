//! Where transactions stand, as sorted runs: a record per transaction, small runs merged into larger ones.
//!
//! Hashes are spread evenly, so a tree keyed by them has every page of it rewritten by every full block. A run is written
//! once, in order, and again each time it is merged, a few times in all.

use crate::codec::Reader;
use crate::error::Result;

/// Bytes of a hash that a record carries; to craft two transactions that share them costs 2^64 hashes.
pub const KEY_BYTES: usize = 16;
/// Key, height and position, the numbers as 4 big-endian bytes each.
pub const RECORD_BYTES: usize = KEY_BYTES + 8;

/// The run of one block, whose hashes of 32 bytes each stand in order of position.
pub fn build_run(hashes: &[u8], height: u32) -> Vec<u8> {
    let records = hashes.chunks_exact(32).zip(0_u32..).map(|(hash, position)| {
        let mut record = [0; RECORD_BYTES];
        record[..KEY_BYTES].copy_from_slice(&hash[..KEY_BYTES]);
        record[KEY_BYTES..KEY_BYTES + 4].copy_from_slice(&height.to_be_bytes());
        record[KEY_BYTES + 4..].copy_from_slice(&position.to_be_bytes());
        record
    });
    sorted(records.collect())
}

/// One run of all records of `runs` that are of no block above `last_height`.
pub fn merge_runs<T: AsRef<[u8]>>(runs: &[T], last_height: u32) -> Vec<u8> {
    let records = runs.iter().flat_map(|run| run.as_ref().as_chunks::<RECORD_BYTES>().0.iter().copied());
    sorted(records.filter(|record| record[KEY_BYTES..KEY_BYTES + 4] <= last_height.to_be_bytes()[..]).collect())
}

fn sorted(mut records: Vec<[u8; RECORD_BYTES]>) -> Vec<u8> {
    records.sort_unstable();
    records.into_flattened()
}

/// The hashes of a block's encoded outcomes, 32 bytes each, by position.
///
/// # Errors
/// `Malformed` when the bytes are no outcomes.
pub fn read_outcome_hashes(outcomes: &[u8]) -> Result<Vec<u8>> {
    let mut reader = Reader::new(outcomes);
    let mut hashes = Vec::new();
    for _ in 0..reader.array()? {
        reader.array_of(10)?;
        for _ in 0..5 {
            reader.uint()?;
        }
        reader.bytes()?;
        for _ in 0..reader.array()? {
            reader.array_of(3)?;
            reader.bytes()?;
            for _ in 0..reader.array()? {
                reader.bytes()?;
            }
            reader.bytes()?;
        }
        hashes.extend_from_slice(reader.hash()?.as_slice());
        reader.bytes()?;
        reader.bytes()?;
    }
    reader.finish()?;
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_sorted_and_merging_keeps_every_record_below_the_cut() {
        let hashes: Vec<u8> = (0..50_u8).flat_map(|n| [n.wrapping_mul(37); 32]).collect();
        let (low, high) = (build_run(&hashes, 3), build_run(&hashes, 4));
        assert!(low.as_chunks::<RECORD_BYTES>().0.is_sorted());
        let merged = merge_runs(&[&low, &high], 4);
        assert_eq!(merged.len(), 100 * RECORD_BYTES);
        assert!(merged.as_chunks::<RECORD_BYTES>().0.is_sorted());
        assert_eq!(merge_runs(&[merged], 3), low);
    }
}
