//! What memory depends on besides the model's configuration.

use asyncthink_recipe::Shard;

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// Every weight.
    All,
    /// So many values of adapters.
    Adapters(u64),
}

/// What sampling takes beside training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingMemory {
    /// Bytes of a value that sampling computes in.
    pub element_bytes: u64,
    /// Bytes that the KV cache is expected to fill, or may take.
    pub cache_bytes: u64,
    /// Most tokens of a step.
    pub batch_tokens: u64,
}

/// Settings of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the recipe"
)]
pub struct MemorySettings {
    /// Whether the model is on a CPU, whose memory is the host's.
    pub is_cpu: bool,
    /// Bytes of a value that training computes in: 4 or 2.
    pub element_bytes: u64,
    /// What is trained.
    pub trained: Trained,
    /// Whether master weights and moments are in host memory.
    pub offloads_optimizer: bool,
    /// What the ranks share out.
    pub shard: Shard,
    /// Ranks.
    pub world_size: u64,
    /// With `shard = "full"`: micro-batches that a gathered layer is used for.
    pub micro_batches_per_gather: u64,
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: u64,
    /// Most tokens that a rank has in one update.
    pub rank_tokens: u64,
    /// Tokens of the longest row, which is never cut.
    pub longest_row: u64,
    /// Whether layers keep their inputs only.
    pub activation_checkpointing: bool,
    /// Threads that each work on a micro-batch of their own.
    pub num_workers: u64,
    /// Whether there is a reference model of its own.
    pub has_reference: bool,
    /// What sampling takes; `None` where the stage samples nothing.
    pub sampling: Option<SamplingMemory>,
}

impl MemorySettings {
    /// Tokens of one micro-batch.
    pub(crate) fn tokens_of_micro_batch(&self) -> u64 {
        let share = self.rank_tokens.div_ceil(self.num_workers);
        let share = match self.num_workers {
            1 => share,
            // Room for rows that do not fill a share exactly.
            _ => share + self.longest_row / 2,
        };
        let most = self.micro_batch_tokens.max(self.longest_row);
        share.min(most).min(self.rank_tokens).max(1)
    }

    /// Tokens of all micro-batches that are under way together.
    pub(crate) fn tokens_in_flight(&self) -> u64 {
        let together = match self.shard {
            Shard::Full => self.micro_batches_per_gather,
            Shard::Optimizer => self.num_workers,
        };
        (self.tokens_of_micro_batch() * together).min(self.rank_tokens.max(1))
    }

    /// Whether layers are computed again in the backward pass.
    pub(crate) fn recomputes(&self) -> bool {
        self.activation_checkpointing || self.shard == Shard::Full
    }

    /// Whether fused kernels compute the layers of training, which keep less than a graph of libtorch's operations: without adapters, on
    /// the CPU, and on GPUs in bf16.
    pub(crate) fn is_fused(&self) -> bool {
        self.trained == Trained::All && (self.is_cpu || self.element_bytes == 2)
    }
}
