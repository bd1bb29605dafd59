//! Seeds derived from seeds, so that no stream depends on the order in which agents start.

/// Mixes a stream number into a seed (`SplitMix64` finaliser); neighbouring inputs give unrelated outputs.
pub fn mix_seed(seed: u64, stream: u64) -> u64 {
    let mut z = seed ^ stream.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::mix_seed;

    #[test]
    fn streams_of_neighbouring_seeds_do_not_collide() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            for stream in 0..50 {
                assert!(seen.insert(mix_seed(seed, stream)));
            }
        }
    }
}
