//! Where the difference between the sampler's and the trainer's log-probs comes from: both against the same model in f64, on
//! episodes sampled anew, as JSON.
//!
//! `cargo bench -p asyncthink-trainer --bench mismatch -- RUN_DIR`, for a run that has been evaluated; an absolute path, because
//! cargo runs benchmarks in the folder of their crate.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark has no one to report errors to"
)]

use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_data::{EpisodeIndex, TrainingRow};
use asyncthink_gradient::score_rows;
use asyncthink_model::{Decoder, Precision, PretrainedModel};
use asyncthink_rollout::{AgentRecord, Episode, EpisodeSampler, ModelCard, Query};
use serde_json::{Value, json};
use tch::{Device, Kind};

/// Enough for small models; rows are packed up to it.
const BATCH_TOKENS: usize = 8192;

const NUM_WORST: usize = 8;

fn main() {
    let Some(run_dir) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        println!("{}", json!({"skipped": "give the folder of a run"}));
        return;
    };
    let run_dir = PathBuf::from(run_dir);
    asyncthink_torch::set_num_threads(1).unwrap();
    let model_dir = run_dir.join("grpo/checkpoints/latest");
    let model = PretrainedModel::load(&model_dir, Device::Cpu, Precision::F32).unwrap();
    let exact = Decoder::load(&model_dir, Device::Cpu, Kind::Double).unwrap();
    let sampler = EpisodeSampler::new(&ModelCard::read(&model_dir).unwrap(), 1.0).unwrap();
    let text = fs_err::read_to_string(run_dir.join("eval/episodes_after_grpo.jsonl")).unwrap();
    let queries: Vec<Query> = text
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let line: Value = serde_json::from_str(line).unwrap();
            let query = line["query"].as_str().unwrap().to_owned();
            let prompt = sampler.prompt(&model.tokenizer, index, query).unwrap();
            Query {
                prompt: Arc::new(prompt),
                sample_index: 0,
                seed: index as u64,
            }
        })
        .collect();
    let episodes = sampler
        .run(&model.decoder, &model.tokenizer, &queries, &mut |_| true)
        .unwrap();
    let row = |record: &AgentRecord| {
        let (ids, decoded) = (record.ids().to_vec(), record.decoded().to_vec());
        TrainingRow::policy(
            ids,
            decoded,
            record.logprobs().to_vec(),
            0.0,
            EpisodeIndex(0),
        )
        .unwrap()
    };
    let rows: Vec<TrainingRow> = episodes
        .iter()
        .flat_map(Episode::agents)
        .filter(|record| record.num_decoded() > 0)
        .map(row)
        .collect();
    let sampled: Vec<f64> = rows
        .iter()
        .flat_map(|row| row.logprobs().unwrap().iter().zip(row.loss_mask()))
        .filter(|(_, trained)| **trained)
        .map(|(logprob, _)| f64::from(*logprob))
        .collect();
    let scored = |decoder: &Decoder| {
        score_rows(decoder, &rows, 1.0, BATCH_TOKENS, false)
            .unwrap()
            .concat()
    };
    let (trained, exact) = (scored(&model.decoder), scored(&exact));
    let figures = |left: &[f64], right: &[f64]| {
        let mut differences: Vec<f64> =
            left.iter().zip(right).map(|(a, b)| (a - b).abs()).collect();
        differences.sort_by(f64::total_cmp);
        let at = |per_mille: usize| differences[(differences.len() - 1) * per_mille / 1000];
        json!({
            "mean_nats": differences.iter().sum::<f64>() / differences.len() as f64,
            "median_nats": at(500), "p99_nats": at(990), "p999_nats": at(999), "max_nats": at(1000),
        })
    };
    let mut order: Vec<usize> = (0..sampled.len()).collect();
    order.sort_by(|&a, &b| {
        let off = |index: usize| (sampled[index] - trained[index]).abs();
        off(b).total_cmp(&off(a))
    });
    let worst: Vec<Value> = order
        .iter()
        .take(NUM_WORST)
        .map(|&index| {
            json!({"logprob": exact[index], "sampler_off": sampled[index] - exact[index],
                "trainer_off": trained[index] - exact[index]})
        })
        .collect();
    println!(
        "{}",
        json!({
            "num_tokens": sampled.len(),
            "sampler_to_trainer": figures(&sampled, &trained),
            "sampler_to_f64": figures(&sampled, &exact),
            "trainer_to_f64": figures(&trained, &exact),
            "worst": worst,
        })
    );
}
