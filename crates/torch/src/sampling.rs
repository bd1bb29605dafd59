//! Sampling of tokens from logits: settings of a sample, and the reference that every kernel agrees with.
//!
//! Random numbers are a function of a seed and a position ([`uniform`]): a sample does not depend on the batch, on the order
//! of samples, or on how often it is drawn again.

/// Settings of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SamplingRow {
    /// What logits are divided by; 0 takes the likeliest token.
    pub temperature: f32,
    /// Number of likeliest tokens that may be drawn; 0 for all.
    pub top_k: i32,
    /// Probability mass of the likeliest tokens that may be drawn; 1 for all.
    pub top_p: f32,
    /// Smallest probability that may be drawn, as a share of the largest; 0 for all.
    pub min_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Counter of the random numbers: tokens of the sequence before the sampled one.
    pub position: u64,
}

/// Settings of the samples of one step, with the ids that each may not draw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingBatch {
    /// Settings `[samples]`.
    pub rows: Vec<SamplingRow>,
    /// Number of banned ids before each sample `[samples + 1]`.
    pub cu_banned: Vec<i32>,
    /// Banned ids end to end.
    pub banned: Vec<i64>,
}

impl SamplingBatch {
    /// Drops all samples and keeps the memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.banned.clear();
        self.cu_banned.clear();
        self.cu_banned.push(0);
    }

    /// Adds a sample.
    pub fn push(&mut self, row: SamplingRow, banned: impl IntoIterator<Item = i64>) {
        if self.cu_banned.is_empty() {
            self.cu_banned.push(0);
        }
        self.rows.push(row);
        self.banned.extend(banned);
        let num_banned = i32::try_from(self.banned.len()).unwrap_or(i32::MAX);
        self.cu_banned.push(num_banned);
    }

    /// Samples with their banned ids.
    pub fn iter(&self) -> impl Iterator<Item = (&SamplingRow, &[i64])> {
        let offset = |index: i32| usize::try_from(index).unwrap_or(0);
        let banned = self.cu_banned.windows(2);
        let banned = banned.map(move |ends| &self.banned[offset(ends[0])..offset(ends[1])]);
        self.rows.iter().zip(banned)
    }
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SampledRow {
    /// The token.
    pub token: i64,
    /// Natural log of its probability under the distribution that it was drawn from; NaN where the logits are not finite.
    /// Greedy sampling gives that of the unscaled distribution without banned ids.
    pub logprob: f32,
    /// Log-softmax of the logits themselves: no temperature, no filter, no banned ids.
    pub raw_logprob: f32,
}

impl SampledRow {
    const NOT_FINITE: Self = Self {
        token: 0,
        logprob: f32::NAN,
        raw_logprob: f32::NAN,
    };
}

/// Reference sampler: the definition that the kernels agree with, in f64.
#[derive(Debug, Default)]
pub struct ReferenceSampler {
    /// Probability of each id, unnormalised; 0 where it may not be drawn.
    weights: Vec<f64>,
    order: Vec<u32>,
}

impl ReferenceSampler {
    /// Draws from `logits` `[vocab]`.
    ///
    /// Logits of banned ids count as -inf. The `top_k` largest are kept, ties with the last of them too; of their softmax
    /// at the temperature, probabilities of at least `min_p` times the largest; of these the likeliest whose mass reaches
    /// `top_p`, lower ids first among equals. The token is the first kept id, in ascending order, at which the
    /// renormalised cumulative probability exceeds [`uniform`]; where rounding leaves none, the likeliest.
    pub fn sample(&mut self, logits: &[f32], row: &SamplingRow, banned: &[i64]) -> SampledRow {
        if logits.iter().any(|one| one.is_nan()) {
            return SampledRow::NOT_FINITE;
        }
        let is_greedy = row.temperature == 0.0;
        let temperature = if is_greedy {
            1.0
        } else {
            f64::from(row.temperature)
        };
        self.weights.clear();
        let scaled = logits.iter().map(|&one| f64::from(one) / temperature);
        self.weights.extend(scaled);
        for &id in banned {
            if let Some(place) = usize::try_from(id)
                .ok()
                .and_then(|id| self.weights.get_mut(id))
            {
                *place = f64::NEG_INFINITY;
            }
        }
        let Some(likeliest) = likeliest(&self.weights) else {
            return SampledRow::NOT_FINITE;
        };
        let largest = self.weights[likeliest];
        if !is_greedy {
            self.keep_top_k(row.top_k);
        }
        for weight in &mut self.weights {
            *weight = (*weight - largest).exp();
        }
        if !is_greedy {
            let mass = self.weights.iter().sum();
            self.keep_min_p(row.min_p);
            self.keep_top_p(row.top_p, mass);
        }
        let total: f64 = self.weights.iter().sum();
        let index = if is_greedy {
            likeliest
        } else {
            self.invert(uniform(row.seed, row.position) * total)
                .unwrap_or(likeliest)
        };
        SampledRow {
            token: i64::try_from(index).unwrap_or(i64::MAX),
            logprob: to_f32((self.weights[index] / total).ln()),
            raw_logprob: to_f32(log_softmax(logits, index)),
        }
    }

