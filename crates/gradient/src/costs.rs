//! Predicted cost of rows, by which micro-batches, threads and ranks are balanced.

use asyncthink_data::{PackedRows, Packer, Prefixes, RowCosts, RowSize, TrainingRow};
use asyncthink_model::ModelConfig;

/// Floating-point operations of a forward pass: products of weights, scores and sums of attention, products of the head.
pub(crate) fn row_costs(config: &ModelConfig) -> RowCosts {
    let shapes = config.parameter_shapes();
    let is_linear =
        |name: &str, shape: &[i64]| name.starts_with("model.layers.") && shape.len() == 2;
    let linear = shapes
        .iter()
        .filter(|(name, shape)| is_linear(name, shape))
        .map(|(_, shape)| 2.0 * shape.iter().product::<i64>() as f64);
    let width = (config.num_attention_heads * config.head_dim) as f64;
    RowCosts {
        token: linear.sum(),
        pair: 4.0 * width * config.num_hidden_layers as f64,
        trained: 2.0 * (config.hidden_size * config.vocab_size) as f64,
    }
}

/// Packs rows for `num_workers` that compute at the same time.
pub(crate) fn pack_rows(
    rows: &[&TrainingRow],
    config: &ModelConfig,
    share_prefixes: bool,
    budget_tokens: usize,
    num_workers: usize,
) -> Vec<PackedRows> {
    let sizes: Vec<RowSize> = rows.iter().map(|row| RowSize::of(row)).collect();
    let prefixes = if share_prefixes {
        Prefixes::of(rows)
    } else {
        Prefixes::none(rows.len())
    };
    let packer = Packer {
        sizes: &sizes,
        prefixes: &prefixes,
        costs: row_costs(config),
    };
    packer.pack(budget_tokens, num_workers)
}
