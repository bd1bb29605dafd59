//! Forward and backward throughput of a packed batch at the quickstart's sizes, as JSON, next to the rate of a large
//! matrix product measured in the same run.
//!
//! `cargo bench -p asyncthink-model --bench train`

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a benchmark has no one to report errors to, and its numbers are small"
)]

use std::time::Instant;

use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Segments};
use tch::{Device, Kind, Tensor};

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
    let mut decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    decoder.set_requires_grad(true);
    let ceiling = asyncthink_torch::matmul_flops_per_sec();
    for (num_segments, segment_tokens) in [(20, 100), (80, 100), (160, 50)] {
        let segments = Segments::separate(&vec![segment_tokens; num_segments]).unwrap();
        let tokens = segment_tokens * num_segments as i64;
        let ids = Tensor::randint(256, [tokens], (Kind::Int64, Device::Cpu));
        let run = |backward: bool| {
            let hidden = decoder.hidden_packed(&ids, &segments).unwrap();
            let logprobs = decoder
                .lm_head(&hidden)
                .unwrap()
                .log_softmax(-1, Kind::Float);
            let loss = logprobs
                .gather(1, &ids.unsqueeze(1), false)
                .mean(Kind::Float);
            if backward {
                loss.backward();
            }
        };
        run(true);
        let time = |backward: bool| {
            let start = Instant::now();
            for _ in 0..5 {
                run(backward);
            }
            start.elapsed().as_secs_f64() / 5.0
        };
        let (forward_secs, total_secs) = (time(false), time(true));
        let flops = 6.0 * config.num_parameters() as f64 * tokens as f64 / total_secs;
        println!(
            "{{\"bench\":\"train\",\"parameters\":{},\"segments\":{num_segments},\"segment_tokens\":{segment_tokens},\
             \"tokens_per_sec\":{:.0},\"forward_secs\":{forward_secs:.4},\"forward_backward_secs\":{total_secs:.4},\
             \"ceiling_gflops\":{:.1},\"share_of_ceiling\":{:.3}}}",
            config.num_parameters(),
            tokens as f64 / total_secs,
            ceiling / 1e9,
            flops / ceiling
        );
    }
}
