//! Operations and bytes that a step of a decoder must take, whatever computes it.

use asyncthink_model::ModelConfig;

/// Costs of a decoder, by its shape and the size of a stored value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Values of the projections of all layers.
    layer_weights: f64,
    /// Values of the output head.
    head_weights: f64,
    /// Operations of attention for one row and one token that it attends to, in all layers.
    attention_flops: f64,
    /// Keys and values of one token in all layers.
    cached_values: f64,
    /// Bytes of a value.
    value_bytes: f64,
}

/// Rows of some steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rows {
    /// Steps.
    pub(crate) steps: f64,
    /// Rows that went through the layers.
    pub(crate) computed: f64,
    /// Rows that went through the head.
    pub(crate) sampled: f64,
    /// Tokens that rows attended to, summed over rows.
    pub(crate) attended: f64,
    /// Cached tokens that had to be read, each once a step and sequence.
    pub(crate) cached: f64,
}

impl Rows {
    /// The rows of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            steps: self.steps + other.steps,
            computed: self.computed + other.computed,
            sampled: self.sampled + other.sampled,
            attended: self.attended + other.attended,
            cached: self.cached + other.cached,
        }
    }
}

impl Cost {
    pub(crate) fn new(config: &ModelConfig, value_bytes: usize) -> Self {
        let head_weights = (config.vocab_size * config.hidden_size) as f64;
        let projections = config.parameter_shapes().into_iter();
        let layer_weights = projections
            .filter(|(name, shape)| name.starts_with("model.layers.") && shape.len() == 2)
            .map(|(_, shape)| shape.iter().product::<i64>() as f64)
            .sum();
        let layers = config.num_hidden_layers as f64;
        let width = |heads: i64| (heads * config.head_dim) as f64;
        Self {
            layer_weights,
            head_weights,
            // A product with the keys and one with the values, two operations for each pair of values.
            attention_flops: 4.0 * layers * width(config.num_attention_heads),
            cached_values: 2.0 * layers * width(config.num_key_value_heads),
            value_bytes: value_bytes as f64,
        }
    }

    /// Bytes of keys and values of one token in all layers.
    pub(crate) fn cached_token_bytes(&self) -> f64 {
        self.cached_values * self.value_bytes
    }

    /// Floating-point operations: two for each weight and row, and attention. An embedding is looked up.
    pub(crate) fn flops(&self, rows: &Rows) -> f64 {
        2.0 * (self.layer_weights * rows.computed + self.head_weights * rows.sampled)
            + self.attention_flops * rows.attended
    }

    /// Operations of a forward and a backward pass over rows; the backward pass takes twice the forward one, for gradients of
    /// activations and of weights, or as much where the weights are frozen. Recomputation is not work that must be done.
    pub(crate) fn training_flops(&self, rows: &Rows, trains_weights: bool) -> f64 {
        self.flops(rows) * if trains_weights { 3.0 } else { 2.0 }
    }

    /// Bytes that a forward and a backward pass must read: all weights once for each, at every micro-batch (a step).
    pub(crate) fn training_bytes(&self, rows: &Rows) -> f64 {
        2.0 * (self.layer_weights + self.head_weights) * rows.steps * self.value_bytes
    }

    /// Bytes that an update must read: f32 gradients for their norm, then weights, gradients and two moments.
    pub(crate) fn update_bytes(num_trained: i64) -> f64 {
        5.0 * 4.0 * num_trained as f64
    }

    /// Bytes that must be read: all weights once a step, and the cached tokens.
    pub(crate) fn bytes(&self, rows: &Rows) -> f64 {
        let weights = (self.layer_weights + self.head_weights) * rows.steps;
        (weights + self.cached_values * rows.cached) * self.value_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use asyncthink_model::ModelSizes;

    #[test]
    fn a_step_costs_its_weights_its_context_and_its_head() {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: 100,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            rope_theta: 10_000.0,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            eos_token_id: 0,
        })
        .expect("a configuration");
        let layer = 16 * (32 + 16 + 16 + 32) + 3 * 16 * 24;
        let cost = Cost::new(&config, 2);
        let rows = Rows {
            steps: 3.0,
            computed: 10.0,
            sampled: 4.0,
            attended: 50.0,
            cached: 20.0,
        };
        let weights = f64::from(2 * layer);
        let flops = 2.0 * (weights * 10.0 + 1600.0 * 4.0) + 4.0 * 2.0 * 32.0 * 50.0;
        assert!((cost.flops(&rows) - flops).abs() < 1e-6);
        let bytes = ((weights + 1600.0) * 3.0 + 2.0 * 2.0 * 16.0 * 20.0) * 2.0;
        assert!((cost.bytes(&rows) - bytes).abs() < 1e-6);
        assert!((cost.training_flops(&rows, true) - 3.0 * flops).abs() < 1e-6);
        assert!((cost.training_flops(&rows, false) - 2.0 * flops).abs() < 1e-6);
        let bytes = 2.0 * (weights + 1600.0) * 3.0 * 2.0;
        assert!((cost.training_bytes(&rows) - bytes).abs() < 1e-6);
    }
}
