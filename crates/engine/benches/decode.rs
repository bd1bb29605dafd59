//! Decoding throughput of the engine at the quickstart's sizes, as JSON, next to the machine's own ceiling (the rate of
//! a large matrix product) measured in the same run, so that figures compare across noisy machines.
//!
//! `cargo bench -p asyncthink-engine --bench decode`

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a benchmark has no one to report errors to, and its numbers are small"
)]

use std::time::Instant;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, BatchedEngine, EngineSettings, Request};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use tch::Device;

fn main() {
    let num_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    asyncthink_torch::set_num_threads(num_threads).unwrap();
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 256,
        hidden_size: 192,
        intermediate_size: 512,
        num_layers: 4,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 32,
        rope_theta: 10_000.0,
        max_position_embeddings: 1024,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    let ceiling = asyncthink_torch::matmul_flops_per_sec();
    for num_agents in [32, 128, 256, 512] {
        let settings = EngineSettings::new(num_agents);
        let mut engine = BatchedEngine::new(&config, Device::Cpu, settings).unwrap();
        for agent in 0..num_agents as u64 {
            let prompt = (0..24).map(|n| TokenId(n + agent as u32 % 100)).collect();
            engine
                .add(&Request::new(AgentId(agent), prompt, agent))
                .unwrap();
        }
        // The prompts are prefilled before the clock starts.
        while engine.step(&decoder).unwrap().len() < num_agents {}
        let num_steps = 120;
        let start = Instant::now();
        for _ in 0..num_steps {
            let _ = engine.step(&decoder).unwrap();
        }
        let secs = start.elapsed().as_secs_f64();
        let tokens_per_sec = (num_agents * num_steps) as f64 / secs;
        // Two operations per weight and token; attention is not counted.
        let flops = 2.0 * config.num_parameters() as f64 * tokens_per_sec;
        println!(
            "{{\"bench\":\"decode\",\"parameters\":{},\"agents\":{num_agents},\"tokens_per_sec\":{tokens_per_sec:.0},\
             \"ms_per_step\":{:.3},\"ceiling_gflops\":{:.1},\"share_of_ceiling\":{:.3}}}",
            config.num_parameters(),
            secs / num_steps as f64 * 1e3,
            ceiling / 1e9,
            flops / ceiling
        );
    }
}
