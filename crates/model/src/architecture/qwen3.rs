//! Qwen3: queries and keys are normalised head by head.

use super::{Architecture, Biases, Sizes, Variant};
use crate::error::Result;
use crate::fields::Fields;

/// Width of a head where the configuration names none, whatever `hidden_size` is.
const DEFAULT_HEAD_DIM: i64 = 128;

/// The family `qwen3`.
#[derive(Debug)]
pub(super) struct Qwen3;

impl Architecture for Qwen3 {
    fn model_type(&self) -> &'static str {
        "qwen3"
    }

    fn read(&self, fields: &Fields<'_>, _: Sizes) -> Result<Variant> {
        let num_key_value_heads = fields.required_size("num_key_value_heads")?;
        let head_dim = fields.size("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM);
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        Ok(Variant {
            num_key_value_heads,
            head_dim,
            biases: Biases {
                query_key_value: attention_bias,
                attention_output: attention_bias,
                feed_forward: false,
            },
            has_query_key_norm: true,
        })
    }
}
