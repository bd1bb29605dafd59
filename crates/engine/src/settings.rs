//! Limits and number types of an engine.

use asyncthink_model::Precision;

use crate::sampler::Temperature;

/// Settings of an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineSettings {
    /// Agents held at once.
    pub max_agents: usize,
    /// Sampling temperature.
    pub temperature: Temperature,
    /// Number types; the KV cache has the type that the decoder computes in.
    pub precision: Precision,
    /// Most bytes that the KV cache may take; `None` for no limit.
    pub max_cache_bytes: Option<u64>,
}

impl EngineSettings {
    /// Settings in f32.
    pub fn new(max_agents: usize, temperature: Temperature) -> Self {
        Self {
            max_agents,
            temperature,
            precision: Precision::F32,
            max_cache_bytes: None,
        }
    }
}