    fn keep_top_k(&mut self, top_k: i32) {
        let Some(last) = usize::try_from(top_k).ok().and_then(|k| k.checked_sub(1)) else {
            return;
        };
        if last >= self.weights.len() {
            return;
        }
        let mut sorted = self.weights.clone();
        let (_, &mut smallest, _) = sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
        for weight in &mut self.weights {
            if *weight < smallest {
                *weight = f64::NEG_INFINITY;
            }
        }
    }

    /// The largest weight is 1 by now.
    fn keep_min_p(&mut self, min_p: f32) {
        let smallest = f64::from(min_p);
        for weight in &mut self.weights {
            if *weight < smallest {
                *weight = 0.0;
            }
        }
    }

    /// `total` counts what `min_p` has dropped too: the mass is that of the softmax.
    fn keep_top_p(&mut self, top_p: f32, total: f64) {
        if top_p >= 1.0 {
            return;
        }
        self.order.clear();
        let ids = 0..u32::try_from(self.weights.len()).unwrap_or(u32::MAX);
        self.order.extend(ids);
        let weight = |id: &u32| self.weights[*id as usize];
        // The sort is stable, so that lower ids come first among equals.
        self.order.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        let wanted = f64::from(top_p) * total;
        let mut mass = 0.0;
        // Where `min_p` has left less than that, all of it is kept.
        let num_kept = self.order.iter().position(|id| {
            mass += weight(id);
            mass >= wanted
        });
        for id in self
            .order
            .drain(..)
            .skip(num_kept.map_or(usize::MAX, |last| last + 1))
        {
            self.weights[id as usize] = 0.0;
        }
    }

    fn invert(&self, wanted: f64) -> Option<usize> {
        let mut cumulative = 0.0;
        self.weights.iter().position(|weight| {
            cumulative += weight;
            cumulative > wanted
        })
    }
}

/// Index of the first maximum; `None` where it is not finite.
fn likeliest(values: &[f64]) -> Option<usize> {
    let mut best = None;
    for (index, &value) in values.iter().enumerate() {
        if best.is_none_or(|other: usize| value > values[other]) {
            best = Some(index);
        }
    }
    best.filter(|&index| values[index].is_finite())
}

fn log_softmax(logits: &[f32], index: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let offset = |one: f32| f64::from(one) - f64::from(largest);
    let total: f64 = logits.iter().map(|&one| offset(one).exp()).sum();
    offset(logits[index]) - total.ln()
}

#[expect(clippy::cast_possible_truncation, reason = "log-probs are kept in f32")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

