//! A prompt and a number of sampled tokens, many times.

use std::collections::BTreeMap;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, Request, SamplingParams};
use asyncthink_recipe::BenchRolloutSection;
use asyncthink_rollout::{AgentBackend, Result, mix_seed};

/// Random prompts of a repeat. Prompts of different repeats share nothing either.
pub(crate) struct Prompts<'a> {
    pub(crate) bench: &'a BenchRolloutSection,
    pub(crate) vocab_size: u32,
    pub(crate) seed: u64,
    pub(crate) repeat: usize,
}

impl Prompts<'_> {
    /// The prompt of a sequence, which is one of a group.
    pub(crate) fn ids(&self, prompt: usize, sample: usize) -> Vec<TokenId> {
        let of_prompt = prompt * self.bench.group_size;
        let index = of_prompt + if self.bench.share_prompts { 0 } else { sample };
        let num_sequences = self.bench.num_prompts * self.bench.group_size;
        let index = (self.repeat * num_sequences + index) as u64;
        let vocab = u64::from(self.vocab_size);
        (0..self.bench.prompt_tokens as u64)
            .map(|position| {
                let value = match position {
                    // No two prompts begin alike while the vocabulary lasts, nor with two tokens for much longer.
                    0 => index,
                    1 => index / vocab + index,
                    _ => mix_seed(mix_seed(self.seed, index), position),
                };
                TokenId(u32::try_from(value % vocab).unwrap_or(0))
            })
            .collect()
    }
}

/// Samples `new_tokens` tokens after every prompt; returns how many it sampled.
pub(crate) fn run(
    backend: &mut dyn AgentBackend,
    prompts: &Prompts<'_>,
    sampling: &SamplingParams,
    new_tokens: usize,
) -> Result<u64> {
    let bench = prompts.bench;
    let sequences = (0..bench.num_prompts)
        .flat_map(|prompt| (0..bench.group_size).map(move |sample| (prompt, sample)));
    let mut waiting = sequences.zip(0_u64..);
    let mut left: BTreeMap<AgentId, usize> = BTreeMap::new();
    let mut num_sampled = 0;
    loop {
        while backend.num_free() > 0
            && let Some(((prompt, sample), index)) = waiting.next()
        {
            let agent = AgentId(index);
            let request = Request::new(
                agent,
                prompts.ids(prompt, sample),
                mix_seed(prompts.seed, index),
            );
            let request = request
                .with_sampling(sampling.clone())
                .with_expected_tokens(new_tokens);
            backend.start(request)?;
            left.insert(agent, new_tokens);
        }
        if left.is_empty() {
            return Ok(num_sampled);
        }
        for token in backend.poll()? {
            num_sampled += 1;
            if let Some(count) = left.get_mut(&token.agent) {
                *count -= 1;
                if *count == 0 {
                    left.remove(&token.agent);
                    backend.cancel(token.agent)?;
                }
            }
        }
    }
}
