//! A sum in the making: what a block adds to the commitment and removes from it, gathered and expanded in groups.
//!
//! Elements wait until a group is full and are then expanded together, in the widest registers there are (`expand_x86`,
//! `expand_portable`); the partial sums lie as those registers want them and are brought into the order of the lanes once, at
//! the end. Elements of another length than accounts and slots have go through the blake3 crate one by one. The values are
//! the same whichever way is taken.

#[cfg(target_arch = "x86_64")]
use super::expand_x86::{avx2, avx512};
use super::{LANES, LtHash, expand_portable};

/// Elements that are expanded together.
pub const GROUP: usize = 16;
pub const BLOCK_BYTES: u32 = 64;
/// Lengths that are two blocks of blake3.
const GROUPED_BYTES: std::ops::RangeInclusive<usize> = 65..=128;

/// Word `w` of output block `b` is `[w][b]`: half of each word is one lane.
pub type Words = [[u32; 32]; 16];

/// Elements that wait to be expanded, as little-endian words with zeros after their end.
#[derive(Debug, Default)]
pub struct Group {
    pub count: usize,
    /// Word `w` of the first block of element `e` is `[w][e]`: the first blocks are compressed side by side.
    pub first: [[u32; GROUP]; 16],
    /// The second blocks, element by element: each is expanded by itself.
    pub second: [[u32; 16]; GROUP],
    /// Bytes in the second block.
    pub bytes: [u32; GROUP],
    pub is_removed: [bool; GROUP],
}

/// How this machine expands a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Way {
    /// All of this processor, fastest first. Every value comes from here: that is what makes `absorb` sound.
    fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [
            (std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw"))
                .then_some(Self::Avx512),
            std::arch::is_x86_feature_detected!("avx2").then_some(Self::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let wide = [None];
        wide.into_iter().flatten().chain([Self::Portable])
    }

    fn absorb(self, group: &Group, sums: &mut [Words; 2]) {
        match self {
            // SAFETY: a value of this type says that the processor has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::absorb(group, sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::absorb(group, sums) },
            Self::Portable => expand_portable::absorb(group, sums),
        }
    }
}

/// Gathers elements; `finish` gives the accumulator of all that was added less all that was removed.
#[derive(Debug)]
pub struct Sum {
    way: Way,
    waiting: Group,
    /// Added, then removed.
    grouped: Box<[Words; 2]>,
    single: LtHash,
}

impl Default for Sum {
    fn default() -> Self {
        Self::on(Way::available().next().unwrap_or(Way::Portable))
    }
}

impl Sum {
    fn on(way: Way) -> Self {
        let grouped = Box::new([[[0; 32]; 16]; 2]);
        Self { way, waiting: Group::default(), grouped, single: LtHash::default() }
    }

    pub fn add(&mut self, element: &[u8]) {
        if !self.gather(element, false) {
            self.single.add(element);
        }
    }

    pub fn remove(&mut self, element: &[u8]) {
        if !self.gather(element, true) {
            self.single.remove(element);
        }
    }

    pub fn finish(mut self) -> LtHash {
        self.expand();
        for (row, (added, removed)) in self.grouped[0].iter().zip(&self.grouped[1]).enumerate() {
            for (block, (added, removed)) in added.iter().zip(removed).enumerate() {
                let lane = 2 * (16 * block + row);
                let halves = [(*added as u16, *removed as u16), ((added >> 16) as u16, (removed >> 16) as u16)];
                for (lane, (added, removed)) in self.single.0[lane..].iter_mut().zip(halves) {
                    *lane = lane.wrapping_add(added).wrapping_sub(removed);
                }
            }
        }
        self.single
    }

    /// Puts an element into the group; false when it has to be expanded by itself.
    fn gather(&mut self, bytes: &[u8], is_removed: bool) -> bool {
        if !GROUPED_BYTES.contains(&bytes.len()) {
            return false;
        }
        let mut blocks = [0; 2 * BLOCK_BYTES as usize];
        blocks[..bytes.len()].copy_from_slice(bytes);
        let (first, second) = blocks.as_chunks::<4>().0.split_at(16);
        let group = &mut self.waiting;
        let place = group.count;
        for (row, word) in group.first.iter_mut().zip(first) {
            row[place] = u32::from_le_bytes(*word);
        }
        for (slot, word) in group.second[place].iter_mut().zip(second) {
            *slot = u32::from_le_bytes(*word);
        }
        group.bytes[place] = bytes.len() as u32 - BLOCK_BYTES;
        group.is_removed[place] = is_removed;
        group.count += 1;
        if group.count == GROUP {
            self.expand();
        }
        true
    }

    fn expand(&mut self) {
        self.way.absorb(&self.waiting, &mut self.grouped);
        self.waiting.count = 0;
    }
}

const _: () = assert!(std::mem::size_of::<Words>() == LANES * std::mem::size_of::<u16>(), "one half word per lane");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_this_machine_sums_as_single_updates_do() {
        for way in Way::available() {
            for count in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100_usize] {
                let (mut sum, mut expected) = (Sum::on(way), LtHash::default());
                for number in 0..count {
                    // Lengths around those of accounts and slots, and some that never are grouped.
                    let bytes: Vec<u8> = (0..60 + number % 75).map(|i| (i * 37 + number * 11) as u8).collect();
                    if number % 3 == 1 {
                        sum.remove(&bytes);
                        expected.remove(&bytes);
                    } else {
                        sum.add(&bytes);
                        expected.add(&bytes);
                    }
                }
                assert!(sum.finish() == expected, "{way:?}, {count} elements");
            }
        }
    }

    #[test]
    fn every_grouped_length_expands_as_blake3_does() {
        for way in Way::available() {
            for length in GROUPED_BYTES {
                let bytes = vec![0xa5; length];
                let (mut sum, mut expected) = (Sum::on(way), LtHash::default());
                sum.add(&bytes);
                expected.add(&bytes);
                assert!(sum.finish() == expected, "{way:?}, {length} bytes");
            }
        }
    }
}
