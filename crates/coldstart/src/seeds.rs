//! Independent random streams from one seed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is for; the numbers are part of what a seed means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    /// The problem generator.
    Problems = 1,
    /// One trace.
    Trace = 2,
    /// The solver's order of subsets.
    Solver = 3,
}

/// The seed of item `index` of a stream: three rounds of `SplitMix64`, so that neighbours have nothing in common.
pub(crate) fn seed_of(seed: u64, stream: Stream, index: u64) -> u64 {
    let mixed = split_mix(split_mix(seed) ^ stream as u64);
    split_mix(mixed ^ index)
}

/// The generator of a seed.
pub(crate) fn generator(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn split_mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
