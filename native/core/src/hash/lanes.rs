//! Keccak-256 of many messages at once: eight sponges side by side where the processor has wide registers.
//!
//! A block's Merkle trees are thousands of short independent messages, so they are hashed across, not along: AVX-512 does
//! eight at a time and AVX2 four, found at run time; every other machine hashes one after the other. Messages are sorted
//! by their number of blocks first, so that a group wastes little on lanes that have finished.

use alloy_primitives::{B256, Keccak256};

#[cfg(target_arch = "x86_64")]
use super::permute_x86;

/// Sponges side by side.
pub const LANES: usize = 8;
/// Bytes that one permutation absorbs at a security of 256 bits.
const RATE: usize = 136;
const RATE_WORDS: usize = RATE / 8;

/// A group costs about one and a half single hashes however many of its lanes idle; fewer messages are hashed one by one.
const WORTHWHILE: usize = 2;

/// Word `w` of sponge `l` is `[w][l]`.
#[repr(align(64))]
pub struct States(pub [[u64; LANES]; 25]);

/// Wide registers of this processor; a machine without any hashes one message after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wide {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Wide {
    /// The widest of this processor; the standard library remembers what it found.
    pub fn detect() -> Option<Self> {
        Self::available().next()
    }

    /// All of this processor, widest first. Every value comes from here: that is what makes `permute` sound.
    fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let found = [
            std::arch::is_x86_feature_detected!("avx512f").then_some(Self::Avx512),
            std::arch::is_x86_feature_detected!("avx2").then_some(Self::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let found = [None];
        found.into_iter().flatten()
    }

    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_variables, reason = "no wide registers, no value of this type")
    )]
    fn permute(self, states: &mut States, used: usize) {
        // SAFETY: a value of this type says that the processor has the feature.
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { permute_x86::permute_avx512(states) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { permute_x86::permute_avx2(states, used) },
        }
    }
}

/// The digests of all messages, each preceded by `tag` if there is one, in their order.
pub fn digest_all<T: AsRef<[u8]>>(wide: Option<Wide>, tag: Option<u8>, messages: &[T], digests: &mut [B256]) {
    assert_eq!(messages.len(), digests.len(), "one place for every digest");
    let Some(wide) = wide else {
        let singly = messages.iter().map(|message| digest_one(tag, message.as_ref()));
        return digests.iter_mut().zip(singly).for_each(|(place, digest)| *place = digest);
    };
    let tag_bytes = usize::from(tag.is_some());
    let blocks = |message: &T| (message.as_ref().len() + tag_bytes) / RATE + 1;
    let first = messages.first().map_or(0, blocks);
    if messages.iter().all(|message| blocks(message) == first) {
        for (group, places) in messages.chunks(LANES).zip(digests.chunks_mut(LANES)) {
            let group: [&[u8]; LANES] = std::array::from_fn(|lane| group.get(lane).map_or(&[][..], AsRef::as_ref));
            digest_group(wide, tag, &group[..places.len()], |lane, digest| places[lane] = digest);
        }
        return;
    }
    let mut order: Vec<u32> = (0..messages.len() as u32).collect();
    order.sort_unstable_by_key(|place| blocks(&messages[*place as usize]));
    for places in order.chunks(LANES) {
        let group: [&[u8]; LANES] =
            std::array::from_fn(|lane| places.get(lane).map_or(&[][..], |place| messages[*place as usize].as_ref()));
        digest_group(wide, tag, &group[..places.len()], |lane, digest| digests[places[lane] as usize] = digest);
    }
}

/// Up to eight messages; the longest decides how often all are permuted.
fn digest_group(wide: Wide, tag: Option<u8>, group: &[&[u8]], mut emit: impl FnMut(usize, B256)) {
    if group.len() < WORTHWHILE {
        group.iter().enumerate().for_each(|(lane, message)| emit(lane, digest_one(tag, message)));
        return;
    }
    let mut states = States([[0; LANES]; 25]);
    let mut unfinished = group.len();
    let mut block = 0;
    while unfinished > 0 {
        let mut last = [false; LANES];
        for (lane, message) in group.iter().enumerate() {
            last[lane] = absorb(&mut states, lane, tag, message, block);
        }
        wide.permute(&mut states, group.len());
        for lane in (0..group.len()).filter(|lane| last[*lane]) {
            let mut digest = B256::ZERO;
            for (word, bytes) in digest.chunks_exact_mut(8).enumerate() {
                bytes.copy_from_slice(&states.0[word][lane].to_le_bytes());
            }
            emit(lane, digest);
            unfinished -= 1;
        }
        block += 1;
    }
}