/// Uniform random number in `[0, 1)` of a seed and a position: 53 bits of the first two words of
/// [Philox4x32-10](https://doi.org/10.1145/2063384.2063405), keyed by the seed, with the position as counter.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let [low, high] = words(position);
    let [first, second, ..] = philox([low, high, 0, 0], words(seed));
    let bits = u64::from(second) << 32 | u64::from(first);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn words(value: u64) -> [u32; 2] {
    let low = value & u64::from(u32::MAX);
    [low, value >> 32].map(|word| u32::try_from(word).unwrap_or(0))
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low_0, high_0] = words(u64::from(counter[0]) * 0xD251_1F53);
        let [low_1, high_1] = words(u64::from(counter[2]) * 0xCD9E_8D57);
        counter = [
            high_1 ^ counter[1] ^ key[0],
            low_1,
            high_0 ^ counter[3] ^ key[1],
            low_0,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: SamplingRow = SamplingRow {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 7,
        position: 0,
    };

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// Share of each id in many draws, and the log-prob that it was reported with.
    fn draw(logits: &[f32], row: SamplingRow, banned: &[i64]) -> Vec<(f64, f32)> {
        let num_draws = 20_000;
        let mut counts = vec![(0.0, 0.0); logits.len()];
        let mut sampler = ReferenceSampler::default();
        for position in 0..num_draws {
            let sampled = sampler.sample(logits, &SamplingRow { position, ..row }, banned);
            let entry = &mut counts[usize::try_from(sampled.token).unwrap()];
            *entry = (entry.0 + 1.0 / num_draws as f64, sampled.logprob);
        }
        counts
    }

    fn assert_shares(found: &[(f64, f32)], expected: &[f64]) {
        for (&(share, logprob), &expected) in found.iter().zip(expected) {
            assert!((share - expected).abs() < 0.015, "{found:?} {expected}");
            if expected > 0.0 {
                assert!(
                    (f64::from(logprob).exp() - expected).abs() < 1e-6,
                    "{found:?}"
                );
            }
        }
    }

    #[test]
    fn philox_gives_the_published_numbers() {
        for (counter, key, expected) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
        assert!((0..1000).all(|position| (0.0..1.0).contains(&uniform(3, position))));
        let bits = |seed, position| uniform(seed, position).to_bits();
        assert!(bits(1, 2) != bits(2, 2) && bits(1, 2) != bits(1, 3));
    }

    #[test]
    fn samples_follow_the_distribution() {
        let logits = logits(&[0.5, 0.3, 0.0, 0.2]);
        assert_shares(&draw(&logits, ROW, &[]), &[0.5, 0.3, 0.0, 0.2]);
        let hot = SamplingRow {
            temperature: 2.0,
            ..ROW
        };
        let roots: Vec<f64> = [0.5_f64, 0.3, 0.0, 0.2].map(f64::sqrt).to_vec();
        let total: f64 = roots.iter().sum();
        let expected: Vec<f64> = roots.iter().map(|one| one / total).collect();
        assert_shares(&draw(&logits, hot, &[]), &expected);
        assert_shares(&draw(&logits, ROW, &[0, 99, -1]), &[0.0, 0.6, 0.0, 0.4]);
    }

    #[test]
    fn filters_keep_what_the_definition_says() {
        let logits = logits(&[0.1, 0.4, 0.1, 0.25, 0.15]);
        let of = |change: &dyn Fn(&mut SamplingRow)| {
            let mut row = ROW;
            change(&mut row);
            draw(&logits, row, &[])
        };
        assert_shares(&of(&|r| r.top_k = 1), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        let top_3 = [0.0, 0.5, 0.0, 0.3125, 0.1875];
        assert_shares(&of(&|r| r.top_k = 3), &top_3);
        // Ties at the last place are all kept.
        assert_shares(&of(&|r| r.top_k = 4), &[0.1, 0.4, 0.1, 0.25, 0.15]);
        assert_shares(&of(&|r| r.top_p = 0.7), &top_3);
        assert_shares(&of(&|r| r.top_p = 0.3), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        // Of equals the lower id comes first.
        let with_first = [0.1 / 0.9, 0.4 / 0.9, 0.0, 0.25 / 0.9, 0.15 / 0.9];
        assert_shares(&of(&|r| r.top_p = 0.85), &with_first);
        assert_shares(&of(&|r| r.min_p = 0.3), &top_3);
        assert_shares(
            &of(&|r| {
                r.top_k = 3;
                r.top_p = 0.8;
            }),
            &[0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0],
        );
    }

    #[test]
    fn greedy_takes_the_first_maximum_and_reports_the_unscaled_distribution() {
        let logits = logits(&[0.2, 0.3, 0.3, 0.2]);
        let greedy = SamplingRow {
            temperature: 0.0,
            top_k: 1,
            ..ROW
        };
        let mut sampler = ReferenceSampler::default();
        let sampled = sampler.sample(&logits, &greedy, &[]);
        assert_eq!(sampled.token, 1);
        assert!((sampled.logprob.exp() - 0.3).abs() < 1e-6);
        let sampled = sampler.sample(&logits, &greedy, &[1]);
        assert_eq!(sampled.token, 2);
        assert!((sampled.logprob.exp() - 0.3 / 0.7).abs() < 1e-6);
        assert!((sampled.raw_logprob.exp() - 0.3).abs() < 1e-6);
    }

    #[test]
    fn raw_logprobs_ignore_temperature_filters_and_banned_ids() {
        let logits = logits(&[0.1, 0.6, 0.3]);
        let row = SamplingRow {
            temperature: 0.5,
            top_k: 1,
            ..ROW
        };
        let sampled = ReferenceSampler::default().sample(&logits, &row, &[1]);
        assert_eq!((sampled.token, sampled.logprob), (2, 0.0));
        assert!((sampled.raw_logprob.exp() - 0.3).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_finite_is_told() {
        let mut sampler = ReferenceSampler::default();
        let infinity = f32::INFINITY;
        for (logits, banned) in [
            (vec![f32::NAN, 0.0], vec![]),
            (vec![infinity, 0.0], vec![]),
            (vec![-infinity; 3], vec![]),
            (vec![0.0, 1.0], vec![0, 1]),
            (vec![], vec![]),
        ] {
            for temperature in [0.0, 1.0] {
                let row = SamplingRow { temperature, ..ROW };
                let sampled = sampler.sample(&logits, &row, &banned);
                assert!(sampled.logprob.is_nan(), "{logits:?}");
            }
        }
    }

    #[test]
    fn banned_ids_lie_end_to_end() {
        let mut batch = SamplingBatch::default();
        batch.push(ROW, [3, 4]);
        batch.push(ROW, []);
        batch.push(ROW, [5]);
        assert_eq!(batch.cu_banned, [0, 2, 2, 3]);
        let banned: Vec<&[i64]> = batch.iter().map(|(_, banned)| banned).collect();
        assert_eq!(banned, [&[3, 4][..], &[], &[5]]);
        batch.clear();
        assert_eq!((batch.iter().count(), batch.cu_banned.len()), (0, 1));
    }
}
