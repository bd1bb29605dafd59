//! The largest micro-batch that fits, and whether activations are kept.

use asyncthink_model::ModelConfig;
use asyncthink_recipe::OrAuto;

use super::prediction::predict;
use super::settings::MemorySettings;

/// Micro-batches that are tried, the largest first: few and far apart, so that the choice is the same on machines of a kind.
pub const CANDIDATE_TOKENS: [u64; 6] = [16_384, 8192, 4096, 2048, 1024, 512];

/// Below this many tokens, layers are computed again before the micro-batch gets smaller: products of few rows are slow.
const FEW_TOKENS: u64 = 4096;

/// Values that were left to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: u64,
    /// Whether layers keep their inputs only.
    pub activation_checkpointing: bool,
}

/// Chooses what is not given, so that at most the first of `budgets` in which anything fits is taken on the device: no
/// checkpointing where 4096 tokens fit without, else the largest micro-batch with it. What takes least, where nothing fits; the
/// largest micro-batch and no checkpointing, where there is no budget.
pub fn choose(
    config: &ModelConfig,
    settings: &MemorySettings,
    micro_batch_tokens: Option<u64>,
    activation_checkpointing: Option<bool>,
    budgets: &[u64],
) -> Chosen {
    if budgets.is_empty() {
        return Chosen {
            micro_batch_tokens: micro_batch_tokens.unwrap_or(CANDIDATE_TOKENS[0]),
            activation_checkpointing: activation_checkpointing.unwrap_or(false),
        };
    }
    let tokens = match micro_batch_tokens {
        Some(given) => vec![given],
        None => CANDIDATE_TOKENS.to_vec(),
    };
    let is_given = micro_batch_tokens.is_some();
    let with = |activation_checkpointing: bool| {
        let tokens = tokens.iter().copied();
        let enough = tokens
            .filter(move |&tokens| is_given || activation_checkpointing || tokens >= FEW_TOKENS);
        enough.map(move |micro_batch_tokens| Chosen {
            micro_batch_tokens,
            activation_checkpointing,
        })
    };
    let candidates: Vec<Chosen> = match activation_checkpointing {
        Some(true) => with(true).collect(),
        Some(false) => tokens
            .iter()
            .map(|&micro_batch_tokens| Chosen {
                micro_batch_tokens,
                activation_checkpointing: false,
            })
            .collect(),
        None => with(false).chain(with(true)).collect(),
    };
    let needed = |chosen: &Chosen| predict(config, &chosen.applied_to(settings)).device_bytes();
    let mut found = None;
    for &budget in budgets {
        found = found.or(candidates.iter().find(|chosen| needed(chosen) <= budget));
    }
    found.or(candidates.last()).copied().unwrap_or(Chosen {
        micro_batch_tokens: CANDIDATE_TOKENS[0],
        activation_checkpointing: false,
    })
}

impl Chosen {
    /// Values of a recipe, with the largest micro-batch and no checkpointing for what is left to the program.
    pub fn given(
        micro_batch_tokens: OrAuto<usize>,
        activation_checkpointing: OrAuto<bool>,
    ) -> Self {
        let tokens = micro_batch_tokens.given().map(|tokens| tokens as u64);
        Self {
            micro_batch_tokens: tokens.unwrap_or(CANDIDATE_TOKENS[0]),
            activation_checkpointing: activation_checkpointing.given().unwrap_or(false),
        }
    }

    /// Most tokens of a micro-batch, as a size.
    pub fn tokens(&self) -> usize {
        usize::try_from(self.micro_batch_tokens).unwrap_or(usize::MAX)
    }

    /// The settings with these values.
    pub fn applied_to(&self, settings: &MemorySettings) -> MemorySettings {
        MemorySettings {
            micro_batch_tokens: self.micro_batch_tokens,
            activation_checkpointing: self.activation_checkpointing,
            ..settings.clone()
        }
    }
}
