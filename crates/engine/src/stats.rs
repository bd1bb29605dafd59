//! Counters of an engine's work.

/// Counts of an engine since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps taken.
    pub num_steps: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Tokens given (prompts, injected text) and run through the model for the first time.
    pub prefilled_tokens: u64,
    /// Tokens given and found in the cache, or shared with an agent of the same prompt.
    pub reused_tokens: u64,
    /// Tokens run through the model again after a preemption.
    pub recomputed_tokens: u64,
    /// Agents that lost their blocks to older ones.
    pub num_preemptions: u64,
    /// Most blocks that agents held at a time.
    pub peak_blocks: u64,
    /// Blocks copied because an agent went on writing in one that others share.
    pub block_copies: u64,
}
