//! Blake3's output stream of short elements, block beside block, in AVX-512 or AVX2 registers.
//!
//! An element of two blocks (65 to 128 bytes) is compressed once, then 32 times with only the counter differing. The first
//! compression is done for all elements of a group at once, one per lane; the 32 are done one counter per lane and added to
//! the sum as they lie, word by word across the lanes, so nothing is transposed before the sum is read. The rounds are those
//! of the BLAKE3 paper (section 2.2); the tests of `sum` hold every path against the blake3 crate.

use std::arch::x86_64::*;

use super::sum::{BLOCK_BYTES, GROUP, Group, Words};

const IV: [i32; 8] = [
    0x6a09_e667_u32.cast_signed(),
    0xbb67_ae85_u32.cast_signed(),
    0x3c6e_f372_u32.cast_signed(),
    0xa54f_f53a_u32.cast_signed(),
    0x510e_527f_u32.cast_signed(),
    0x9b05_688c_u32.cast_signed(),
    0x1f83_d9ab_u32.cast_signed(),
    0x5be0_cd19_u32.cast_signed(),
];
const CHUNK_START: i32 = 1;
const CHUNK_END_AND_ROOT: i32 = 2 | 8;

/// Adds a word of the message; one beyond the message's own is a zero and is left out.
macro_rules! add_word {
    ($v:ident, $word:ident, $add:ident, $a:literal, $m:literal) => {
        if $m < WORDS {
            $v[$a] = $add($v[$a], $word[$m]);
        }
    };
}

/// The quarter-round on four columns or four diagonals, step by step on all of them: they do not depend on each other, and
/// the processor looks only so far ahead for what it can do meanwhile.
macro_rules! quarters {
    ($v:ident, $word:ident, $add:ident, $mix:ident, [$(($a:literal, $b:literal, $c:literal, $d:literal, $x:literal, $y:literal)),+]) => {
        $($v[$a] = $add($v[$a], $v[$b]);)+
        $(add_word!($v, $word, $add, $a, $x);)+
        $($v[$d] = $mix::<16>($v[$d], $v[$a]);)+
        $($v[$c] = $add($v[$c], $v[$d]);)+
        $($v[$b] = $mix::<12>($v[$b], $v[$c]);)+
        $($v[$a] = $add($v[$a], $v[$b]);)+
        $(add_word!($v, $word, $add, $a, $y);)+
        $($v[$d] = $mix::<8>($v[$d], $v[$a]);)+
        $($v[$c] = $add($v[$c], $v[$d]);)+
        $($v[$b] = $mix::<7>($v[$b], $v[$c]);)+
    };
}

macro_rules! round {
    ($v:ident, $word:ident, $add:ident, $mix:ident, [$m0:literal, $m1:literal, $m2:literal, $m3:literal, $m4:literal,
     $m5:literal, $m6:literal, $m7:literal, $m8:literal, $m9:literal, $m10:literal, $m11:literal, $m12:literal,
     $m13:literal, $m14:literal, $m15:literal]) => {
        quarters!(
            $v,
            $word,
            $add,
            $mix,
            [(0, 4, 8, 12, $m0, $m1), (1, 5, 9, 13, $m2, $m3), (2, 6, 10, 14, $m4, $m5), (3, 7, 11, 15, $m6, $m7)]
        );
        quarters!(
            $v,
            $word,
            $add,
            $mix,
            [
                (0, 5, 10, 15, $m8, $m9),
                (1, 6, 11, 12, $m10, $m11),
                (2, 7, 8, 13, $m12, $m13),
                (3, 4, 9, 14, $m14, $m15)
            ]
        );
    };
}

