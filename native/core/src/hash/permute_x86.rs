//! Keccak-f[1600] over eight states at once, in AVX-512 or AVX2 registers.
//!
//! Word `w` of all eight states lies in one row, so one instruction does the same step for eight (AVX-512) or four (AVX2)
//! messages and nothing is ever shuffled between lanes. The steps and constants are FIPS 202's; the tests of `lanes` hold
//! every path against the scalar hash.

use std::arch::x86_64::*;

use super::lanes::{LANES, States};

const ROUND_CONSTANTS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// One output row of a round: theta's second half, rho and pi gather five words, chi mixes them.
macro_rules! row {
    ($a:ident, $d:ident, $rol:ident, $xor:ident, $chi:ident, [$(($index:literal, $turn:literal)),+]) => {{
        let [b0, b1, b2, b3, b4] = [$($rol::<$turn>($xor($a[$index], $d[$index % 5]))),+];
        [$chi(b0, b1, b2), $chi(b1, b2, b3), $chi(b2, b3, b4), $chi(b3, b4, b0), $chi(b4, b0, b1)]
    }};
}

/// The 24 rounds over an array of 25 vectors; a macro, because functions with different target features share no body.
macro_rules! rounds {
    ($a:ident, $rol:ident, $xor:ident, $xor3:ident, $chi:ident, $splat:ident) => {
        for constant in ROUND_CONSTANTS {
            let c0 = $xor3($xor3($a[0], $a[5], $a[10]), $a[15], $a[20]);
            let c1 = $xor3($xor3($a[1], $a[6], $a[11]), $a[16], $a[21]);
            let c2 = $xor3($xor3($a[2], $a[7], $a[12]), $a[17], $a[22]);
            let c3 = $xor3($xor3($a[3], $a[8], $a[13]), $a[18], $a[23]);
            let c4 = $xor3($xor3($a[4], $a[9], $a[14]), $a[19], $a[24]);
            let d = [
                $xor(c4, $rol::<1>(c1)),
                $xor(c0, $rol::<1>(c2)),
                $xor(c1, $rol::<1>(c3)),
                $xor(c2, $rol::<1>(c4)),
                $xor(c3, $rol::<1>(c0)),
            ];
            let r0 = row!($a, d, $rol, $xor, $chi, [(0, 0), (6, 44), (12, 43), (18, 21), (24, 14)]);
            let r1 = row!($a, d, $rol, $xor, $chi, [(3, 28), (9, 20), (10, 3), (16, 45), (22, 61)]);
            let r2 = row!($a, d, $rol, $xor, $chi, [(1, 1), (7, 6), (13, 25), (19, 8), (20, 18)]);
            let r3 = row!($a, d, $rol, $xor, $chi, [(4, 27), (5, 36), (11, 10), (17, 15), (23, 56)]);
            let r4 = row!($a, d, $rol, $xor, $chi, [(2, 62), (8, 55), (14, 39), (15, 41), (21, 2)]);
            $a = [
                $xor(r0[0], $splat(constant.cast_signed())),
                r0[1],
                r0[2],
                r0[3],
                r0[4],
                r1[0],
                r1[1],
                r1[2],
                r1[3],
                r1[4],
                r2[0],
                r2[1],
                r2[2],
                r2[3],
                r2[4],
                r3[0],
                r3[1],
                r3[2],
                r3[3],
                r3[4],
                r4[0],
                r4[1],
                r4[2],
                r4[3],
                r4[4],
            ];
        }
    };
}

/// Permutes all eight states.
#[target_feature(enable = "avx512f")]
pub fn permute_avx512(states: &mut States) {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rol<const N: i32>(x: __m512i) -> __m512i {
        _mm512_rol_epi64::<N>(x)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(x: __m512i, y: __m512i) -> __m512i {
        _mm512_xor_si512(x, y)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor3(x: __m512i, y: __m512i, z: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0x96>(x, y, z)
    }
    /// x ^ (!y & z): the truth table of chi in one instruction.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn chi(x: __m512i, y: __m512i, z: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0xd2>(x, y, z)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splat(x: i64) -> __m512i {
        _mm512_set1_epi64(x)
    }
    let rows = &mut states.0;
    // SAFETY: a row is eight u64, exactly one register; unaligned loads and stores have no other condition.
    let mut a: [__m512i; 25] = std::array::from_fn(|w| unsafe { _mm512_loadu_si512(rows[w].as_ptr().cast()) });
    rounds!(a, rol, xor, xor3, chi, splat);
    for (row, vector) in rows.iter_mut().zip(a) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), vector) };
    }
}

/// Permutes the first four states, and the others too when more than four are in use.
#[target_feature(enable = "avx2")]
pub fn permute_avx2(states: &mut States, used: usize) {
    permute_half(states, 0);
    if used > LANES / 2 {
        permute_half(states, LANES / 2);
    }
}

#[target_feature(enable = "avx2")]
fn permute_half(states: &mut States, first: usize) {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rol<const N: i32>(x: __m256i) -> __m256i {
        // AVX2 rotates no 64-bit words; counts of whole bytes are one shuffle.
        match N {
            0 => x,
            8 => _mm256_shuffle_epi8(x, bytes([7, 0, 1, 2, 3, 4, 5, 6])),
            56 => _mm256_shuffle_epi8(x, bytes([1, 2, 3, 4, 5, 6, 7, 0])),
            // `64 - N` cannot be a const argument; the compiler folds these counts into immediates all the same.
            _ => _mm256_or_si256(
                _mm256_sll_epi64(x, _mm_cvtsi64_si128(i64::from(N))),
                _mm256_srl_epi64(x, _mm_cvtsi64_si128(i64::from(64 - N))),
            ),
        }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bytes(order: [i8; 8]) -> __m256i {
        let [a, b, c, d, e, f, g, h] = order;
        let low = i64::from_le_bytes([a, b, c, d, e, f, g, h].map(i8::cast_unsigned));
        let high = low + 0x0808_0808_0808_0808;
        _mm256_set_epi64x(high, low, high, low)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(x: __m256i, y: __m256i) -> __m256i {
        _mm256_xor_si256(x, y)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor3(x: __m256i, y: __m256i, z: __m256i) -> __m256i {
        _mm256_xor_si256(_mm256_xor_si256(x, y), z)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn chi(x: __m256i, y: __m256i, z: __m256i) -> __m256i {
        _mm256_xor_si256(x, _mm256_andnot_si256(y, z))
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn splat(x: i64) -> __m256i {
        _mm256_set1_epi64x(x)
    }
    let rows = &mut states.0;
    let mut a: [__m256i; 25] = std::array::from_fn(|w| {
        let half = &rows[w][first..first + LANES / 2];
        // SAFETY: half a row is four u64, exactly one register; unaligned loads and stores have no other condition.
        unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
    });
    rounds!(a, rol, xor, xor3, chi, splat);
    for (row, vector) in rows.iter_mut().zip(a) {
        let half = &mut row[first..first + LANES / 2];
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), vector) };
    }
}
