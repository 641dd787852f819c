//! Blake3's output stream of short elements in plain loops over lanes, which the compiler turns into what vectors there are.
//!
//! The same arithmetic as `expand_x86`, for machines without its registers: the blake3 crate computes the stream block by
//! block there, without vectors. All 32 output blocks of an element, or the first blocks of a whole group, are the lanes.

use super::sum::{BLOCK_BYTES, GROUP, Group, Words};

const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const CHUNK_START: u32 = 1;
const CHUNK_END_AND_ROOT: u32 = 2 | 8;
/// Which word enters where, round by round.
const SCHEDULE: [[usize; 16]; 7] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8],
    [3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1],
    [10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6],
    [12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4],
    [9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7],
    [11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13],
];
/// Columns, then diagonals.
const QUARTERS: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];

/// Adds the elements of a group to the sum of what was added, or of what was removed.
pub fn absorb(group: &Group, sums: &mut [Words; 2]) {
    let mut chained = start([[0; GROUP]; 8], [0; GROUP], BLOCK_BYTES, CHUNK_START);
    IV.iter().zip(&mut chained).for_each(|(word, row)| *row = [*word; GROUP]);
    rounds(&mut chained, |word, lane| group.first[word][lane]);
    for place in 0..group.count {
        let value: [[u32; 32]; 8] = std::array::from_fn(|i| [chained[i][place] ^ chained[i + 8][place]; 32]);
        let counters = std::array::from_fn(|lane| lane as u32);
        let mut v = start(value, counters, group.bytes[place], CHUNK_END_AND_ROOT);
        rounds(&mut v, |word, _| group.second[place][word]);
        let sum = &mut sums[usize::from(group.is_removed[place])];
        for i in 0..8 {
            for lane in 0..32 {
                sum[i][lane] = add_halves(sum[i][lane], v[i][lane] ^ v[i + 8][lane]);
                sum[i + 8][lane] = add_halves(sum[i + 8][lane], v[i + 8][lane] ^ value[i][lane]);
            }
        }
    }
}

/// The state before the first round.
fn start<const L: usize>(chained: [[u32; L]; 8], counters: [u32; L], bytes: u32, flags: u32) -> [[u32; L]; 16] {
    std::array::from_fn(|i| match i {
        0..8 => chained[i],
        12 => counters,
        13 => [0; L],
        14 => [bytes; L],
        15 => [flags; L],
        _ => [IV[i - 8]; L],
    })
}

fn rounds<const L: usize>(v: &mut [[u32; L]; 16], word: impl Fn(usize, usize) -> u32) {
    for order in SCHEDULE {
        for (quarter, words) in QUARTERS.iter().zip(order.as_chunks::<2>().0) {
            let Ok([a, b, c, d]) = v.get_disjoint_mut(*quarter) else { continue };
            for lane in 0..L {
                let (mut p, mut q, mut r, mut s) = (a[lane], b[lane], c[lane], d[lane]);
                p = p.wrapping_add(q).wrapping_add(word(words[0], lane));
                s = (s ^ p).rotate_right(16);
                r = r.wrapping_add(s);
                q = (q ^ r).rotate_right(12);
                p = p.wrapping_add(q).wrapping_add(word(words[1], lane));
                s = (s ^ p).rotate_right(8);
                r = r.wrapping_add(s);
                q = (q ^ r).rotate_right(7);
                (a[lane], b[lane], c[lane], d[lane]) = (p, q, r, s);
            }
        }
    }
}

/// Two lanes of 16 bits, added each by itself.
fn add_halves(x: u32, y: u32) -> u32 {
    let low = x.wrapping_add(y) & 0xffff;
    let high = (x & 0xffff_0000).wrapping_add(y & 0xffff_0000);
    low | high
}