/// All seven rounds; a macro, because functions with different target features share no body.
macro_rules! rounds {
    ($v:ident, $word:ident, $add:ident, $mix:ident) => {
        round!($v, $word, $add, $mix, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        round!($v, $word, $add, $mix, [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]);
        round!($v, $word, $add, $mix, [3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1]);
        round!($v, $word, $add, $mix, [10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6]);
        round!($v, $word, $add, $mix, [12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4]);
        round!($v, $word, $add, $mix, [9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7]);
        round!($v, $word, $add, $mix, [11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13]);
    };
}

/// The functions of one instruction set: `$lanes` words of 32 bits to a `$vector`.
macro_rules! expander {
    ($module:ident, $feature:literal, $vector:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident,
     $add16:ident, $xor:ident, $rotate:ident) => {
        pub mod $module {
            use super::*;

            #[inline]
            #[target_feature(enable = $feature)]
            fn load(words: &[u32; $lanes]) -> $vector {
                // SAFETY: the array is exactly one register long; the load need not be aligned.
                unsafe { $load(words.as_ptr().cast()) }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn store(words: &mut [u32; $lanes], vector: $vector) {
                // SAFETY: the array is exactly one register long; the store need not be aligned.
                unsafe { $store(words.as_mut_ptr().cast(), vector) }
            }

            /// (x ^ y), rotated right.
            #[inline]
            #[target_feature(enable = $feature)]
            fn mix<const N: i32>(x: $vector, y: $vector) -> $vector {
                $rotate::<N>($xor(x, y))
            }

            /// The chaining values of all elements after their first block, one element per lane.
            #[inline]
            #[target_feature(enable = $feature)]
            fn chain(group: &Group, first: usize) -> [[u32; $lanes]; 8] {
                const WORDS: usize = 16;
                let word: [$vector; WORDS] = std::array::from_fn(|i| load(&lanes_of(&group.first[i], first)));
                let mut v: [$vector; 16] = std::array::from_fn(|i| $splat(IV[i % 8]));
                v[12] = $splat(0);
                v[13] = $splat(0);
                v[14] = $splat(BLOCK_BYTES.cast_signed());
                v[15] = $splat(CHUNK_START);
                rounds!(v, word, $add, mix);
                let mut chained = [[0; $lanes]; 8];
                for (i, row) in chained.iter_mut().enumerate() {
                    store(row, $xor(v[i], v[i + 8]));
                }
                chained
            }

            /// Adds the 32 output blocks of an element whose second block has no more than `WORDS` words in its `bytes`.
            #[inline]
            #[target_feature(enable = $feature)]
            fn expand<const WORDS: usize>(chained: &[u32; 8], second: &[u32; 16], bytes: u32, sum: &mut Words) {
                let word: [$vector; WORDS] = std::array::from_fn(|i| $splat(second[i].cast_signed()));
                let chained = chained.map(u32::cast_signed);
                for first in (0..32).step_by($lanes) {
                    let counters: [u32; $lanes] = std::array::from_fn(|lane| (first + lane) as u32);
                    let mut v: [$vector; 16] =
                        std::array::from_fn(|i| if i < 8 { $splat(chained[i]) } else { $splat(IV[i - 8]) });
                    v[12] = load(&counters);
                    v[13] = $splat(0);
                    v[14] = $splat(bytes.cast_signed());
                    v[15] = $splat(CHUNK_END_AND_ROOT);
                    rounds!(v, word, $add, mix);
                    for i in 0..8 {
                        let low = $xor(v[i], v[i + 8]);
                        let high = $xor(v[i + 8], $splat(chained[i]));
                        for (row, out) in [(i, low), (i + 8, high)] {
                            let Some(place) = sum[row][first..].first_chunk_mut::<$lanes>() else { continue };
                            store(place, $add16(load(place), out));
                        }
                    }
                }
            }

            /// Adds the elements of a group to the sum of what was added, or of what was removed.
            #[target_feature(enable = $feature)]
            pub fn absorb(group: &Group, sums: &mut [Words; 2]) {
                for first in (0..group.count).step_by($lanes) {
                    let chained = chain(group, first);
                    for place in first..group.count.min(first + $lanes) {
                        let value = std::array::from_fn(|i| chained[i][place - first]);
                        let (second, bytes) = (&group.second[place], group.bytes[place]);
                        let sum = &mut sums[usize::from(group.is_removed[place])];
                        // Accounts have 29 bytes in their second block and slots 21: the first arm is theirs.
                        if bytes <= 32 {
                            expand::<8>(&value, second, bytes, sum);
                        } else {
                            expand::<16>(&value, second, bytes, sum);
                        }
                    }
                }
            }
        }
    };
}

/// The part of a row that one register holds.
fn lanes_of<const LANES: usize>(row: &[u32; GROUP], first: usize) -> [u32; LANES] {
    row[first..].first_chunk().copied().unwrap_or([0; LANES])
}

expander!(
    avx512,
    "avx512f,avx512bw",
    __m512i,
    16,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_add_epi16,
    _mm512_xor_si512,
    _mm512_ror_epi32
);
expander!(
    avx2,
    "avx2",
    __m256i,
    8,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_add_epi16,
    _mm256_xor_si256,
    rotate_avx2
);

/// AVX2 rotates no words; counts of whole bytes are one shuffle.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate_avx2<const N: i32>(x: __m256i) -> __m256i {
    match N {
        16 => {
            let order = _mm_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
            _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order))
        }
        8 => {
            let order = _mm_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1);
            _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order))
        }
        _ => _mm256_or_si256(_mm256_srl_epi32(x, _mm_cvtsi32_si128(N)), _mm256_sll_epi32(x, _mm_cvtsi32_si128(32 - N))),
    }
}