/// Absorbs one block of a message into its lane; whether it was the last. A lane past its last block is left alone.
///
/// The tag shifts the message by one byte against the sponge's words; loads need not be aligned, so nothing is copied.
fn absorb(states: &mut States, lane: usize, tag: Option<u8>, message: &[u8], block: usize) -> bool {
    let tag_bytes = usize::from(tag.is_some());
    let (start, total) = (block * RATE, message.len() + tag_bytes);
    if start > total {
        return false;
    }
    let mut rows = states.0[..RATE_WORDS].iter_mut();
    let mut rest = &message[start.saturating_sub(tag_bytes)..(start + RATE - tag_bytes).min(message.len())];
    let mut tail = 0_u64;
    let mut tail_bytes = 0;
    if let (0, Some(tag)) = (block, tag) {
        if let Some((first, after)) = rest.split_first_chunk::<7>() {
            if let Some(row) = rows.next() {
                row[lane] ^= u64::from(tag) | (little_endian(first) << 8);
            }
            rest = after;
        } else {
            (tail, tail_bytes) = (u64::from(tag), 1);
        }
    }
    let (words, bytes) = rest.as_chunks::<8>();
    // The words lead the zip: it must not take the row behind the last of them.
    for (word, row) in words.iter().zip(rows.by_ref()) {
        row[lane] ^= u64::from_le_bytes(*word);
    }
    let is_last = total - start < RATE;
    if is_last {
        // Keccak's padding (not SHA-3's): a one bit, zeros, a one bit.
        tail |= little_endian(bytes) << (8 * tail_bytes);
        tail |= 0x01 << (8 * (tail_bytes + bytes.len()));
        if let Some(row) = rows.next() {
            row[lane] ^= tail;
        }
        states.0[RATE_WORDS - 1][lane] ^= 0x80 << 56;
    }
    is_last
}

/// The number that at most eight bytes spell.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn digest_one(tag: Option<u8>, message: &[u8]) -> B256 {
    let mut hasher = Keccak256::new();
    if let Some(tag) = tag {
        hasher.update([tag]);
    }
    hasher.update(message);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|i| (i.wrapping_mul(31) ^ seed.wrapping_mul(17) ^ (i >> 7)) as u8).collect()
    }

    fn assert_all_agree(messages: &[Vec<u8>]) {
        for tag in [None, Some(0), Some(1), Some(0xff)] {
            let expected: Vec<B256> = messages.iter().map(|message| digest_one(tag, message)).collect();
            // A narrower way than the machine's own must agree too, and so must having none.
            for wide in Wide::available().map(Some).chain([None]) {
                let mut digests = vec![B256::ZERO; messages.len()];
                digest_all(wide, tag, messages, &mut digests);
                assert_eq!(digests, expected, "{wide:?}, tag {tag:?}");
            }
        }
    }

    #[test]
    fn every_length_hashes_as_the_scalar_hash_does() {
        for length in 0..1000 {
            assert_all_agree(&(0..LANES).map(|seed| message(length, seed)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn mixed_lengths_and_partial_groups_hash_as_the_scalar_hash_does() {
        assert_all_agree(&(0..1000).map(|length| message(length, length)).collect::<Vec<_>>());
        for count in 0..40 {
            let lengths = (0..count).map(|i: usize| (i * 7919) % 613);
            assert_all_agree(&lengths.map(|length| message(length, length)).collect::<Vec<_>>());
            assert_all_agree(&(0..count).map(|seed| message(64, seed)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_long_message_among_short_ones_hashes_as_the_scalar_hash_does() {
        let mut messages: Vec<Vec<u8>> = (0..20).map(|seed| message(32, seed)).collect();
        messages.insert(3, message(100_000, 9));
        assert_all_agree(&messages);
    }
}
